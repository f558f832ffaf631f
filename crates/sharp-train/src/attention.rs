//! Causal self-attention with grouped queries, forwards and backwards.
//!
//! Scores are made for [`BLOCK`] queries at a time against the keys that these may see, so nearly half of
//! them are never computed, and the query heads that share a key head are rows of one product. The
//! probabilities are kept for the backward pass, in the products' number type.

use sharp_model::{ModelConfig, names};
use tch::{Device, Kind, Tensor};

use crate::device::Compute;
use crate::error::Result;
use crate::linear::Linear;
use crate::norm;
use crate::rope::{Rope, row_order};
use crate::tensors::{dim, size};
use crate::weights::Weights;

/// Queries in one product with the keys. Smaller blocks waste fewer scores of the future, larger ones run
/// faster.
const BLOCK: i64 = 128;

/// Sizes of a batch: sequences and tokens of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) sequences: i64,
    pub(crate) time: i64,
}

/// One layer's attention. The query, key and value projections are one matrix.
#[derive(Debug)]
pub(crate) struct Attention {
    /// `((heads + 2 kv_heads) * head_dim, d)`; query and key rows in the order of [`row_order`].
    qkv: Linear,
    /// `(d, heads * head_dim)`.
    out: Linear,
    /// Norm weights of query and key heads, `(heads + kv_heads, head_dim)`, in the families that have them.
    qk_norm: Option<Tensor>,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    eps: f64,
}

/// What the backward pass needs of a forward pass. Of a query head only its group, the query heads that share
/// one key and value head, is told apart: `g = heads / kv_heads`. All but the norms' are of the products'
/// number type.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Before the query and key norms, with the inverse root mean squares.
    before_norm: Option<(Tensor, Tensor)>,
    /// `(sequences * kv_heads, g, time, head_dim)`, divided by the root of `head_dim`.
    q: Tensor,
    /// `(sequences * kv_heads, time, head_dim)`
    k: Tensor,
    /// As `k`.
    v: Tensor,
    /// Of each block of queries, in order: `(sequences * kv_heads, g * queries, keys)`.
    probabilities: Vec<Tensor>,
}

impl Attention {
    pub(crate) fn load(all: Weights<'_>, layer: usize, compute: &Compute) -> Result<Self> {
        let config = all.source.config();
        let (heads, kv_heads, head_dim) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let get = |name: String| all.tensor(&name, compute.device);
        let ordered = |t: Tensor, heads: Option<usize>| -> Result<Tensor> {
            let Some(heads) = heads else { return Ok(t) };
            let order = Tensor::f_from_slice(&row_order(heads, head_dim))?.f_to_device(compute.device)?;
            Ok(t.f_index_select(0, &order)?)
        };
        let parts = [
            (names::Attention::Query, Some(heads)),
            (names::Attention::Key, Some(kv_heads)),
            (names::Attention::Value, None),
        ];
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for (matrix, rotated) in parts {
            weights.push(ordered(get(names::attention_weight(layer, matrix))?, rotated)?);
            if config.attention_bias {
                biases.push(ordered(get(names::attention_bias(layer, matrix))?, rotated)?);
            }
        }
        let bias = match biases.is_empty() {
            true => None,
            false => Some(Tensor::f_cat(&biases, 0)?),
        };
        let qkv = Linear::new(Tensor::f_cat(&weights, 0)?, bias, compute.precision)?;
        let output_bias = match config.attention_output_bias {
            true => Some(get(names::attention_bias(layer, names::Attention::Output))?),
            false => None,
        };
        let output = get(names::attention_weight(layer, names::Attention::Output))?;
        let out = Linear::new(output, output_bias, compute.precision)?;
        Ok(Self {
            qkv,
            out,
            qk_norm: Self::load_qk_norm(all, layer, config, compute)?,
            heads: dim(heads)?,
            kv_heads: dim(kv_heads)?,
            head_dim: dim(head_dim)?,
            eps: config.rms_norm_eps,
        })
    }

    fn load_qk_norm(
        all: Weights<'_>,
        layer: usize,
        config: &ModelConfig,
        compute: &Compute,
    ) -> Result<Option<Tensor>> {
        if !config.qk_norm {
            return Ok(None);
        }
        let order = Tensor::f_from_slice(&row_order(1, config.head_dim))?.f_to_device(compute.device)?;
        let rows = |name: String, heads: usize| -> Result<Tensor> {
            let weight = all.tensor(&name, compute.device)?.f_index_select(0, &order)?;
            Ok(weight.f_unsqueeze(0)?.f_expand([dim(heads)?, dim(config.head_dim)?], false)?)
        };
        let all = [
            rows(names::q_norm(layer), config.num_attention_heads)?,
            rows(names::k_norm(layer), config.num_key_value_heads)?,
        ];
        Ok(Some(Tensor::f_cat(&all, 0)?))
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            qkv: self.qkv.shallow_clone(),
            out: self.out.shallow_clone(),
            qk_norm: self.qk_norm.as_ref().map(Tensor::shallow_clone),
            ..*self
        }
    }

    /// Computes the attention's output from its normed input `x`, both `(sequences * time, d)`.
    pub(crate) fn forward(&self, x: &Tensor, rope: &Rope, batch: Batch) -> Result<(Tensor, Kept)> {
        let Batch { sequences, time } = batch;
        let Self { heads, kv_heads, head_dim, .. } = *self;
        let rotated = heads + kv_heads;
        let kind = self.out.weight.f_kind()?;
        let qkv = self.qkv.forward(x)?.f_view([sequences, time, rotated + kv_heads, head_dim])?;
        let mut qk = qkv.f_narrow(2, 0, rotated)?.f_to_kind(Kind::Float)?;
        let mut before_norm = None;
        if let Some(weight) = &self.qk_norm {
            let (normed, inv) = norm::forward(&qk, weight, self.eps)?;
            before_norm = Some((std::mem::replace(&mut qk, normed), inv));
        }
        let qk = rope.forward(&qk)?;
        let q = qk.f_narrow(2, 0, heads)?.f_mul_scalar(self.scale())?.f_to_kind(kind)?;
        let q = self.grouped(&q, batch)?;
        let k = self.by_key_head(&qk.f_narrow(2, heads, kv_heads)?.f_to_kind(kind)?, batch)?;
        let v = self.by_key_head(&qkv.f_narrow(2, rotated, kv_heads)?, batch)?;

        let o = Tensor::f_empty([sequences, time, heads, head_dim], (kind, x.device()))?;
        let mut probabilities = Vec::new();
        for block in blocks(time, x.device()) {
            let queries = self.rows_of(&q, block)?;
            let scores = queries.f_bmm(&k.f_narrow(1, 0, block.end)?.f_transpose(1, 2)?)?;
            self.hide_the_future(&scores, block)?;
            let p = scores.f_internal_softmax(-1, false)?;
            let out = p.f_bmm(&v.f_narrow(1, 0, block.end)?)?;
            self.by_token(&o, block)?.f_copy_(&self.heads_last(&out, batch, block)?)?;
            probabilities.push(p);
        }
        let y = self.out.forward(&o.f_view([sequences * time, heads * head_dim])?)?;
        Ok((y, Kept { before_norm, q, k, v, probabilities }))
    }

    /// Computes the gradient with respect to `x` from the output's `dy`, both `(sequences * time, d)`.
    pub(crate) fn backward(&self, dy: &Tensor, kept: &Kept, rope: &Rope, batch: Batch) -> Result<Tensor> {
        let Batch { sequences, time } = batch;
        let Self { heads, kv_heads, head_dim, .. } = *self;
        let Kept { before_norm, q, k, v, probabilities } = kept;
        let d_out = self.out.input_grad(dy)?.f_view([sequences, time, heads, head_dim])?;
        let d_out = self.grouped(&d_out, batch)?;

        // Sums over blocks are float32.
        let like = (Kind::Float, dy.device());
        let dqk = Tensor::f_empty([sequences, time, heads + kv_heads, head_dim], like)?;
        let dq = dqk.f_narrow(2, 0, heads)?;
        let (dk, dv) = (Tensor::f_zeros(k.size(), like)?, Tensor::f_zeros(v.size(), like)?);
        for (block, p) in blocks(time, dy.device()).zip(probabilities) {
            let seen = |t: &Tensor| t.f_narrow(1, 0, block.end);
            let d_out = self.rows_of(&d_out, block)?;
            let _ = seen(&dv)?.f_add_(&p.f_transpose(1, 2)?.f_bmm(&d_out)?)?;
            let dp = d_out.f_bmm(&seen(v)?.f_transpose(1, 2)?)?;
            let d_scores = Tensor::f_internal_softmax_backward_data(&dp, p, -1, dp.f_kind()?)?;
            let _ = seen(&dk)?.f_add_(&d_scores.f_transpose(1, 2)?.f_bmm(&self.rows_of(q, block)?)?)?;
            let d = d_scores.f_bmm(&seen(k)?)?;
            self.by_token(&dq, block)?.f_copy_(&self.heads_last(&d, batch, block)?)?;
        }
        let _ = dq.shallow_clone().f_mul_scalar_(self.scale())?;
        let by_token = |t: &Tensor| -> Result<Tensor> {
            Ok(t.f_view([sequences, kv_heads, time, head_dim])?.f_transpose(1, 2)?)
        };
        dqk.f_narrow(2, heads, kv_heads)?.f_copy_(&by_token(&dk)?)?;
        let mut dqk = rope.backward(&dqk)?;
        if let (Some(weight), Some((before, inv))) = (&self.qk_norm, before_norm) {
            let mut d_before = dqk.f_zeros_like()?;
            norm::backward_onto(&mut d_before, &dqk, before, inv, weight)?;
            dqk = d_before;
        }
        self.qkv.input_grad(&Tensor::f_cat(&[dqk, by_token(&dv)?], 2)?.f_view([sequences * time, -1])?)
    }

    /// Returns what scores are multiplied by: one over the root of `head_dim`.
    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// Reshapes query heads `(sequences, time, heads, head_dim)` to `(sequences * kv_heads, g, time,
    /// head_dim)`.
    fn grouped(&self, x: &Tensor, batch: Batch) -> Result<Tensor> {
        let Batch { sequences, time } = batch;
        let group = self.heads / self.kv_heads;
        let apart = x.f_view([sequences, time, self.kv_heads, group, self.head_dim])?;
        let rows = [sequences * self.kv_heads, group, time, self.head_dim];
        Ok(apart.f_permute([0, 2, 3, 1, 4])?.f_reshape(rows)?)
    }

    /// Reshapes key or value heads `(sequences, time, kv_heads, head_dim)` to `(sequences * kv_heads, time,
    /// head_dim)`.
    fn by_key_head(&self, x: &Tensor, batch: Batch) -> Result<Tensor> {
        let Batch { sequences, time } = batch;
        Ok(x.f_transpose(1, 2)?.f_reshape([sequences * self.kv_heads, time, self.head_dim])?)
    }

    /// Picks a block's rows of [`Self::grouped`]: `(sequences * kv_heads, g * queries, head_dim)`.
    fn rows_of(&self, grouped: &Tensor, block: Block) -> Result<Tensor> {
        let part = grouped.f_narrow(2, block.start, block.queries())?;
        let (lanes, group, queries, width) = part.size4()?;
        Ok(part.f_reshape([lanes, group * queries, width])?)
    }

    /// Reshapes [`Self::rows_of`]'s rows to `(sequences, queries, kv_heads, g, head_dim)`.
    fn heads_last(&self, rows: &Tensor, batch: Batch, block: Block) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        let apart = rows.f_view([batch.sequences, self.kv_heads, group, block.queries(), self.head_dim])?;
        Ok(apart.f_permute([0, 3, 1, 2, 4])?)
    }

    /// Picks a block's part of `(sequences, time, heads, head_dim)`, shaped as [`Self::heads_last`], sharing
    /// memory.
    fn by_token(&self, x: &Tensor, block: Block) -> Result<Tensor> {
        let part = x.f_narrow(1, block.start, block.queries())?;
        Ok(part.f_unflatten(2, [self.kv_heads, self.heads / self.kv_heads])?)
    }

    /// Masks the keys after each query in `scores (sequences * kv_heads, g * queries, keys)`.
    fn hide_the_future(&self, scores: &Tensor, block: Block) -> Result<()> {
        let queries = block.queries();
        let like = (scores.f_kind()?, scores.device());
        let mask = Tensor::f_full([queries, queries], f64::NEG_INFINITY, like)?.f_triu(1)?;
        let newest = scores.f_narrow(2, block.start, queries)?;
        let _ = newest.f_unflatten(1, [-1, queries])?.f_add_(&mask)?;
        Ok(())
    }
}

/// Queries `start..end` of each sequence, which see the keys `0..end`.
#[derive(Debug, Clone, Copy)]
struct Block {
    start: i64,
    end: i64,
}

impl Block {
    fn queries(self) -> i64 {
        self.end - self.start
    }
}

/// Chooses how many of a sequence's `time` queries are in one product; on a GPU all, since many small
/// products cost more than they save there.
pub(crate) fn queries_at_once(time: i64, device: Device) -> i64 {
    if device.is_cuda() { time.max(1) } else { BLOCK }
}

/// Cuts the queries into blocks.
fn blocks(time: i64, device: Device) -> impl Iterator<Item = Block> {
    let queries = queries_at_once(time, device);
    (0..time).step_by(size(queries)).map(move |start| Block { start, end: time.min(start + queries) })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sharp_model::ModelSource;

    use super::*;
    use crate::device::Precision;
    use crate::tensors::scalar;
    use crate::testing::seeded;

    fn apart(found: &Tensor, wanted: &Tensor) -> f64 {
        let off = found.to_kind(Kind::Double) - wanted.to_kind(Kind::Double);
        scalar(&off.norm()).unwrap() / scalar(&wanted.to_kind(Kind::Double).norm()).unwrap()
    }

    /// Compares with libtorch's own attention and graph, on more than two blocks, the last one incomplete.
    #[test]
    fn agrees_with_libtorchs_attention_forwards_and_backwards() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama/gqa_untied");
        let source = ModelSource::open(folder).unwrap();
        let batch = Batch { sequences: 2, time: 2 * BLOCK + 37 };
        let d = source.config().hidden_size as i64;
        let _generator = seeded(3);
        for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::Bf16, 0.05)] {
            let compute = Compute { precision, ..Compute::cpu(1) };
            let attention = Attention::load(Weights::of(&source), 0, &compute).unwrap();
            assert!(attention.heads > attention.kv_heads && attention.kv_heads > 1);
            let rope = Rope::new(source.config(), batch.time as usize, compute.device).unwrap();
            let rows = [batch.sequences * batch.time, d];
            // Large inputs, so that attention is far from even.
            let x = Tensor::randn(rows, (Kind::Float, compute.device)) * 1.5;
            let dy = Tensor::randn(rows, (Kind::Float, compute.device));
            let (y, kept) = attention.forward(&x, &rope, batch).unwrap();
            let dx = attention.backward(&dy, &kept, &rope, batch).unwrap();

            let leaf = x.set_requires_grad(true);
            let float = |linear: &Linear| linear.weight.to_kind(Kind::Float);
            let qkv = leaf.matmul(&float(&attention.qkv).tr());
            let qkv = qkv.view([batch.sequences, batch.time, -1, attention.head_dim]);
            let rotated = attention.heads + attention.kv_heads;
            let qk = rope.forward(&qkv.narrow(2, 0, rotated)).unwrap();
            let head = |t: &Tensor, start, n| t.narrow(2, start, n).transpose(1, 2);
            let o = Tensor::scaled_dot_product_attention(
                &head(&qk, 0, attention.heads),
                &head(&qk, attention.heads, attention.kv_heads),
                &head(&qkv, rotated, attention.kv_heads),
                None::<Tensor>,
                0.0,
                true,
                None,
                true,
            );
            let expected = o.transpose(1, 2).reshape([rows[0], -1]).matmul(&float(&attention.out).tr());
            let along = (&expected * &dy).sum(Kind::Float);
            let gradient = Tensor::run_backward(&[along], &[&leaf], false, false).remove(0);
            assert!(apart(&y, &expected.detach()) < tolerance, "{precision:?}: {}", apart(&y, &expected));
            assert!(apart(&dx, &gradient) < tolerance, "{precision:?}: {}", apart(&dx, &gradient));
        }
    }
}
