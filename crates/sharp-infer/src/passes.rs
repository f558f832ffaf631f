//! Passes over whole sequences, for measuring: an observer at every layer, logits of every token.

use sharp_quant::float::{self, KvCache};

use crate::error::{Error, Result};
use crate::forward::{LayerView, Observer, Segment};
use crate::kv_target::SequenceKv;
use crate::model::Model;
use crate::workspace::Workspace;

/// Tokens whose logits are held at once where a pass hands them out row by row.
const HEAD_ROWS: usize = 128;

impl Model {
    fn workspace(&self, n: usize) -> Result<Workspace> {
        Workspace::new(self.config(), self.inner.needs, n, n)
    }

    fn single_layer_cache(&self, n: usize) -> Result<KvCache> {
        let c = self.config();
        // Whole sequences are for measuring: keys and values stay in f32 there.
        Ok(KvCache::new(sharp_quant::DType::F32, 1, c.num_key_value_heads, c.head_dim, n.max(1))?)
    }

    /// Computes the residual stream (n, d) after the last layer, for a sequence from its beginning.
    ///
    /// Memory: some dozen vectors of d or f a token, and the keys and values of one layer.
    ///
    /// # Errors
    /// [`Error::Token`] for a token outside the vocabulary; [`Error::Quant`] if sizes overflow.
    pub fn hidden(&self, tokens: &[u32], observer: &mut dyn Observer) -> Result<Vec<f32>> {
        let mut hidden = vec![0.0; tokens.len() * self.config().hidden_size];
        self.embed(tokens, &mut hidden)?;
        self.pass(0, hidden, observer)
    }

    /// Computes the residual stream (n, d) after the last layer from the one before layer `first`.
    ///
    /// # Errors
    /// [`Error::Layer`], and [`Error::Argument`] if `hidden` is not whole rows.
    pub fn hidden_from(
        &self,
        first: usize,
        hidden: Vec<f32>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>> {
        if first > self.layers().len() {
            return Err(Error::Layer { layer: first, layers: self.layers().len() });
        }
        self.pass(first, hidden, observer)
    }

    fn pass(&self, first: usize, mut hidden: Vec<f32>, observer: &mut dyn Observer) -> Result<Vec<f32>> {
        let n = self.row_count(&hidden)?;
        if n == 0 {
            return Ok(hidden);
        }
        let mut ws = self.workspace(n)?;
        let mut cache = self.single_layer_cache(n)?;
        for index in first..self.layers().len() {
            let mut kv = SequenceKv { cache: &mut cache, layer: 0, at: 0, segments: &[] };
            self.run_layer(index, &mut hidden, n, &mut ws.run, &mut kv, observer)?;
        }
        Ok(hidden)
    }

    /// Computes the residual stream (n, d) before layer 0: the embeddings of `tokens`.
    ///
    /// # Errors
    /// [`Error::Token`] for a token outside the vocabulary.
    pub fn embed_tokens(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut hidden = vec![0.0; tokens.len() * self.config().hidden_size];
        self.embed(tokens, &mut hidden)?;
        Ok(hidden)
    }

    /// Computes what [`Model::hidden_from`] does for several texts, or several continuations of one: see
    /// [`Segment`].
    ///
    /// # Errors
    /// Those of [`Model::hidden_from`]; [`Error::Argument`] if the segments are not as many tokens as
    /// `hidden` has rows, or one of them continues what is not there.
    pub fn hidden_segments(
        &self,
        first: usize,
        mut hidden: Vec<f32>,
        segments: &[Segment],
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>> {
        if first > self.layers().len() {
            return Err(Error::Layer { layer: first, layers: self.layers().len() });
        }
        let n = self.row_count(&hidden)?;
        let (mut tokens, mut filled, mut longest) = (0usize, 0, 0);
        for segment in segments {
            if segment.at > filled {
                return Err(Error::argument(format!(
                    "a segment at position {} after one that ends at {filled}",
                    segment.at
                )));
            }
            tokens = tokens.saturating_add(segment.tokens);
            filled = segment.at.saturating_add(segment.tokens);
            longest = longest.max(filled);
        }
        if tokens != n {
            return Err(Error::argument(format!("segments of {tokens} tokens for {n} rows")));
        }
        if n == 0 {
            return Ok(hidden);
        }
        let mut ws = Workspace::new(self.config(), self.inner.needs, n, longest)?;
        let mut cache = self.single_layer_cache(longest)?;
        for index in first..self.layers().len() {
            let mut kv = SequenceKv { cache: &mut cache, layer: 0, at: 0, segments };
            self.run_layer(index, &mut hidden, n, &mut ws.run, &mut kv, observer)?;
        }
        Ok(hidden)
    }

    fn row_count(&self, x: &[f32]) -> Result<usize> {
        let d = self.config().hidden_size;
        if !x.len().is_multiple_of(d) {
            return Err(Error::argument(format!("{} values are not whole rows of {d}", x.len())));
        }
        Ok(x.len() / d)
    }

    /// Several sequences through the model layer by layer: every sequence passes a layer before any enters
    /// the next, so the weights of one layer at a time are in use. `look(sequence, view)` sees every layer of
    /// every sequence. Returns what leaves the last layer, (n, d) for each sequence.
    ///
    /// # Errors
    /// Those of [`Model::hidden`].
    pub fn stream(
        &self,
        sequences: &[&[u32]],
        look: &mut dyn FnMut(usize, LayerView<'_>),
    ) -> Result<Vec<Vec<f32>>> {
        let d = self.config().hidden_size;
        let longest = sequences.iter().map(|s| s.len()).max().unwrap_or(0);
        let mut all = Vec::with_capacity(sequences.len());
        for tokens in sequences {
            let mut hidden = vec![0.0; tokens.len() * d];
            self.embed(tokens, &mut hidden)?;
            all.push(hidden);
        }
        let mut ws = self.workspace(longest)?;
        let mut cache = self.single_layer_cache(longest)?;
        for index in 0..self.layers().len() {
            for (s, hidden) in all.iter_mut().enumerate().filter(|(_, h)| !h.is_empty()) {
                let n = hidden.len() / d;
                let mut kv = SequenceKv { cache: &mut cache, layer: 0, at: 0, segments: &[] };
                self.run_layer(index, hidden, n, &mut ws.run, &mut kv, &mut |v: LayerView<'_>| look(s, v))?;
            }
        }
        Ok(all)
    }

    /// Computes the logits (n, vocab) of a sequence from its beginning.
    ///
    /// # Errors
    /// Those of [`Model::hidden`].
    pub fn forward(&self, tokens: &[u32], observer: &mut dyn Observer) -> Result<Vec<f32>> {
        self.logits(&self.hidden(tokens, observer)?)
    }

    /// Computes the logits (n, vocab) from the residual stream (n, d) before layer `first`.
    ///
    /// # Errors
    /// Those of [`Model::hidden_from`].
    pub fn forward_from(&self, first: usize, hidden: Vec<f32>) -> Result<Vec<f32>> {
        self.logits(&self.hidden_from(first, hidden, &mut ())?)
    }

    /// Computes the logits (n, vocab) from the residual stream (n, d) after the last layer.
    ///
    /// # Errors
    /// [`Error::Argument`] if `hidden` is not whole rows.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(self.row_count(hidden)? * self.config().vocab_size);
        self.each_logits(hidden, &mut |_, logits| all.extend_from_slice(logits))?;
        Ok(all)
    }

    /// Calls `f(row, logits)` for every row of the residual stream (n, d) after the last layer.
    ///
    /// Holds the logits of at most 128 rows at once.
    ///
    /// # Errors
    /// [`Error::Argument`] if `hidden` is not whole rows.
    pub fn each_logits(&self, hidden: &[f32], f: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let n = self.row_count(hidden)?;
        let (d, vocab) = (self.config().hidden_size, self.config().vocab_size);
        let most = n.clamp(1, HEAD_ROWS);
        let mut ws = Workspace::new(self.config(), self.inner.needs, most, 0)?;
        let mut out = vec![0.0; most * vocab];
        for (chunk, hidden) in hidden.chunks(most * d).enumerate() {
            let count = hidden.len() / d;
            let out = &mut out[..count * vocab];
            self.run_head(hidden, count, &mut ws.run, out)?;
            for (i, logits) in out.chunks_exact(vocab).enumerate() {
                f(chunk * most + i, logits);
            }
        }
        Ok(())
    }

    /// Computes the negative log likelihood, in nats, of every token but the first, given those before it: (n
    /// - 1) values.
    ///
    /// # Errors
    /// Those of [`Model::hidden`]; [`Error::NotFinite`] if the logits are not finite.
    pub fn losses(&self, tokens: &[u32]) -> Result<Vec<f64>> {
        let hidden = self.hidden(tokens, &mut ())?;
        self.losses_of(&hidden, tokens)
    }

    /// Computes the losses of [`Model::losses`] from the residual stream (n, d) after the last layer.
    ///
    /// # Errors
    /// [`Error::Argument`] if `hidden` has fewer rows than tokens; [`Error::NotFinite`].
    pub fn losses_of(&self, hidden: &[f32], tokens: &[u32]) -> Result<Vec<f64>> {
        let d = self.config().hidden_size;
        let Some((_, targets)) = tokens.split_first() else { return Ok(Vec::new()) };
        let Some(hidden) = hidden.get(..targets.len() * d) else {
            return Err(Error::argument(format!(
                "{} values for {} tokens of {d}",
                hidden.len(),
                tokens.len()
            )));
        };
        let isa = self.inner.team.isa();
        let mut losses = Vec::with_capacity(targets.len());
        let mut bad = None;
        self.each_logits(hidden, &mut |i, logits| {
            let logit = targets.get(i).and_then(|&t| logits.get(t as usize)).copied().unwrap_or(f32::NAN);
            let loss = float::log_sum_exp(isa, logits) - f64::from(logit);
            if !loss.is_finite() && bad.is_none() {
                bad = Some(i);
            }
            losses.push(loss);
        })?;
        match bad {
            Some(position) => Err(Error::NotFinite { position }),
            None => Ok(losses),
        }
    }

    /// Computes a layer's MLP on inputs `x` (n, d) that have been normed already: (n, d).
    ///
    /// # Errors
    /// [`Error::Layer`], and [`Error::Argument`] if `x` is not whole rows.
    pub fn mlp(&self, layer: usize, x: &[f32]) -> Result<Vec<f32>> {
        let mlp = self.layer(layer)?.mlp.clone();
        let n = self.row_count(x)?;
        let mut out = vec![0.0; x.len()];
        if mlp.zero || n == 0 {
            return Ok(out);
        }
        let d = self.config().hidden_size;
        let most = n.min(512);
        let mut ws = Workspace::new(self.config(), self.inner.needs, most, 0)?;
        for (x, out) in x.chunks(most * d).zip(out.chunks_mut(most * d)) {
            let n = x.len() / d;
            ws.run.normed[..x.len()].copy_from_slice(x);
            self.run_mlp(&mlp, n, &mut ws.run)?;
            out.copy_from_slice(&ws.run.delta[..x.len()]);
        }
        Ok(out)
    }
}
