//! Windows over a long text, to measure perplexity with.

use std::ops::Range;

use crate::error::{Error, Result};

/// One window: tokens to run, and which of them to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens of the window, as positions in the text.
    pub tokens: Range<usize>,
    /// The tokens that are scored as predictions in this window, as positions in the text. Token `t` is
    /// predicted from the output at `t - 1`, or at the last begin token.
    pub scored: Range<usize>,
}

/// Cuts a text of `total` tokens into windows, each `stride` further on, as in Hugging Face's guide to
/// perplexity: a token is scored once, in the first window that can predict it. A window is run with the
/// `begin` tokens that the model's sequences begin with before it, and is at most `len` tokens long with
/// them. With `stride == len` the windows do not overlap; the first token of each is then scored only where a
/// begin token predicts it.
///
/// # Errors
/// [`Error::Argument`] unless `begin + 2 <= len` and `1 <= stride <= len`.
pub fn windows(total: usize, len: usize, stride: usize, begin: usize) -> Result<Vec<Window>> {
    let least = begin.saturating_add(2);
    if len < least || stride == 0 || stride > len {
        return Err(Error::argument(format!(
            "windows of {len} tokens with a stride of {stride}: a window needs at least {least}, a stride 1 to {len}"
        )));
    }
    let (room, unpredicted) = (len - begin, usize::from(begin == 0));
    let stride = stride.min(room);
    let mut out = Vec::new();
    let (mut at, mut scored) = (0, 0);
    while at < total {
        let end = at.saturating_add(room).min(total);
        let first = scored.max(at + unpredicted);
        if first < end {
            out.push(Window { tokens: at..end, scored: first..end });
        }
        if end == total {
            break;
        }
        scored = end;
        at += stride;
    }
    Ok(out)
}
