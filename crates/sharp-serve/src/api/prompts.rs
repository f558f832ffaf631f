//! The prompts of a completion, read in one pass over the body.

use std::cell::Cell;

use serde_json::Value;
use serde_json::value::RawValue;

use super::Site;
use super::error::ApiError;
use super::fields::{each, open, token, tokens, too_many, wrong};

/// A prompt, as text or as tokens.
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Reads what `prompt` may be: a text, tokens, or a list of either, for `n` choices each.
pub(crate) fn read(site: &Site, raw: Option<&RawValue>, n: usize) -> Result<Vec<Prompt>, ApiError> {
    const RULE: &str = "a string, an array of strings, an array of tokens or an array of arrays of tokens";
    let Some(raw) = raw else {
        return Err(ApiError::bad(format!("prompt is missing; it has to be {RULE}")).with_param("prompt"));
    };
    let context = site.options.context;
    let mut prompts = Vec::new();
    let mut alone: Vec<u32> = Vec::new();
    let numbers = Cell::new(false);
    let list = each(raw, &mut |i, raw| {
        // The first element tells what the list is.
        if i == 0 {
            numbers.set(raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit()));
        }
        if numbers.get() {
            if i == context {
                return Err(too_many("prompt", context));
            }
            alone.push(token(&format!("prompt[{i}]"), raw)?);
            return Ok(());
        }
        // Before any of them costs time or memory.
        site.check_count((i + 1).saturating_mul(n))?;
        prompts.push(one(&format!("prompt[{i}]"), raw, context)?);
        Ok(())
    })?;
    if !list {
        return match open("prompt", raw)? {
            Value::String(text) => Ok(vec![Prompt::Text(text)]),
            other => Err(wrong("prompt", &other, RULE)),
        };
    }
    if numbers.get() {
        prompts.push(Prompt::Tokens(alone));
    }
    if prompts.is_empty() {
        return Err(ApiError::bad("there is no prompt").with_param("prompt"));
    }
    Ok(prompts)
}

/// Reads one prompt of several.
fn one(path: &str, raw: &RawValue, context: usize) -> Result<Prompt, ApiError> {
    if let Some(tokens) = tokens(path, raw, context)? {
        return Ok(Prompt::Tokens(tokens));
    }
    match open(path, raw)? {
        Value::String(text) => Ok(Prompt::Text(text)),
        other => Err(wrong(path, &other, "a string or an array of tokens, as all of them")),
    }
}
