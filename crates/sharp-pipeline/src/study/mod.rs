//! A study: a grid of configurations, each a run of its own, and their results side by side.

mod file;
mod plot;
mod runner;
mod table;

pub use file::{Cell, Plot, Study, Until, X};
pub use plot::svg;
pub use runner::{CellOutcome, CellStatus, Runner, StudyOutcome};
pub use table::{State, Table};
