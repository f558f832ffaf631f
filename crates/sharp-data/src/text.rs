//! Texts to measure on: as tokens, as rows of a model's length, and where their documents begin.

use sharp_model::tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::pack::TokenBlocks;
use crate::windows::windows;

/// What stands between the documents of a text.
const SEPARATOR: &str = "\n\n";

/// A text to measure perplexity on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Its name in the results.
    pub name: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Positions in `tokens` at which a document begins, in order.
    pub documents: Vec<usize>,
}

impl Text {
    /// Tokenises documents as one text with empty lines between them: the first `limit` tokens, with the
    /// begin token if the tokenizer puts one. Of a long text only as much is tokenised as is needed.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer refuses the text.
    pub fn new(
        name: impl Into<String>,
        tokenizer: &Tokenizer,
        documents: &[String],
        limit: Option<usize>,
    ) -> Result<Self> {
        let text = documents.join(SEPARATOR);
        let begin = begin_tokens(tokenizer)?;
        let limit = limit.unwrap_or(usize::MAX);
        let mut bytes = limit.saturating_mul(8).max(256);
        loop {
            // Cut after a line, well behind the last token that is wanted, so that the cut shows in none of
            // them.
            let mut end = bytes.min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            let end = text.get(end..).and_then(|rest| rest.find('\n')).map_or(text.len(), |n| end + n + 1);
            let (ids, starts) =
                tokenizer.encode_with_starts(text.get(..end).unwrap_or(&text)).map_err(refused)?;
            if end == text.len() || begin.len() + ids.len() > limit.saturating_add(16) {
                let first = begin.len();
                let mut tokens = begin;
                tokens.extend(ids);
                tokens.truncate(limit);
                let mut documents = first_tokens(documents, &starts, first);
                documents.retain(|&at| at < tokens.len());
                return Ok(Self { name: name.into(), tokens, documents });
            }
            bytes = bytes.saturating_mul(2);
        }
    }

    /// Cuts the text into rows as [`windows`] does. What a window scores is counted in its row; the last row
    /// is filled up with tokens that are not.
    ///
    /// # Errors
    /// As [`windows`].
    pub fn rows(&self, len: usize, stride: usize) -> Result<TokenBlocks> {
        let mut rows = TokenBlocks { seq_len: len, tokens: Vec::new(), mask: Vec::new() };
        for window in windows(self.tokens.len(), len, stride)? {
            let end = rows.tokens.len() + len;
            rows.tokens.extend(&self.tokens[window.tokens.clone()]);
            rows.tokens.resize(end, 0);
            rows.mask.extend(window.tokens.map(|at| window.scored.contains(&at)));
            rows.mask.resize(end, false);
        }
        Ok(rows)
    }
}

/// Returns the position of each document's first token, in a text whose tokens begin at the bytes `starts`
/// and follow `before` others. A token across a seam belongs to the document before it.
fn first_tokens(documents: &[String], starts: &[usize], before: usize) -> Vec<usize> {
    let mut byte = 0;
    let mut found: Vec<usize> = Vec::with_capacity(documents.len());
    for document in documents {
        // The first document begins with the text.
        let at = if byte == 0 { 0 } else { before + starts.partition_point(|&start| start < byte) };
        if found.last() != Some(&at) {
            found.push(at);
        }
        byte += document.len() + SEPARATOR.len();
    }
    found
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

fn refused(error: sharp_model::Error) -> Error {
    Error::Tokenizer { what: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_count_what_windows_score_once() {
        let text = Text { name: "ten".into(), tokens: (100..110).collect(), documents: vec![0] };
        let rows = text.rows(4, 3).unwrap();
        let row = |i| rows.row(i);
        assert_eq!(rows.rows(), 3);
        assert_eq!(row(0), (&[100, 101, 102, 103][..], &[false, true, true, true][..]));
        assert_eq!(row(1), (&[103, 104, 105, 106][..], &[false, true, true, true][..]));
        assert_eq!(row(2), (&[106, 107, 108, 109][..], &[false, true, true, true][..]));
        let rows = text.rows(4, 4).unwrap();
        assert_eq!(rows.row(2), (&[108, 109, 0, 0][..], &[false, true, false, false][..]));
        assert_eq!(rows.counted(), 3 + 3 + 1);
        assert!(text.rows(4, 5).is_err());
    }
}
