//! Pre-tokenizers: how text is cut before merging, by the names that llama.cpp has for them.

use serde_json::{Value as Json, json};

use crate::checkpoint::source::TensorSource;
use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// How Llama 3 cuts text into words.
const LLAMA3_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The same, every digit a word of its own.
const QWEN2_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// How Mistral Nemo cuts text: words end where small letters are followed by capitals.
const TEKKEN_PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// How a `tokenizer.ggml.pre` cuts text before merging.
pub(super) struct Pre {
    pub(super) normalizer: Json,
    pub(super) pre_tokenizer: Json,
    /// Whether a word that is a token is taken whole, without looking at the merges.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with BOS when the metadata does not say.
    pub(super) add_bos: bool,
}

/// Names of pre-tokenizers that differ from each other, as llama.cpp writes them.
pub(super) const PRE: [&str; 5] = ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"];

/// Returns the pre-tokenizer of a file.
///
/// # Errors
/// [`Error::Missing`] where the file names none, [`Error::Unsupported`] for one that is not known here.
pub(super) fn pre(gguf: &Gguf) -> Result<Pre> {
    let key = "tokenizer.ggml.pre";
    let Some(name) = gguf.string(key)? else {
        let what = format!(
            "`{key}` is missing, so the file does not say how its text is cut before merging; write it with \
             `gguf-new-metadata IN OUT --pre-tokenizer NAME` (known: {}), or convert the model again",
            PRE.join(", ")
        );
        return Err(Error::missing(gguf.path(), what));
    };
    pre_named(name).ok_or_else(|| {
        let what =
            format!("pre-tokenizer `{name}` (known: gpt-2, smollm, starcoder, refact, llama-bpe, smaug-bpe, dbrx, qwen2, \
                 deepseek-r1-qwen, tekken)");
        Error::unsupported(gguf.path(), what)
    })
}

pub(super) fn pre_named(name: &str) -> Option<Pre> {
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let split = |pattern: &str| {
        let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
    };
    let plain =
        |pre_tokenizer| Pre { normalizer: Json::Null, pre_tokenizer, ignore_merges: false, add_bos: false };
    Some(match name {
        "gpt-2" | "gpt2" => plain(byte_level(true)),
        "smollm" | "starcoder" | "refact" => plain(json!({
            "type": "Sequence",
            "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level(true)],
        })),
        "llama-bpe" | "llama3" | "llama-v3" => {
            Pre { ignore_merges: true, add_bos: true, ..plain(split(LLAMA3_PATTERN)) }
        }
        // SmolLM3 and OLMo 2: Llama 3's pattern alone.
        "smaug-bpe" | "dbrx" => plain(split(LLAMA3_PATTERN)),
        "qwen2" => Pre { normalizer: json!({ "type": "NFC" }), ..plain(split(QWEN2_PATTERN)) },
        // Qwen2's words, with the characters as they come.
        "deepseek-r1-qwen" => plain(split(QWEN2_PATTERN)),
        "tekken" => Pre { ignore_merges: true, add_bos: true, ..plain(split(TEKKEN_PATTERN)) },
        _ => return None,
    })
}

/// A pre-tokenizer without what says nothing about where it cuts.
pub(super) fn without_offsets(mut pre: Json) -> Json {
    fn strip(value: &mut Json) {
        match value {
            Json::Object(fields) => {
                fields.remove("trim_offsets");
                fields.values_mut().for_each(strip);
            }
            Json::Array(all) => all.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut pre);
    pre
}
