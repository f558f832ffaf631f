#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod bootstrap;
mod error;
mod results;
mod shared;
mod stats;
mod tasks;
mod text;

pub use bootstrap::{Bootstrap, RESAMPLES};
pub use error::{Error, Result};
pub use results::{load, measure, save};
pub use sharp_data::Text;
pub use sharp_schema::evaluation::{EvalRow, LossDifference, Results, Settings, TaskScore, TextSettings};
pub use tasks::score_task;
pub use text::{TextScore, Windows, compare, perplexity};
