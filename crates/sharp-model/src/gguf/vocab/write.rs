//! From a tokenizer to GGUF metadata.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value as Json;

use super::pre::{PRE, pre_named, without_offsets};
use super::{BYTE, CONTROL, MORE_ENDS, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, GgufWriter};
use crate::tokenizer::Tokenizer;

/// Says that a GGUF file has no tokenizer.
pub(in crate::gguf) fn no_tokenizer(file: &mut GgufWriter) {
    file.string("tokenizer.ggml.model", "no_vocab");
}

/// Puts a tokenizer into a GGUF file's metadata: a byte-level BPE with a known pre-tokenizer, or a BPE with
/// byte fallback as SentencePiece has.
pub(in crate::gguf) fn describe_tokenizer(
    file: &mut GgufWriter,
    path: &Path,
    tokenizer: &Tokenizer,
    config: &ModelConfig,
) -> Result<()> {
    let refuse = |what: &str| Error::unsupported(path, format!("{what} in a GGUF file"));
    let json: Json = serde_json::from_str(&tokenizer.to_json()?).map_err(Error::json(path))?;
    let model = json.get("model").filter(|m| m.get("type").and_then(Json::as_str) == Some("BPE"));
    let model = model.ok_or_else(|| refuse("a tokenizer that is no BPE"))?;
    let flag = |key: &str| model.get(key).and_then(Json::as_bool).unwrap_or(false);
    let unknown = model.get("unk_token").and_then(Json::as_str);
    let byte_fallback = flag("byte_fallback");
    let merges = merges_of(model);
    let (tokens, kinds) = tokens_of(&json, model, config.vocab_size)
        .map_err(|text| refuse(&format!("a token ({text:?}) without a row of the embedding")))?;
    if byte_fallback {
        file.string("tokenizer.ggml.model", "llama");
        file.f32s("tokenizer.ggml.scores", &scores(&tokens, &merges));
        let normalizer = json.get("normalizer").map(Json::to_string).unwrap_or_default();
        file.bool("tokenizer.ggml.add_space_prefix", normalizer.contains("\"Prepend\""));
    } else {
        let found = json.get("pre_tokenizer").cloned().map(without_offsets);
        let name = PRE.into_iter().find(|name| {
            pre_named(name).is_some_and(|pre| {
                Some(without_offsets(pre.pre_tokenizer)) == found
                    && pre.ignore_merges == flag("ignore_merges")
            })
        });
        file.string("tokenizer.ggml.model", "gpt2");
        file.string("tokenizer.ggml.pre", name.ok_or_else(|| refuse("a pre-tokenizer of this kind"))?);
        file.strings("tokenizer.ggml.merges", &merges);
    }
    file.strings("tokenizer.ggml.tokens", &tokens);
    file.i32s("tokenizer.ggml.token_type", &kinds);
    describe_special_tokens(file, tokenizer, unknown)
}

/// Lists the merges of a BPE model, each as its two parts with a space between.
fn merges_of(model: &Json) -> Vec<String> {
    let merges = model.get("merges").and_then(Json::as_array).into_iter().flatten();
    merges
        .map(|merge| match merge {
            Json::Array(pair) => pair.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(" "),
            other => other.as_str().unwrap_or_default().to_owned(),
        })
        .collect()
}

/// Lists the text and the kind of every row of the embedding; the error is a token's text that has no row.
///
/// Rows past the vocabulary are tokens that no text contains.
fn tokens_of(
    json: &Json,
    model: &Json,
    rows: usize,
) -> std::result::Result<(Vec<String>, Vec<i32>), Option<String>> {
    let unknown = model.get("unk_token").and_then(Json::as_str);
    let byte_fallback = model.get("byte_fallback").and_then(Json::as_bool).unwrap_or(false);
    let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED as i32; rows];
    let mut put = |id: Option<u64>, text: Option<&str>, kind: i64| {
        let slot =
            id.and_then(|id| usize::try_from(id).ok()).and_then(|i| tokens.get_mut(i).zip(kinds.get_mut(i)));
        let (Some((token, slot)), Some(text)) = (slot, text) else { return Err(text.map(str::to_owned)) };
        (*token, *slot) = (text.to_owned(), kind as i32);
        Ok(())
    };
    for (text, id) in model.get("vocab").and_then(Json::as_object).into_iter().flatten() {
        let byte = byte_fallback && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = match text.as_str() {
            _ if byte => BYTE,
            text if Some(text) == unknown => UNKNOWN,
            _ => NORMAL,
        };
        put(id.as_u64(), Some(text), kind)?;
    }
    for token in json.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
        let text = token.get("content").and_then(Json::as_str);
        let special = token.get("special").and_then(Json::as_bool).unwrap_or(false);
        let kind = match special {
            true if text == unknown => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
        put(token.get("id").and_then(Json::as_u64), text, kind)?;
    }
    Ok((tokens, kinds))
}

/// Scores each token by the rank of the first merge that makes it, as SentencePiece does; what no merge makes
/// ranks last.
fn scores(tokens: &[String], merges: &[String]) -> Vec<f32> {
    let mut rank = HashMap::new();
    for (i, merge) in merges.iter().enumerate() {
        rank.entry(merge.replacen(' ', "", 1)).or_insert(i);
    }
    tokens.iter().map(|t| -(rank.get(t).copied().unwrap_or(merges.len()) as f32)).collect()
}

/// Puts the special tokens, whether they are added to a text, and the chat template into the metadata.
fn describe_special_tokens(
    file: &mut GgufWriter,
    tokenizer: &Tokenizer,
    unknown: Option<&str>,
) -> Result<()> {
    let eos = tokenizer.eos_ids();
    let named = |key: &str| {
        let value = tokenizer.config().get(key)?;
        tokenizer.token_id(value.as_str().or_else(|| value.get("content")?.as_str())?)
    };
    for (name, id) in [
        ("bos", tokenizer.bos_id()),
        ("eos", eos.first().copied()),
        ("eot", eos.get(1).copied()),
        ("eom", eos.get(2).copied()),
        ("unknown", unknown.and_then(|text| tokenizer.token_id(text))),
        ("padding", named("pad_token")),
    ] {
        if let Some(id) = id {
            file.u32(&Gguf::token_key(name), id);
        }
    }
    if let Some(more) = eos.get(3..).filter(|more| !more.is_empty()) {
        let more: Vec<i32> = more.iter().filter_map(|&id| i32::try_from(id).ok()).collect();
        file.i32s(MORE_ENDS, &more);
    }
    // What the tokenizer does, whatever way it was told to.
    let (plain, whole) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
    let around = whole.len() > plain.len();
    file.bool("tokenizer.ggml.add_bos_token", around && whole.first().copied() == tokenizer.bos_id());
    file.bool("tokenizer.ggml.add_eos_token", around && whole.last().is_some_and(|id| eos.contains(id)));
    if let Some(template) = tokenizer.chat_template() {
        file.string("tokenizer.chat_template", template);
    }
    Ok(())
}
