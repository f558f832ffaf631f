//! Documents to rows of tokens, with a mask that says which of them are counted.

use sharp_model::tokenizer::Tokenizer;

use crate::document::Document;
use crate::error::{Error, Result};
use crate::plain::{SEPARATOR, begin_tokens, encode_first, refused};
use crate::rng::shuffle;

/// Turns text into token numbers; adds no begin or end tokens of its own.
///
/// The model's [`Tokenizer`] does, and so does any `Fn(&str) -> Vec<u32>`, for tests.
pub trait Encode {
    /// Tokenises a text; special tokens written out in it count as such.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer refuses the text.
    fn tokens(&self, text: &str) -> Result<Vec<u32>>;
}

impl Encode for Tokenizer {
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, false).map_err(refused)
    }
}

impl<F: Fn(&str) -> Vec<u32>> Encode for F {
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self(text))
    }
}

/// Tokenises a context and what continues it, so that together they are the tokens of the whole text.
///
/// As lm-evaluation-harness does: spaces at the context's end go to the continuation, the whole is tokenised,
/// and the continuation is what lies beyond as many tokens as the context has alone. Where a token reaches
/// across the seam, it belongs to the continuation's side.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer refuses the text.
pub fn encode_pair(
    tokenizer: &dyn Encode,
    context: &str,
    continuation: &str,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let kept = context.trim_end();
    let moved = &context[kept.len()..];
    if kept.is_empty() {
        return Ok((Vec::new(), tokenizer.tokens(&format!("{moved}{continuation}"))?));
    }
    let head = tokenizer.tokens(kept)?;
    let mut whole = tokenizer.tokens(&format!("{kept}{moved}{continuation}"))?;
    if whole.len() <= head.len() {
        // The seam merged so much that nothing would be left to score.
        return Ok((head, tokenizer.tokens(&format!("{moved}{continuation}"))?));
    }
    let tail = whole.split_off(head.len());
    Ok((whole, tail))
}

/// How [`pack`] works.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackOptions {
    /// Tokens a row, at least 2.
    pub seq_len: usize,
    /// Tokens that the model's sequences begin with, often none: put before each row and each prompt, unless
    /// they are there already; not counted.
    pub begin: Vec<u32>,
    /// Put after each completion of a prompt, unless it is there already. (Conversations end as their
    /// template says; plain texts are parts of one long text.)
    pub eos: Option<u32>,
    /// Stop when the rows hold this many tokens; `None` takes everything.
    pub budget: Option<usize>,
    /// Shuffle the documents first, and the rows after; `None` keeps the order.
    pub seed: Option<u64>,
    /// Fill the last row up with `eos` (or 0), not counted, instead of dropping it.
    pub pad_last: bool,
}

impl PackOptions {
    /// Begins the options: rows of `seq_len` tokens from everything, in order, without begin and end tokens.
    pub fn new(seq_len: usize) -> Self {
        PackOptions { seq_len, begin: Vec::new(), eos: None, budget: None, seed: None, pad_last: false }
    }

    /// Begins the options for a model: its begin tokens, if it puts any of its own accord, and its first end
    /// token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer refuses the empty text.
    pub fn of(tokenizer: &Tokenizer, seq_len: usize) -> Result<Self> {
        let eos = tokenizer.eos_ids().first().copied();
        Ok(Self::new(seq_len).with_ends(begin_tokens(tokenizer)?, eos))
    }

    /// Adds begin tokens and an end token.
    #[must_use]
    pub fn with_ends(mut self, begin: Vec<u32>, eos: Option<u32>) -> Self {
        (self.begin, self.eos) = (begin, eos);
        self
    }

    /// Limits the rows to at most about this many tokens (whole rows: the last one that begins within it).
    #[must_use]
    pub fn with_budget(mut self, tokens: Option<usize>) -> Self {
        self.budget = tokens;
        self
    }

    /// Puts documents in a random order that follows from `seed`.
    #[must_use]
    pub fn shuffled(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Fills the last row up instead of dropping it.
    #[must_use]
    pub fn padded(mut self) -> Self {
        self.pad_last = true;
        self
    }
}

/// Rows of tokens, all of one length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBlocks {
    /// Tokens a row.
    pub seq_len: usize,
    /// The tokens, (rows, seq_len), row after row.
    pub tokens: Vec<u32>,
    /// For each token whether it is counted when it is what should be predicted, (rows, seq_len). The first
    /// token of a row is predicted by nothing in that row, whatever the mask says.
    pub mask: Vec<bool>,
}

impl TokenBlocks {
    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len().checked_div(self.seq_len).unwrap_or(0)
    }

    /// Returns a row's tokens and mask, each (seq_len).
    ///
    /// # Panics
    /// If there is no such row; see [`TokenBlocks::rows`].
    pub fn row(&self, i: usize) -> (&[u32], &[bool]) {
        assert!(i < self.rows(), "row {i} of {}", self.rows());
        let range = i * self.seq_len..(i + 1) * self.seq_len;
        (&self.tokens[range.clone()], &self.mask[range])
    }

    /// Returns the rows in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u32], &[bool])> {
        let n = self.seq_len.max(1);
        self.tokens.chunks_exact(n).zip(self.mask.chunks_exact(n))
    }

    /// Returns how many tokens are counted in the loss: those the mask marks, without each row's first.
    pub fn counted(&self) -> usize {
        self.iter().map(|(_, mask)| mask.iter().skip(1).filter(|m| **m).count()).sum()
    }

    /// Takes the rows apart at `row`: those before it, and the rest.
    #[must_use]
    pub fn split_at(mut self, row: usize) -> (TokenBlocks, TokenBlocks) {
        let at = row.min(self.rows()) * self.seq_len;
        let rest = TokenBlocks {
            seq_len: self.seq_len,
            tokens: self.tokens.split_off(at),
            mask: self.mask.split_off(at),
        };
        (self, rest)
    }
}

/// Tokenises one document, with its mask, begin and end tokens included.
///
/// Texts are tokenised piece by piece at the seams that [`encode_pair`] finds. Counted are the completions
/// and the end token after one, so that the model learns to stop; begin tokens are not.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer refuses the text.
pub fn encode_document(
    doc: &Document,
    tokenizer: &dyn Encode,
    begin: &[u32],
    eos: Option<u32>,
) -> Result<(Vec<u32>, Vec<bool>)> {
    let (mut tokens, mut mask) = (Vec::new(), Vec::new());
    let mut put = |ids: Vec<u32>, counted: bool| {
        mask.extend(std::iter::repeat_n(counted, ids.len()));
        tokens.extend(ids);
    };
    if doc.turns.is_empty() && !doc.chat && !doc.prompt.is_empty() {
        let (head, tail) = encode_pair(tokenizer, &doc.prompt, &doc.completion)?;
        put(head, false);
        put(tail, true);
    } else {
        // A template's pieces begin and end in special tokens or line ends, where no token reaches across.
        for (text, counted) in doc.pieces() {
            put(tokenizer.tokens(text)?, counted);
        }
    }
    if !tokens.starts_with(begin) {
        tokens.splice(..0, begin.iter().copied());
        mask.splice(..0, begin.iter().map(|_| false));
    }
    if let Some(eos) = eos
        && !doc.chat
        && tokens.last() != Some(&eos)
    {
        tokens.push(eos);
        mask.push(true);
    }
    Ok((tokens, mask))
}

/// Lays documents end to end and cuts them into rows of `seq_len` tokens. Plain texts that follow one another
/// are one text with empty lines between, as where perplexity is measured. A document may begin in one row
/// and end in the next; rows are not separated from each other within by attention masks, as is usual in
/// pretraining.
///
/// # Errors
/// [`Error::Argument`] if a row would hold fewer than 2 tokens beside the begin tokens, or the documents do
/// not fill one row (and the last is not to be padded); [`Error::Tokenizer`] if the tokenizer refuses a text.
pub fn pack(docs: &[Document], tokenizer: &dyn Encode, options: &PackOptions) -> Result<TokenBlocks> {
    let n = options.seq_len;
    let least = options.begin.len() + 2;
    if n < least {
        return Err(Error::argument(format!("a row needs at least {least} tokens, not {n}")));
    }
    let rows = options.budget.map_or(usize::MAX, |b| b.div_ceil(n));
    if rows == 0 {
        return Err(Error::argument("a budget of 0 tokens asks for nothing"));
    }
    let mut order: Vec<usize> = (0..docs.len()).collect();
    if let Some(seed) = options.seed {
        shuffle(&mut order, seed);
    }
    let ordered: Vec<&Document> = order.iter().filter_map(|&i| docs.get(i)).collect();
    let (tokens, mask) = lay(&ordered, tokenizer, options, rows.saturating_mul(n))?;
    let blocks = cut(&tokens, &mask, options, rows);
    if blocks.tokens.is_empty() {
        let have = tokens.len();
        return Err(Error::argument(format!("the data holds {have} tokens, fewer than one row of {n}")));
    }
    Ok(match options.seed {
        // Documents longer than a row would otherwise lie in neighbouring rows.
        Some(seed) => shuffled(&blocks, seed ^ 0x726f_7773),
        None => blocks,
    })
}

/// Tokenises documents one after another until there are `enough` tokens, with their mask.
fn lay(
    docs: &[&Document],
    tokenizer: &dyn Encode,
    options: &PackOptions,
    enough: usize,
) -> Result<(Vec<u32>, Vec<bool>)> {
    let plain = |doc: &Document| !doc.chat && doc.prompt.is_empty() && doc.turns.is_empty();
    let (mut tokens, mut mask) = (Vec::new(), Vec::new());
    for run in docs.chunk_by(|a, b| plain(a) && plain(b)) {
        if tokens.len() >= enough {
            break;
        }
        let (ids, counted) = match run {
            [doc] if !plain(doc) => encode_document(doc, tokenizer, &options.begin, options.eos)?,
            texts => {
                let text =
                    texts.iter().map(|doc| doc.completion.as_str()).collect::<Vec<_>>().join(SEPARATOR);
                let ids =
                    encode_first(&text, enough - tokens.len(), |text| tokenizer.tokens(text), Vec::len)?;
                let counted = vec![true; ids.len()];
                (ids, counted)
            }
        };
        tokens.extend(ids);
        mask.extend(counted);
    }
    Ok((tokens, mask))
}

/// Cuts tokens into at most `rows` rows, each of which begins with the begin tokens.
fn cut(tokens: &[u32], mask: &[bool], options: &PackOptions, rows: usize) -> TokenBlocks {
    let n = options.seq_len;
    let mut blocks = TokenBlocks { seq_len: n, ..TokenBlocks::default() };
    let mut at = 0;
    while at < tokens.len() && blocks.rows() < rows {
        let begin = if tokens[at..].starts_with(&options.begin) { &[][..] } else { &options.begin };
        let end = at + n - begin.len();
        if end > tokens.len() && !options.pad_last {
            break;
        }
        let (end, full) = (end.min(tokens.len()), blocks.tokens.len() + n);
        blocks.tokens.extend(begin);
        blocks.mask.resize(blocks.tokens.len(), false);
        blocks.tokens.extend(&tokens[at..end]);
        blocks.tokens.resize(full, options.eos.unwrap_or(0));
        blocks.mask.extend(&mask[at..end]);
        blocks.mask.resize(full, false);
        at = end;
    }
    blocks
}

/// Puts rows into the order of `seed`.
fn shuffled(blocks: &TokenBlocks, seed: u64) -> TokenBlocks {
    let mut order: Vec<usize> = (0..blocks.rows()).collect();
    shuffle(&mut order, seed);
    let mut out = TokenBlocks { seq_len: blocks.seq_len, ..TokenBlocks::default() };
    for (tokens, mask) in order.into_iter().map(|i| blocks.row(i)) {
        out.tokens.extend_from_slice(tokens);
        out.mask.extend_from_slice(mask);
    }
    out
}
