#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod error;
mod results;
mod shared;
mod stats;
mod tasks;
mod text;

pub use error::{Error, Result};
pub use results::{Text, load, measure, save};
pub use sharp_schema::evaluation::{EvalRow, Results, Settings, TaskScore, TextSettings};
pub use tasks::score_task;
pub use text::{TextScore, Windows, compare, perplexity, text_tokens};
