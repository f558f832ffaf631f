//! Single tokens as text.

use std::sync::Arc;

use sharp_model::tokenizer::Tokenizer;

use crate::error::Result;

/// Writes single tokens as they read in the middle of a text, where a word keeps the space before it.
pub(crate) struct Texts {
    tokenizer: Arc<Tokenizer>,
    /// A token that stands before the one that is written, and its text.
    anchor: Option<(u32, String)>,
}

impl Texts {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let anchor = match tokenizer.encode("a", false)?.last() {
            Some(&token) => Some((token, tokenizer.decode(&[token])?)),
            None => None,
        };
        Ok(Self { tokenizer, anchor })
    }

    /// Returns the text of `token`. One that is a part of a character only is spelled as the vocabulary
    /// spells it, so that no two tokens look alike.
    pub(crate) fn text(&self, token: u32) -> String {
        let text = match &self.anchor {
            None => self.tokenizer.decode(&[token]).ok(),
            Some((anchor, before)) => self
                .tokenizer
                .decode(&[*anchor, token])
                .ok()
                .and_then(|text| text.strip_prefix(before.as_str()).map(str::to_owned)),
        };
        match text {
            Some(text) if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) => text,
            _ => self.tokenizer.token(token).unwrap_or_else(|| format!("<{token}>")),
        }
    }

    /// Returns the bytes of `token`, where it is whole characters.
    pub(crate) fn bytes(&self, token: u32) -> Option<Vec<u8>> {
        let (anchor, before) = self.anchor.as_ref()?;
        let text = self.tokenizer.decode(&[*anchor, token]).ok()?;
        let text = text.strip_prefix(before.as_str())?;
        (!text.contains(char::REPLACEMENT_CHARACTER)).then(|| text.as_bytes().to_vec())
    }
}
