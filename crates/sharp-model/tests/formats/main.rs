//! Files from outside: GGUF, tokenizers, import, and the packed model, sound and hostile.

mod as_saved;
mod ends;
mod families;
mod gguf_export;
mod gguf_golden;
mod gguf_hostile;
mod import;
mod layout;
mod neurons;
mod packed;
mod packed_hostile;
mod plan;
mod pruned;
mod raw;
mod stored;
mod tokenizer_files;
mod tokens;
mod untrusted;

use std::path::PathBuf;

/// A folder of golden files.
fn golden(case: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")).join(case)
}

/// A folder of golden JSON.
fn json(path: PathBuf) -> serde_json::Value {
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap()
}
