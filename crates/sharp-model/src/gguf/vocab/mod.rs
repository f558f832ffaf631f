//! Tokenizers: between GGUF metadata and Hugging Face's `tokenizer.json` and `tokenizer_config.json`.

mod pre;
mod read;
mod write;

pub use read::{tokenizer_config_json, tokenizer_json};
pub(super) use write::{describe_tokenizer, no_tokenizer};

/// Kinds of token (`tokenizer.ggml.token_type`).
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// Ends of text past the three that the format has keys for, as a list.
pub(super) const MORE_ENDS: &str = "sharp.eos_token_ids";
