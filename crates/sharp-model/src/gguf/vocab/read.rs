//! From GGUF metadata to `tokenizer.json` and `tokenizer_config.json`.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::pre::pre;
use super::{CONTROL, NORMAL, UNKNOWN, USER_DEFINED};
use crate::checkpoint::source::TensorSource;
use crate::ends::is_turn_end;
use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// The vocabulary as the metadata has it.
struct Vocab<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<i64>,
}

/// Makes the content of `tokenizer.json`.
///
/// # Errors
/// [`Error::Unsupported`] for a tokenizer model or pre-tokenizer this crate does not know; [`Error::Missing`]
/// and [`Error::Malformed`] for metadata that is absent or contradicts itself, such as two tokens of the same
/// text.
pub fn tokenizer_json(gguf: &Gguf) -> Result<Json> {
    let vocab = vocab(gguf)?;
    let ids = ids(gguf, &vocab)?;
    let model = gguf.string("tokenizer.ggml.model")?;
    let (normalizer, pre_tokenizer, decoder, model, add_bos) =
        match gguf.require(model, "tokenizer.ggml.model")? {
            "gpt2" => byte_level(gguf, &ids)?,
            "llama" => sentence_piece(gguf, &vocab, &ids)?,
            other => {
                let what = format!("tokenizer model `{other}` (known: gpt2, llama)");
                return Err(Error::unsupported(gguf.path(), what));
            }
        };
    let byte_level_decoder = decoder.get("type").and_then(Json::as_str) == Some("ByteLevel");
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(gguf, &vocab)?.into_iter().map(|(_, t)| t).collect::<Vec<_>>(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor(gguf, &vocab, add_bos, byte_level_decoder)?,
        "decoder": decoder,
        "model": model,
    }))
}

/// Makes the content of `tokenizer_config.json`: special tokens and chat template.
///
/// # Errors
/// As [`tokenizer_json`].
pub fn tokenizer_config_json(gguf: &Gguf) -> Result<Map<String, Json>> {
    let vocab = vocab(gguf)?;
    let mut out = Map::new();
    let mut decoder = Map::new();
    for (id, token) in added_tokens(gguf, &vocab)? {
        let mut token = token;
        if let Some(fields) = token.as_object_mut() {
            fields.remove("id");
        }
        decoder.insert(id.to_string(), token);
    }
    let add = |name: &str| gguf.boolean(&format!("tokenizer.ggml.add_{name}_token"));
    out.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    for name in ["bos", "eos"] {
        if let Some(value) = add(name)? {
            out.insert(format!("add_{name}_token"), json!(value));
        }
    }
    out.insert("added_tokens_decoder".into(), Json::Object(decoder));
    for (hf, ggml) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        if let Some((_, text)) = special(gguf, &vocab, ggml)? {
            out.insert(format!("{hf}_token"), json!(text));
        }
    }
    out.insert("clean_up_tokenization_spaces".into(), json!(false));
    if let Some(length) = gguf.integer(&format!("{}.context_length", gguf.architecture()?))? {
        out.insert("model_max_length".into(), json!(length));
    }
    if let Some(template) = gguf.string("tokenizer.chat_template")? {
        out.insert("chat_template".into(), json!(template));
    }
    Ok(out)
}

fn vocab(gguf: &Gguf) -> Result<Vocab<'_>> {
    let key = "tokenizer.ggml.tokens";
    let tokens = gguf.require(gguf.strings(key)?, key)?;
    if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
        return Err(Error::malformed(gguf.path(), format!("`{key}` has {} tokens", tokens.len())));
    }
    let embed = gguf.info("token_embd.weight").and_then(|i| i.shape.first().copied());
    if let Some(rows) = embed.filter(|&rows| rows < tokens.len()) {
        let what = format!("`{key}` has {} tokens, the embedding only {rows} rows", tokens.len());
        return Err(Error::malformed(gguf.path(), what));
    }
    let kinds = match gguf.array("tokenizer.ggml.token_type")? {
        None => vec![NORMAL; tokens.len()],
        Some(array) => array.as_integers().filter(|k| k.len() == tokens.len()).ok_or_else(|| {
            let what = "`tokenizer.ggml.token_type` is not one whole number a token";
            Error::malformed(gguf.path(), what)
        })?,
    };
    Ok(Vocab { tokens, kinds })
}

fn ids<'a>(gguf: &Gguf, vocab: &Vocab<'a>) -> Result<HashMap<&'a str, u32>> {
    let mut ids = HashMap::new();
    for (id, &token) in (0u32..).zip(&vocab.tokens) {
        if let Some(first) = ids.insert(token, id) {
            let what = format!(
                "tokens {first} and {id} have the same text {token:?}, so a text with it has no one reading; \
                 convert the model again, with one of them renamed"
            );
            return Err(Error::malformed(gguf.path(), what));
        }
    }
    Ok(ids)
}

/// The id and text of `tokenizer.ggml.<name>_token_id`.
fn special<'a>(gguf: &Gguf, vocab: &Vocab<'a>, name: &str) -> Result<Option<(u32, &'a str)>> {
    let Some(id) = gguf.token_id(name)? else { return Ok(None) };
    match usize::try_from(id).ok().and_then(|i| vocab.tokens.get(i)) {
        Some(&text) => Ok(Some((id as u32, text))),
        None => {
            let (key, count) = (Gguf::token_key(name), vocab.tokens.len());
            let what = format!("`{key}` is {id}, the vocabulary has {count} tokens");
            Err(Error::malformed(gguf.path(), what))
        }
    }
}

/// Tokens that are found in a text before anything else: control tokens, which are special, and user-defined
/// ones.
fn added_tokens(gguf: &Gguf, vocab: &Vocab) -> Result<Vec<(u32, Json)>> {
    let mut named = Vec::new();
    for name in ["bos", "eos", "eot", "eom", "unknown", "padding"] {
        named.extend(special(gguf, vocab, name)?.map(|(id, _)| id));
    }
    let mut out = Vec::new();
    for ((id, token), &kind) in (0u32..).zip(&vocab.tokens).zip(&vocab.kinds) {
        // A converter that knows no control tokens lists the ends of turns as plain words.
        let special = matches!(kind, CONTROL | UNKNOWN) || named.contains(&id) || is_turn_end(token);
        if special || kind == USER_DEFINED {
            let token = json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            });
            out.push((id, token));
        }
    }
    Ok(out)
}

type Parts = (Json, Json, Json, Json, bool);

fn byte_level(gguf: &Gguf, ids: &HashMap<&str, u32>) -> Result<Parts> {
    let key = "tokenizer.ggml.merges";
    let lines = gguf.require(gguf.strings(key)?, key)?;
    let mut merges = Vec::with_capacity(lines.len());
    for (i, line) in lines.iter().enumerate() {
        let pair = line.split_once(' ').filter(|(a, b)| ids.contains_key(a) && ids.contains_key(b));
        let Some((a, b)) = pair.filter(|(a, b)| ids.contains_key(format!("{a}{b}").as_str())) else {
            let what = format!("element {i} of `{key}`, {line:?}, does not join two tokens into a third");
            return Err(Error::malformed(gguf.path(), what));
        };
        merges.push(json!([a, b]));
    }
    let pre = pre(gguf)?;
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "ignore_merges": pre.ignore_merges, "vocab": in_order(ids), "merges": merges,
    });
    let decoder =
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    Ok((pre.normalizer, pre.pre_tokenizer, decoder, model, pre.add_bos))
}

/// A SentencePiece BPE vocabulary. Its scores rank the merges: every way of joining two pieces into a piece
/// is a merge, better scores first, longer left parts first among equals, then longer right parts.
fn sentence_piece(gguf: &Gguf, vocab: &Vocab, ids: &HashMap<&str, u32>) -> Result<Parts> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf.require(gguf.array(key)?, key)?.as_floats();
    let scores = scores
        .filter(|s| s.len() == vocab.tokens.len() && s.iter().all(|x| !x.is_nan()))
        .ok_or_else(|| Error::malformed(gguf.path(), format!("`{key}` is not one number a token")))?;
    let mut merges = Vec::new();
    for ((piece, &kind), &score) in vocab.tokens.iter().zip(&vocab.kinds).zip(&scores) {
        if kind != NORMAL {
            continue;
        }
        let mut local = Vec::new();
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                local.push((l, r, score, left, right));
            }
        }
        local.sort_by_key(|&(l, r, ..)| (l, r));
        merges.extend(local);
    }
    let characters = |s: &str| s.chars().count();
    merges.sort_by(|a, b| {
        b.2.total_cmp(&a.2)
            .then_with(|| characters(b.3).cmp(&characters(a.3)))
            .then_with(|| characters(b.4).cmp(&characters(a.4)))
    });
    let merges: Vec<Json> = merges.into_iter().map(|(_, _, _, left, right)| json!([left, right])).collect();
    let unknown = special(gguf, vocab, "unknown")?.map_or("<unk>", |(_, text)| text);
    if !ids.contains_key(unknown) {
        return Err(Error::malformed(gguf.path(), "a SentencePiece vocabulary without an unknown token"));
    }
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": in_order(ids), "merges": merges,
    });
    let prefix = gguf.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = Vec::new();
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.push(json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    normalizers.push(json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" }));
    let normalizer = json!({ "type": "Sequence", "normalizers": normalizers });
    let decoder = json!({ "type": "Sequence", "decoders": decoders });
    Ok((normalizer, Json::Null, decoder, model, true))
}

/// The vocabulary as a JSON object, by id.
fn in_order(ids: &HashMap<&str, u32>) -> Map<String, Json> {
    let mut all: Vec<_> = ids.iter().map(|(&t, &i)| (i, t)).collect();
    all.sort_unstable();
    all.into_iter().map(|(i, t)| (t.to_owned(), json!(i))).collect()
}

/// Puts BOS and EOS around a text where the metadata asks for it.
fn post_processor(gguf: &Gguf, vocab: &Vocab, add_bos: bool, byte_level: bool) -> Result<Json> {
    let wanted = |name: &str, default: bool| -> Result<Option<(u32, &str)>> {
        let wanted = gguf.boolean(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(default);
        if wanted { special(gguf, vocab, name) } else { Ok(None) }
    };
    let (bos, eos) = (wanted("bos", add_bos)?, wanted("eos", false)?);
    if bos.is_none() && eos.is_none() {
        let plain = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true });
        return Ok(if byte_level { plain } else { Json::Null });
    }
    let token = |text: &str, kind: u8| json!({ "SpecialToken": { "id": text, "type_id": kind } });
    let sequence = |name: &str, kind: u8| json!({ "Sequence": { "id": name, "type_id": kind } });
    let around = |name: &str, kind: u8| -> Vec<Json> {
        let before = bos.map(|(_, t)| token(t, kind));
        let after = eos.map(|(_, t)| token(t, kind));
        before.into_iter().chain([sequence(name, kind)]).chain(after).collect()
    };
    let specials: Map<String, Json> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] })))
        .collect();
    let pair: Vec<Json> = around("A", 0).into_iter().chain(around("B", 1)).collect();
    Ok(json!({
        "type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": specials,
    }))
}
