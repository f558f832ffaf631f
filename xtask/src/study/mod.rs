//! A study: a grid of configurations, each a run of its own, and their results side by side.

mod file;
mod plot;
mod table;

pub(crate) use file::{Cell, Study};
pub(crate) use plot::svg;
pub(crate) use table::{State, Table};
