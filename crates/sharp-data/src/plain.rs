//! How plain documents become tokens: as parts of one text, after what a model's sequences begin with.

use sharp_model::tokenizer::Tokenizer;

use crate::error::{Error, Result};

/// What stands between the documents of a text.
pub(crate) const SEPARATOR: &str = "\n\n";

/// Tokenises so much of the beginning of a text that its first `limit` tokens are those of the whole text.
pub(crate) fn encode_first<T>(
    text: &str,
    limit: usize,
    encode: impl Fn(&str) -> Result<T>,
    tokens: impl Fn(&T) -> usize,
) -> Result<T> {
    let mut bytes = limit.saturating_mul(8).max(256);
    loop {
        // Cut after a line, well behind the last token that is wanted, so that the cut shows in none of them.
        let at = text.ceil_char_boundary(bytes.min(text.len()));
        let end = text[at..].find('\n').map_or(text.len(), |n| at + n + 1);
        let encoded = encode(&text[..end])?;
        if end == text.len() || tokens(&encoded) > limit.saturating_add(16) {
            return Ok(encoded);
        }
        bytes = bytes.saturating_mul(2);
    }
}

/// Returns what the tokenizer puts before every text by habit, often nothing.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer refuses the empty text.
pub fn begin_tokens(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode("", true).map_err(refused)?;
    // A tokenizer that ends texts by habit too would end the empty one.
    ids.retain(|&id| Some(id) == tokenizer.bos_id());
    Ok(ids)
}

pub(crate) fn refused(error: sharp_model::Error) -> Error {
    Error::Tokenizer { what: error.to_string() }
}
