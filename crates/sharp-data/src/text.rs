//! Texts to measure on: as tokens, as rows of a model's length, and where their documents begin.

use sharp_model::tokenizer::Tokenizer;

use crate::error::Result;
use crate::pack::TokenBlocks;
use crate::plain::{SEPARATOR, begin_tokens, encode_first, refused};
use crate::windows::{Window, windows};

/// A text to measure perplexity on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// Its name in the results.
    pub name: String,
    /// Tokens that the model's sequences begin with, often none: they stand before every window and are not
    /// scored.
    pub begin: Vec<u32>,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Positions in `tokens` at which a document begins, in order.
    pub documents: Vec<usize>,
}

impl Text {
    /// Tokenises documents as one text with empty lines between them: the first `limit` tokens. Of a long
    /// text only as much is tokenised as is needed.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the tokenizer refuses the text.
    pub fn new(
        name: impl Into<String>,
        tokenizer: &Tokenizer,
        documents: &[String],
        limit: Option<usize>,
    ) -> Result<Self> {
        let limit = limit.unwrap_or(usize::MAX);
        let encode = |text: &str| tokenizer.encode_with_starts(text).map_err(refused);
        let (mut tokens, starts) =
            encode_first(&documents.join(SEPARATOR), limit, encode, |(ids, _)| ids.len())?;
        tokens.truncate(limit);
        let mut documents = first_tokens(documents, &starts);
        documents.retain(|&at| at < tokens.len());
        Ok(Self { name: name.into(), begin: begin_tokens(tokenizer)?, tokens, documents })
    }

    /// Cuts the text as [`windows`] does.
    ///
    /// # Errors
    /// As [`windows`].
    pub fn windows(&self, len: usize, stride: usize) -> Result<Vec<Window>> {
        windows(self.tokens.len(), len, stride, self.begin.len())
    }

    /// Cuts the text into rows of `len` as [`windows`] does, each with its begin tokens. What a window scores
    /// is counted in its row; the last row is filled up with tokens that are not.
    ///
    /// # Errors
    /// As [`windows`].
    pub fn rows(&self, len: usize, stride: usize) -> Result<TokenBlocks> {
        let mut rows = TokenBlocks { seq_len: len, tokens: Vec::new(), mask: Vec::new() };
        for window in self.windows(len, stride)? {
            let end = rows.tokens.len() + len;
            rows.tokens.extend(&self.begin);
            rows.mask.resize(rows.tokens.len(), false);
            rows.tokens.extend(&self.tokens[window.tokens.clone()]);
            rows.tokens.resize(end, 0);
            rows.mask.extend(window.tokens.map(|at| window.scored.contains(&at)));
            rows.mask.resize(end, false);
        }
        Ok(rows)
    }
}

/// Returns the position of each document's first token, in a text whose tokens begin at the bytes `starts`.
fn first_tokens(documents: &[String], starts: &[usize]) -> Vec<usize> {
    let mut at = 0;
    let mut firsts = Vec::new();
    for document in documents {
        let first = starts.partition_point(|&start| start < at);
        if !document.is_empty() && first < starts.len() {
            firsts.push(first);
        }
        at += document.len() + SEPARATOR.len();
    }
    firsts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_count_what_windows_score_once() {
        let text = Text { tokens: (100..110).collect(), ..Text::default() };
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

    #[test]
    fn every_row_begins_with_the_begin_token_which_is_not_scored() {
        let text = Text { begin: vec![7], tokens: (100..108).collect(), ..Text::default() };
        let rows = text.rows(4, 4).unwrap();
        assert_eq!(rows.row(0), (&[7, 100, 101, 102][..], &[false, true, true, true][..]));
        assert_eq!(rows.row(1), (&[7, 103, 104, 105][..], &[false, true, true, true][..]));
        assert_eq!(rows.row(2), (&[7, 106, 107, 0][..], &[false, true, true, false][..]));
        assert_eq!(rows.counted(), 8);
        let rows = text.rows(4, 2).unwrap();
        assert_eq!(rows.row(1), (&[7, 102, 103, 104][..], &[false, false, true, true][..]));
        assert_eq!(rows.counted(), 8);
        assert!(text.rows(2, 1).is_err());
    }
}
