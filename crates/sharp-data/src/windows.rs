//! Windows over a long text, to measure perplexity with.

use std::ops::Range;

use crate::error::{Error, Result};

/// One window: tokens to run, and which of them to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens of the window, as positions in the text.
    pub tokens: Range<usize>,
    /// The tokens that are scored as predictions in this window, as positions in the text. Token `t` is
    /// predicted from the output at `t - 1`, which lies in the window too.
    pub scored: Range<usize>,
}

/// Cuts a text of `total` tokens into windows of at most `len`, each `stride` further on, as in Hugging
/// Face's guide to perplexity: a token is scored once, in the first window that can predict it, with at least
/// `len - stride` tokens of context after the first window. With `stride == len` the windows do not overlap,
/// and the first token of each is not scored.
///
/// # Errors
/// [`Error::Argument`] unless `2 <= len` and `1 <= stride <= len`.
pub fn windows(total: usize, len: usize, stride: usize) -> Result<Vec<Window>> {
    if len < 2 || stride == 0 || stride > len {
        return Err(Error::argument(format!(
            "windows of {len} tokens with a stride of {stride}: a window needs at least 2, a stride 1 to {len}"
        )));
    }
    let mut out = Vec::new();
    let (mut begin, mut scored) = (0, 0);
    while begin < total {
        let end = begin.saturating_add(len).min(total);
        let first = scored.max(begin + 1);
        if first < end {
            out.push(Window { tokens: begin..end, scored: first..end });
        }
        if end == total {
            break;
        }
        scored = end;
        begin += stride;
    }
    Ok(out)
}
