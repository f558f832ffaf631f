//! Hugging Face checkpoints, read and written, and what every reader of tensors shares.

pub(crate) mod atomic;
pub(crate) mod compact;
pub(crate) mod destination;
pub(crate) mod fused;
pub(crate) mod hf;
pub(crate) mod import;
pub(crate) mod mmap;
mod plain_names;
pub(crate) mod source;
pub(crate) mod writer;
