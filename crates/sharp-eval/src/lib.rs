#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod error;
mod results;
mod shared;
mod stats;
mod tasks;
mod text;

pub use error::{Error, Result};
pub use results::{Results, Row, Text};
pub use tasks::{TaskScore, score_task};
pub use text::{TextScore, Windows, compare, perplexity, text_tokens};
