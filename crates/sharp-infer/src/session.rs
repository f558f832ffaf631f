//! One sequence on a model: its tokens, and the keys and values of each.

use sharp_quant::float::KvCache;

use crate::elementwise::row;
use crate::error::{Error, Result};
use crate::kv_target::SequenceKv;
use crate::model::Model;
use crate::workspace::{RopeTables, Workspace};

/// Tokens of a prompt that pass through a layer together. Enough to keep all threads busy, yet few enough
/// that their buffers stay small beside the weights, which each piece reads again.
const PIECE: usize = 256;

/// Positions whose keys and values share a page of memory with one that was written.
const SLACK: usize = 64;

/// One sequence on a model. All buffers are made with the session; decoding allocates nothing.
pub struct Session {
    model: Model,
    cache: KvCache,
    ws: Workspace,
    capacity: usize,
    tokens: Vec<u32>,
    /// The most tokens it ever had.
    longest: usize,
    /// (vocab): of the last token.
    logits: Vec<f32>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("tokens", &self.tokens.len())
            .field("capacity", &self.capacity)
            .field("kv", &self.cache.dtype())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Makes an empty sequence with room for `capacity` tokens.
    ///
    /// # Errors
    /// [`Error::Quant`] if so large a cache cannot be, or the system has no memory for it.
    pub fn new(model: &Model, capacity: usize) -> Result<Self> {
        let config = model.config();
        let capacity = capacity.max(1);
        let cache = KvCache::new(
            model.inner.kv,
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
            capacity,
        )?;
        Ok(Self {
            ws: Workspace::new(config, model.inner.needs, capacity.min(PIECE), capacity)?,
            cache,
            capacity,
            tokens: Vec::with_capacity(capacity),
            longest: 0,
            logits: vec![0.0; config.vocab_size],
            model: model.clone(),
        })
    }

    /// Returns the model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Counts the tokens so far.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the sequence has no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Returns how many tokens the session has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the bytes of keys and values that one token takes.
    pub fn bytes_per_token(&self) -> usize {
        self.cache.bytes_per_position()
    }

    /// Returns the bytes that a session with room for `capacity` tokens takes once it has had `tokens`; the
    /// system gives out the memory of the others only when they come.
    ///
    /// # Errors
    /// Those of [`Session::new`].
    pub fn bytes(model: &Model, capacity: usize, tokens: usize) -> Result<u64> {
        let config = model.config();
        let capacity = capacity.max(1);
        // Heads lie apart, each on pages of its own.
        let written = tokens.saturating_add(SLACK).min(capacity);
        let cache = KvCache::bytes(
            model.inner.kv,
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
            written,
        )?;
        let buffers = Workspace::bytes(config, model.inner.needs, capacity.min(PIECE), capacity);
        let rest = 4 * (capacity as u64 + config.vocab_size as u64);
        Ok(cache as u64 + buffers + rest)
    }

    /// Counts the most tokens that the session ever had.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Returns the logits (vocab) after the last token; zeros before the first.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The logits, for a sampler to change in place.
    pub(crate) fn logits_mut(&mut self) -> (&mut [f32], &[u32]) {
        (&mut self.logits, &self.tokens)
    }

    /// Forgets all but the first `len` tokens. A shorter sequence stays as it is.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
    }

    /// Appends `tokens` and returns the logits (vocab) after the last. With no tokens the logits do not
    /// change.
    ///
    /// # Errors
    /// [`Error::Full`] and [`Error::Token`]; the sequence is then as before.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.check(tokens)?;
        let d = self.model.config().hidden_size;
        for piece in tokens.chunks(self.ws.n) {
            self.take_in(piece)?;
        }
        if !tokens.is_empty() {
            let last = (tokens.len() - 1) % self.ws.n;
            self.model.run_head(row(&self.ws.hidden, d, last), 1, &mut self.ws.run, &mut self.logits)?;
        }
        Ok(&self.logits)
    }

    /// Appends `tokens` and calls `f(i, logits)` with the logits (vocab) after each of them.
    ///
    /// # Errors
    /// Those of [`Session::prefill`].
    pub fn prefill_each(&mut self, tokens: &[u32], f: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.check(tokens)?;
        let d = self.model.config().hidden_size;
        let mut at = 0;
        for piece in tokens.chunks(self.ws.n) {
            self.take_in(piece)?;
            let model = self.model.clone();
            model.each_logits(&self.ws.hidden[..piece.len() * d], &mut |i, logits| f(at + i, logits))?;
            at += piece.len();
        }
        if let Some(last) = tokens.len().checked_sub(1) {
            let last = row(&self.ws.hidden, d, last % self.ws.n);
            self.model.run_head(last, 1, &mut self.ws.run, &mut self.logits)?;
        }
        Ok(())
    }

    /// Appends one token and returns the logits (vocab) after it. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`Session::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32]> {
        self.prefill(&[token])
    }

    pub(crate) fn check(&self, tokens: &[u32]) -> Result<()> {
        let wanted = self.tokens.len() + tokens.len();
        if wanted > self.capacity {
            return Err(Error::Full { capacity: self.capacity, wanted });
        }
        let vocab_size = self.model.config().vocab_size;
        match tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocab_size) {
            None => Ok(()),
            Some((position, &token)) => Err(Error::Token { token, position, vocab_size }),
        }
    }

    /// Returns what the next token attends with: the cache, the rotations and the token's position.
    pub(crate) fn kv(&mut self) -> (&mut KvCache, &RopeTables, usize) {
        (&mut self.cache, &self.ws.run.rope, self.tokens.len())
    }

    /// Counts `token`, whose keys and values the cache holds, and takes the logits after it.
    pub(crate) fn accept(&mut self, token: u32, logits: &[f32]) {
        self.tokens.push(token);
        self.longest = self.longest.max(self.tokens.len());
        self.logits.copy_from_slice(logits);
    }

    /// Passes one piece through all layers and leaves the residual stream after the last in `ws.hidden`.
    fn take_in(&mut self, piece: &[u32]) -> Result<()> {
        let n = piece.len();
        let at = self.tokens.len();
        let hidden = &mut self.ws.hidden[..n * self.model.config().hidden_size];
        self.model.embed(piece, hidden)?;
        for layer in 0..self.model.inner.layers.len() {
            let mut kv = SequenceKv { cache: &mut self.cache, layer, at, segments: &[] };
            self.model.run_layer(layer, hidden, n, &mut self.ws.run, &mut kv, &mut ())?;
        }
        self.tokens.extend_from_slice(piece);
        self.longest = self.longest.max(self.tokens.len());
        Ok(())
    }
}
