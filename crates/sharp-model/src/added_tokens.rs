//! Added tokens: what the files beside a tokenizer know of them, each with the id that its file says.
//!
//! `tokenizers` gives an added token the next free id, whatever its file says, so ids with gaps between them
//! would move. Such tokens are put into the vocabulary first, where they keep their ids.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use tokenizers::{AddedToken, Tokenizer};

use crate::error::{Error, Result};

/// A token with the id that a file gives it.
struct Wanted<'a> {
    id: u32,
    text: &'a str,
}

impl Wanted<'_> {
    fn is_in(&self, tokenizer: &Tokenizer) -> bool {
        tokenizer.token_to_id(self.text) == Some(self.id)
    }
}

/// The added tokens of a `tokenizer.json`.
#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    added_tokens: Vec<ListedToken>,
}

#[derive(Deserialize)]
struct ListedToken {
    id: u32,
    content: String,
}

/// Makes a tokenizer of a `tokenizer.json`, with the tokens that only a configuration's
/// `added_tokens_decoder` knows.
///
/// # Errors
/// [`Error::Tokenizer`] for no tokenizer, and for a token that cannot have its id.
pub(crate) fn load(path: &Path, json: &[u8], config: &Map<String, Json>) -> Result<Tokenizer> {
    let failed = |e: tokenizers::Error| Error::tokenizer(path, e);
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(failed)?;
    let listed: Listed = serde_json::from_slice(json).map_err(Error::json(path))?;
    let mut new = decoder(config);
    // One that the file has keeps the id that it has there.
    new.retain(|(wanted, _)| tokenizer.token_to_id(wanted.text).is_none());
    add(&mut tokenizer, &new).map_err(failed)?;
    let listed = listed.added_tokens.iter().filter(|token| !token.content.is_empty());
    let listed = listed.map(|token| Wanted { id: token.id, text: &token.content });
    let wanted: Vec<Wanted> =
        listed.chain(new.iter().map(|(wanted, _)| Wanted { id: wanted.id, text: wanted.text })).collect();
    if wanted.iter().all(|wanted| wanted.is_in(&tokenizer)) {
        return Ok(tokenizer);
    }
    let json = with_ids(json, &wanted).map_err(Error::json(path))?;
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(failed)?;
    add(&mut tokenizer, &new).map_err(failed)?;
    match wanted.iter().find(|wanted| !wanted.is_in(&tokenizer)) {
        None => Ok(tokenizer),
        Some(Wanted { id, text }) => {
            let found = tokenizer.token_to_id(text).map_or("none".to_owned(), |id| id.to_string());
            let has = tokenizer.id_to_token(*id).unwrap_or_default();
            let what = format!(
                "token {text:?} is to have the id {id} (`added_tokens`, `added_tokens_decoder` or \
                 added_tokens.json), which {has:?} has, and would get {found}; save the tokenizer again with \
                 transformers' save_pretrained"
            );
            Err(Error::tokenizer(path, what))
        }
    }
}

/// Puts tokens into the vocabulary of a `tokenizer.json` where neither they nor their ids are there. A
/// vocabulary that is a list has no place for them.
fn with_ids(json: &[u8], wanted: &[Wanted<'_>]) -> serde_json::Result<Vec<u8>> {
    let mut file: Json = serde_json::from_slice(json)?;
    if let Some(vocab) = file.pointer_mut("/model/vocab").and_then(Json::as_object_mut) {
        let mut taken: HashSet<u64> = vocab.values().filter_map(Json::as_u64).collect();
        for wanted in wanted {
            if !vocab.contains_key(wanted.text) && taken.insert(u64::from(wanted.id)) {
                vocab.insert(wanted.text.to_owned(), json!(wanted.id));
            }
        }
    }
    serde_json::to_vec(&file)
}

/// Puts the tokens of an `added_tokens.json`, text to id, among a configuration's `added_tokens_decoder`.
pub(crate) fn name_by_id(config: &mut Map<String, Json>, added: &Map<String, Json>) {
    let decoder = config.entry("added_tokens_decoder").or_insert_with(|| Json::Object(Map::new()));
    let Some(decoder) = decoder.as_object_mut() else { return };
    for (text, id) in added {
        decoder.entry(id.to_string()).or_insert_with(|| Json::String(text.clone()));
    }
}

/// Returns a token of `tokenizer_config.json`: its text, or the `content` of an object.
pub(crate) fn token_text(value: &Json) -> Option<&str> {
    value.as_str().or_else(|| value.get("content").and_then(Json::as_str))
}

/// Lists the tokens of a configuration's `added_tokens_decoder` by id.
fn decoder(config: &Map<String, Json>) -> Vec<(Wanted<'_>, &Json)> {
    let decoder = config.get("added_tokens_decoder").and_then(Json::as_object);
    let mut tokens: Vec<_> = decoder
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((Wanted { id: id.parse().ok()?, text: token_text(token)? }, token)))
        .filter(|(wanted, _)| !wanted.text.is_empty())
        .collect();
    tokens.sort_by_key(|(wanted, _)| wanted.id);
    tokens
}

/// Adds a configuration's tokens.
fn add(tokenizer: &mut Tokenizer, new: &[(Wanted<'_>, &Json)]) -> tokenizers::Result<()> {
    for (wanted, token) in new {
        let flag = |name: &str, usual: bool| token.get(name).and_then(Json::as_bool).unwrap_or(usual);
        let special = flag("special", false);
        let added = AddedToken::from(wanted.text, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special));
        tokenizer.add_tokens([added])?;
    }
    Ok(())
}
