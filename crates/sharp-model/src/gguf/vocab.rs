//! Tokenizers: from GGUF metadata to Hugging Face's `tokenizer.json` and `tokenizer_config.json`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::Gguf;
use super::write::GgufWriter;
use crate::checkpoint::source::TensorSource;
use crate::config::ModelConfig;
use crate::ends::is_turn_end;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Kinds of token (`tokenizer.ggml.token_type`).
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// Ends of text past the three that the format has keys for, as a list.
pub(super) const MORE_ENDS: &str = "sharp.eos_token_ids";

/// GPT-2's way of cutting text, which several others begin from.
const LLAMA3_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The vocabulary as the metadata has it.
struct Vocab<'a> {
    tokens: &'a [String],
    kinds: Vec<i64>,
}

/// How a `tokenizer.ggml.pre` cuts text before merging.
struct Pre {
    normalizer: Json,
    pre_tokenizer: Json,
    /// Whether a word that is a token is taken whole, without looking at the merges.
    ignore_merges: bool,
    /// Whether a text begins with BOS when the metadata does not say.
    add_bos: bool,
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
    for (id, token) in (0u32..).zip(vocab.tokens) {
        if let Some(first) = ids.insert(token.as_str(), id) {
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
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = gguf.integer(&key)? else { return Ok(None) };
    // Some converters write -1 as an unsigned number for "none".
    if id == u64::from(u32::MAX) {
        return Ok(None);
    }
    match usize::try_from(id).ok().and_then(|i| vocab.tokens.get(i)) {
        Some(text) => Ok(Some((id as u32, text))),
        None => {
            let what = format!("`{key}` is {id}, the vocabulary has {} tokens", vocab.tokens.len());
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
    for ((id, token), &kind) in (0u32..).zip(vocab.tokens).zip(&vocab.kinds) {
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

/// Names of pre-tokenizers that differ from each other, as llama.cpp writes them.
const PRE: [&str; 4] = ["gpt-2", "smollm", "llama-bpe", "qwen2"];

fn pre(gguf: &Gguf) -> Result<Pre> {
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
            format!("pre-tokenizer `{name}` (known: gpt-2, smollm, starcoder, refact, llama-bpe, smaug-bpe, dbrx, qwen2)");
        Error::unsupported(gguf.path(), what)
    })
}

fn pre_named(name: &str) -> Option<Pre> {
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
        _ => return None,
    })
}

/// Says that a GGUF file has no tokenizer.
pub(super) fn no_tokenizer(file: &mut GgufWriter) {
    file.string("tokenizer.ggml.model", "no_vocab");
}

/// Puts a tokenizer into a GGUF file's metadata: a byte-level BPE with a known pre-tokenizer, or a BPE with
/// byte fallback as SentencePiece has.
pub(super) fn describe_tokenizer(
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
            file.u32(&format!("tokenizer.ggml.{name}_token_id"), id);
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

/// A pre-tokenizer without what says nothing about where it cuts.
fn without_offsets(mut pre: Json) -> Json {
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
