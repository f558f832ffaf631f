#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod chat;
mod document;
mod error;
mod hash;
mod json;
mod json_line;
mod lines;
mod olmo;
mod overlap;
mod pack;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(not(feature = "parquet"))]
#[path = "parquet/absent.rs"]
mod parquet;
mod plain;
mod python_json;
mod python_methods;
mod read;
mod rng;
mod roomy;
mod spec;
mod split;
mod strftime;
mod task;
mod template_text;
mod text;
mod tool_calls;
mod turn_end;
mod windows;

pub use chat::{Chat, Message};
pub use document::{Document, Turn};
pub use error::{Error, Result};
pub use lines::MAX_LINE_BYTES;
pub use overlap::{NGRAM_WORDS, Overlap, SHORTEST_WORDS, overlap, without_overlap};
pub use pack::{Encode, PackOptions, TokenBlocks, encode_document, encode_pair, pack};
pub use plain::begin_tokens;
pub use read::{Documents, read, read_texts};
pub use rng::{SplitMix, shuffle};
pub use spec::{DataSpec, View};
pub use split::{Split, side, split};
pub use task::{Choice, Question, Shots, Task};
pub use text::Text;
pub use windows::{Window, windows};
