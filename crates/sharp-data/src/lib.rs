#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod chat;
mod clock;
mod document;
mod error;
mod lines;
mod olmo;
mod overlap;
mod pack;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(not(feature = "parquet"))]
#[path = "no_parquet.rs"]
mod parquet;
mod python_json;
mod read;
mod seed;
mod spec;
mod split;
mod task;
mod windows;

pub use chat::{Chat, Message};
pub use document::{Document, Turn};
pub use error::{Error, Result};
pub use lines::MAX_LINE_BYTES;
pub use overlap::{NGRAM_WORDS, Overlap, SHORTEST_WORDS, overlap, without_overlap};
pub use pack::{Encode, PackOptions, TokenBlocks, encode_document, encode_pair, pack};
pub use read::{Documents, read, read_text};
pub use seed::{SplitMix, shuffle};
pub use spec::{DataSpec, View};
pub use split::{Split, split};
pub use task::{Choice, Question, Shots, Task};
pub use windows::{Window, windows};
