//! Text to token ids and back.
//!
//! A thin layer over Hugging Face's `tokenizers`: it adds what belongs to the checkpoint around
//! `tokenizer.json` (special tokens, end-of-text ids, chat template), typed errors, and decoding of a stream
//! that never cuts a character in two.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use tokenizers::AddedToken;

use crate::added_tokens::{self, name_by_id, token_text};
use crate::checkpoint::hf::read_text;
use crate::ends::turn_ends;
use crate::error::{Error, Result};
use crate::json;

/// Tokens a stream may hold back waiting for the rest of a character before it gives up on it. A character
/// has at most four bytes, so only text that is no UTF-8 at all gets here.
const MAX_PENDING: usize = 32;

/// The largest `tokenizer.json` believed, in bytes. Those of 260,000 tokens have 35 MB.
const MAX_TOKENIZER: u64 = 256 << 20;
/// The largest file of settings beside it.
const MAX_SETTINGS: u64 = 16 << 20;
/// The largest chat template.
const MAX_TEMPLATE: u64 = 1 << 20;

/// A checkpoint's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    config: Map<String, Json>,
    chat_template: Option<String>,
    bos: Option<u32>,
    /// What the files name as ends.
    eos: Vec<u32>,
    /// Those, and what ends a turn besides.
    ends: Vec<u32>,
    /// The special tokens, by id.
    special: BTreeMap<u32, String>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("vocab_size", &self.vocab_size()).finish()
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face folder.
    pub(crate) fn from_folder(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            let hint = if dir.join("tokenizer.model").is_file() {
                "no `tokenizer.json` (a SentencePiece `tokenizer.model` alone is not read; save the tokenizer with \
                 transformers' fast tokenizer first)"
            } else {
                "no `tokenizer.json`"
            };
            return Err(Error::missing(dir, hint));
        }
        let text = read_text(&path, MAX_TOKENIZER)?;
        let mut config = optional_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let jinja = dir.join("chat_template.jinja");
        if jinja.is_file() {
            let template = read_text(&jinja, MAX_TEMPLATE)?;
            if !template.trim().is_empty() {
                config.insert("chat_template".into(), Json::String(template));
            }
        }
        if let Some(added) = optional_json(&dir.join("added_tokens.json"))? {
            name_by_id(&mut config, &added);
        }
        let mut eos = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            if let Some(file) = optional_json(&dir.join(name))? {
                eos.extend(eos_ids(&file));
            }
        }
        Self::from_parts(&path, text.as_bytes(), config, &eos)
    }

    /// Builds a tokenizer from the contents of `tokenizer.json` and `tokenizer_config.json`. `eos` are
    /// end-of-text ids the model's own configuration adds; `path` is only for messages.
    ///
    /// Truncation and padding that a trainer left in the file are not applied, as in transformers. Tokens
    /// that only the configuration's `added_tokens_decoder` knows are added.
    ///
    /// # Errors
    /// [`Error::Json`] if `json` is not JSON; [`Error::Tokenizer`] if it is no tokenizer, if the
    /// configuration's special tokens are not in it, or if an added token cannot have the id that the
    /// configuration gives it.
    pub fn from_parts(path: &Path, json: &[u8], config: Map<String, Json>, eos: &[u32]) -> Result<Self> {
        json::check_tokenizer(path, json)?;
        unwound(path, || Self::build(path, json, config, eos))
    }

    fn build(path: &Path, json: &[u8], config: Map<String, Json>, eos: &[u32]) -> Result<Self> {
        let mut inner = added_tokens::load(path, json, &config)?;
        inner.with_truncation(None).map_err(|e| failed(path, e))?;
        inner.with_padding(None);
        let id = |key: &str| -> Result<Option<u32>> {
            let Some(text) = config.get(key).and_then(token_text) else { return Ok(None) };
            match inner.token_to_id(text) {
                Some(id) => Ok(Some(id)),
                None => Err(failed(path, format!("`{key}` is {text:?}, which is no token"))),
            }
        };
        let bos = id("bos_token")?;
        let mut all: Vec<u32> = id("eos_token")?.into_iter().collect();
        for &id in eos {
            if !all.contains(&id) {
                all.push(id);
            }
        }
        let chat_template = config.get("chat_template").and_then(default_template);
        let chat_template = chat_template.filter(|text| !text.trim().is_empty()).map(str::to_owned);
        let added: BTreeMap<u32, AddedToken> = inner.get_added_tokens_decoder().into_iter().collect();
        let mut ends = all.clone();
        let known = turn_ends(added.iter().map(|(&id, token)| (id, token.content.as_str())));
        ends.extend(known.into_iter().filter(|id| !all.contains(id)));
        let special = added.into_iter().filter(|(_, t)| t.special).map(|(id, t)| (id, t.content)).collect();
        Ok(Self { inner, path: path.to_path_buf(), config, chat_template, bos, eos: all, ends, special })
    }

    /// Calls the library.
    fn call<T>(&self, call: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<T>) -> Result<T> {
        unwound(&self.path, || call(&self.inner).map_err(|e| failed(&self.path, e)))
    }

    /// Number of tokens, added ones included. The model's `vocab_size` may be larger (padding).
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Token ids of `text`. Special tokens written out in the text (`<|im_end|>`) become their ids. With
    /// `add_special` the tokenizer also puts its begin- or end-of-text tokens around it, if it has that
    /// habit.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.call(|inner| inner.encode_fast(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`Tokenizer::encode`] without special tokens around it, and for each token the byte of the text at
    /// which it begins.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_starts(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>)> {
        let encoding = self.call(|inner| inner.encode(text, false))?;
        let starts = encoding.get_offsets().iter().map(|&(start, _)| start).collect();
        Ok((encoding.get_ids().to_vec(), starts))
    }

    /// [`Tokenizer::encode`] of many texts, in parallel; the order is kept.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_batch(&self, texts: &[&str], add_special: bool) -> Result<Vec<Vec<u32>>> {
        let all = self.call(|inner| inner.encode_batch_fast(texts.to_vec(), add_special))?;
        Ok(all.into_iter().map(|e| e.get_ids().to_vec()).collect())
    }

    /// The text of `ids`, special tokens written out. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.call(|inner| inner.decode(ids, false))
    }

    /// The text of `ids` without special tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_text(&self, ids: &[u32]) -> Result<String> {
        self.call(|inner| inner.decode(ids, true))
    }

    /// Starts decoding tokens one by one. `context` is what came before (the prompt); only its last tokens
    /// matter, for tokenizers whose text depends on whether it begins a document.
    pub fn stream(&self, context: &[u32], skip_special: bool) -> DecodeStream<'_> {
        let ids = context[context.len().saturating_sub(8)..].to_vec();
        DecodeStream { tokenizer: self, emitted: ids.len(), ids, skip_special }
    }

    /// The id of a token given by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token as the vocabulary spells it (`Ġthe`), `None` past the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The special tokens, by id.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        self.special.iter().map(|(&id, text)| (id, text.clone())).collect()
    }

    /// The text of a special token, `None` for any other.
    pub fn special_text(&self, id: u32) -> Option<&str> {
        self.special.get(&id).map(String::as_str)
    }

    /// The begin-of-text token, if the tokenizer names one (whether texts begin with it is another matter).
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The ids that the model's files name as ends of a text or a turn: the tokenizer's own first, then the
    /// model configuration's.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// Every id that ends a generation: [`Tokenizer::eos_ids`], then tokens that end a turn in any published
    /// chat model (`<|im_end|>`, `<|eot_id|>`, ...), then what [`Tokenizer::add_end`] added.
    pub fn end_ids(&self) -> &[u32] {
        &self.ends
    }

    /// Adds an id that ends a generation: the end of a turn that only the chat template knows.
    pub fn add_end(&mut self, id: u32) {
        if !self.ends.contains(&id) {
            self.ends.push(id);
        }
    }

    /// Whether `id` ends a text or a turn.
    pub fn is_eos(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// The chat template (Jinja), if there is one; of several named ones the one called `default`.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// `tokenizer_config.json` as loaded.
    pub fn config(&self) -> &Map<String, Json> {
        &self.config
    }

    /// The content of `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| failed(&self.path, e))
    }
}

/// Decodes a growing sequence of tokens, giving out text only once it is final.
///
/// The pieces put together equal the decoding of the whole sequence, and no piece ends within a character.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last tokens whose text was given out, then those that wait.
    ids: Vec<u32>,
    /// How many of `ids` were given out.
    emitted: usize,
    skip_special: bool,
}

impl DecodeStream<'_> {
    /// Adds a token and returns the text that became final, which may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (before, after) = self.texts()?;
        let waiting = after.len() <= before.len() || after.ends_with(char::REPLACEMENT_CHARACTER);
        if waiting && self.ids.len() - self.emitted < MAX_PENDING {
            return Ok(String::new());
        }
        Ok(self.advance(&before, &after))
    }

    /// Ends the stream and returns what was held back: an unfinished character becomes U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(mut self) -> Result<String> {
        let (before, after) = self.texts()?;
        Ok(self.advance(&before, &after))
    }

    fn texts(&self) -> Result<(String, String)> {
        let decode = |ids: &[u32]| {
            if self.skip_special { self.tokenizer.decode_text(ids) } else { self.tokenizer.decode(ids) }
        };
        Ok((decode(&self.ids[..self.emitted])?, decode(&self.ids)?))
    }

    fn advance(&mut self, before: &str, after: &str) -> String {
        self.ids.drain(..self.emitted);
        self.emitted = self.ids.len();
        // Where the last text changed in hindsight (bytes that turned out to be no character) keep what
        // agrees.
        let same: usize =
            before.chars().zip(after.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        after[same..].to_owned()
    }
}

fn failed(path: &Path, what: impl fmt::Display) -> Error {
    Error::Tokenizer { path: path.to_path_buf(), what: what.to_string() }
}

/// Turns a panic of the library into an error. It trusts what `tokenizer.json` says of normalisers,
/// pre-tokenizers and decoders.
fn unwound<T>(path: &Path, call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let said = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it does not say why");
        let what = format!(
            "the `tokenizers` library fails on what its file says ({said}); a normalizer, pre-tokenizer or decoder \
             makes no sense, or the file is damaged: fetch it again, or save it again with transformers"
        );
        Err(failed(path, what))
    })
}

fn optional_json(path: &Path) -> Result<Option<Map<String, Json>>> {
    if !path.is_file() {
        return Ok(None);
    }
    json::parse(path, read_text(path, MAX_SETTINGS)?.as_bytes()).map(Some)
}

/// `chat_template` is a text, or a list of `{name, template}`.
fn default_template(value: &Json) -> Option<&str> {
    if let Some(text) = value.as_str() {
        return Some(text);
    }
    let list = value.as_array()?;
    let named = |n: &str| list.iter().find(|t| t.get("name").and_then(Json::as_str) == Some(n));
    named("default").or_else(|| list.first()).and_then(|t| t.get("template")).and_then(Json::as_str)
}

/// `eos_token_id` of a model or generation configuration: one id or a list.
pub(crate) fn eos_ids(config: &Map<String, Json>) -> Vec<u32> {
    let id = |v: &Json| v.as_u64().and_then(|v| u32::try_from(v).ok());
    match config.get("eos_token_id") {
        Some(Json::Array(all)) => all.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}
