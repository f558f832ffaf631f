//! Attention between a pass and the caches: where its keys and values go, and what its queries see.

use sharp_quant::float::{self, KvCache};

use crate::elementwise::{for_each_row, rms_norm_in_place, row};
use crate::error::Result;
use crate::forward::Segment;
use crate::model::{Attention, Model};
use crate::workspace::{RopeTable, RopeTables};

/// One layer's queries, keys and values of the `n` tokens of a pass, and room for what attention makes of
/// them.
pub(crate) struct Heads<'a> {
    /// Queries (n, heads, head_dim), not yet normed and rotated.
    pub(crate) q: &'a mut [f32],
    /// Keys (n, kv_heads, head_dim), not yet normed and rotated.
    pub(crate) k: &'a mut [f32],
    /// Values (n, kv_heads, head_dim).
    pub(crate) v: &'a [f32],
    /// The result (n, heads, head_dim).
    pub(crate) mixed: &'a mut [f32],
    /// Rotations for the positions of the pass's workspace.
    pub(crate) rope: &'a RopeTables,
}

/// The sequences that the tokens of a pass belong to, at one layer.
pub(crate) trait KvTarget {
    /// Norms and rotates queries and keys, stores keys and values, and attends.
    fn attend(&mut self, model: &Model, attention: &Attention, heads: Heads<'_>) -> Result<()>;
}

/// Tokens of one sequence.
pub(crate) struct SequenceKv<'a> {
    pub(crate) cache: &'a mut KvCache,
    /// The layer's index in the cache.
    pub(crate) layer: usize,
    /// Position of the first token.
    pub(crate) at: usize,
    /// How the tokens fall into segments; none: they follow one another from `at` on.
    pub(crate) segments: &'a [Segment],
}

impl SequenceKv<'_> {
    /// Position of token `t` of the pass.
    fn position(&self, t: usize) -> usize {
        let mut begin = 0;
        for segment in self.segments {
            if t < begin + segment.tokens {
                return segment.at + t - begin;
            }
            begin += segment.tokens;
        }
        self.at + t
    }
}

impl KvTarget for SequenceKv<'_> {
    fn attend(&mut self, model: &Model, attention: &Attention, heads: Heads<'_>) -> Result<()> {
        let (q_size, kv_size) = (model.config().query_size(), model.config().key_value_size());
        let team = &*model.inner.team;
        let table = heads.rope.of(attention.kind.rotary);
        for_each_row(team, heads.q, q_size, &|t, q| {
            model.rotate(q, attention.q_norm.as_deref(), table, self.position(t));
        });
        for_each_row(team, heads.k, kv_size, &|t, k| {
            model.rotate(k, attention.k_norm.as_deref(), table, self.position(t));
        });
        let whole = [Segment { at: self.at, tokens: heads.q.len() / q_size }];
        let mut begin = 0;
        for &Segment { at, tokens } in if self.segments.is_empty() { &whole } else { self.segments } {
            let (q_range, kv_range) =
                (begin * q_size..(begin + tokens) * q_size, begin * kv_size..(begin + tokens) * kv_size);
            let (k, v) = (&heads.k[kv_range.clone()], &heads.v[kv_range]);
            self.cache.write(team, self.layer, at, tokens, k, v)?;
            let (q, mixed) = (&heads.q[q_range.clone()], &mut heads.mixed[q_range]);
            model.attend(attention, self.cache, self.layer, at, q, mixed)?;
            begin += tokens;
        }
        Ok(())
    }
}

impl Model {
    /// Norms and rotates the query or key heads of one token for its position.
    pub(crate) fn rotate(
        &self,
        heads: &mut [f32],
        norm: Option<&[f32]>,
        table: Option<&RopeTable>,
        position: usize,
    ) {
        let isa = self.inner.team.isa();
        let (dim, eps) = (self.config().head_dim, self.config().rms_norm_eps as f32);
        if let Some(weight) = norm {
            // One head at a time, or all of them, as long as the weight is.
            for heads in heads.chunks_exact_mut(weight.len()) {
                rms_norm_in_place(isa, heads, weight, eps);
            }
        }
        if let Some(RopeTable { cos, sin }) = table {
            float::rope(isa, heads, row(cos, dim / 2, position), row(sin, dim / 2, position));
        }
    }

    /// Attends with queries `q` (n, heads, head_dim) at positions from `at` on to what the cache holds, into
    /// `mixed` of the same shape.
    pub(crate) fn attend(
        &self,
        attention: &Attention,
        cache: &KvCache,
        layer: usize,
        at: usize,
        q: &[f32],
        mixed: &mut [f32],
    ) -> Result<()> {
        let config = self.config();
        let scores = float::Scores {
            scale: config.scales.attention as f32,
            cap: config.scales.attention_cap.map(|c| c as f32),
            window: attention.kind.window,
        };
        let heads = config.num_attention_heads;
        let queries = float::Queries { layer, heads, at, q, scores };
        Ok(float::attention(&self.inner.team, cache, queries, mixed)?)
    }
}
