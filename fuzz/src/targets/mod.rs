//! The parsers that read what others have written.

mod data;
mod model;
mod server;
mod tokens;

use crate::target::Target;

/// Every target.
pub const TARGETS: [Target; 14] = [
    model::GGUF,
    model::SAFETENSORS,
    model::INDEX,
    model::PACKED,
    model::CONFIG,
    model::PLAN,
    tokens::TOKENIZER,
    tokens::SETTINGS,
    tokens::TEMPLATE,
    data::PARQUET,
    data::JSON,
    data::TEXT,
    data::ARTICLES,
    server::REQUEST,
];
