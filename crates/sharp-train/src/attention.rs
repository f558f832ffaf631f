//! Causal self-attention with grouped queries, forwards and backwards.

use sharp_model::{ModelConfig, names};
use tch::{Kind, Tensor};

use crate::device::Compute;
use crate::error::Result;
use crate::linear::Linear;
use crate::norm;
use crate::rope::{Rope, row_order};
use crate::tensors::dim;
use crate::weights::Weights;

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

/// What the way back needs.
#[derive(Debug)]
pub(crate) struct Saved {
    /// Before the query and key norms, with the inverse root mean squares.
    before_norm: Option<(Tensor, Tensor)>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// `(sequences, heads, time, head_dim)`
    o: Tensor,
    /// `(sequences, heads, time)`: the log of each softmax's sum; only on the CPU.
    log_sum: Option<Tensor>,
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
        for (matrix, turned) in parts {
            weights.push(ordered(get(names::attention_weight(layer, matrix))?, turned)?);
            if config.attention_bias {
                biases.push(ordered(get(names::attention_bias(layer, matrix))?, turned)?);
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

    pub(crate) fn share(&self) -> Self {
        Self {
            qkv: self.qkv.share(),
            out: self.out.share(),
            qk_norm: self.qk_norm.as_ref().map(Tensor::shallow_clone),
            ..*self
        }
    }

    /// `x (sequences * time, d)`, normed, to the attention's output of the same shape.
    pub(crate) fn forward(&self, x: &Tensor, rope: &Rope, batch: Batch) -> Result<(Tensor, Saved)> {
        let Batch { sequences, time } = batch;
        let turned = self.heads + self.kv_heads;
        let qkv = self.qkv.forward(x)?.f_view([sequences, time, turned + self.kv_heads, self.head_dim])?;
        let mut qk = qkv.f_narrow(2, 0, turned)?;
        let mut before_norm = None;
        if let Some(weight) = &self.qk_norm {
            let (normed, inv) = norm::forward(&qk, weight, self.eps)?;
            before_norm = Some((std::mem::replace(&mut qk, normed), inv));
        }
        let qk = rope.forward(&qk)?;
        let q = qk.f_narrow(2, 0, self.heads)?.f_transpose(1, 2)?;
        let k = self.repeated(&qk.f_narrow(2, self.heads, self.kv_heads)?, batch)?;
        let v = self.repeated(&qkv.f_narrow(2, turned, self.kv_heads)?, batch)?;
        let (o, log_sum) = if q.device().is_cuda() {
            let o =
                Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, true, None, false)?;
            (o, None)
        } else {
            let (o, log_sum) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
                &q,
                &k,
                &v,
                0.0,
                true,
                None::<Tensor>,
                None,
            )?;
            (o, Some(log_sum))
        };
        let y = self.out.forward(&self.rows(&o, batch)?)?;
        Ok((y, Saved { before_norm, q, k, v, o, log_sum }))
    }

    /// The gradient with respect to `x`, from the output's `dy`, both `(sequences * time, d)`.
    pub(crate) fn backward(&self, dy: &Tensor, saved: &Saved, rope: &Rope, batch: Batch) -> Result<Tensor> {
        let Batch { sequences, time } = batch;
        let d_out = self
            .out
            .input_grad(dy)?
            .f_view([sequences, time, self.heads, self.head_dim])?
            .f_transpose(1, 2)?;
        let (dq, dk, dv) = core_backward(&d_out, saved)?;
        let dk = self.summed(&dk, batch)?;
        let dv = self.summed(&dv, batch)?;
        let mut dqk = rope.backward(&Tensor::f_cat(&[dq.f_transpose(1, 2)?, dk], 2)?)?;
        if let (Some(weight), Some((before, inv))) = (&self.qk_norm, &saved.before_norm) {
            let mut d_before = dqk.f_zeros_like()?;
            norm::backward_onto(&mut d_before, &dqk, before, inv, weight)?;
            dqk = d_before;
        }
        self.qkv.input_grad(&Tensor::f_cat(&[dqk, dv], 2)?.f_view([sequences * time, -1])?)
    }

    /// Key or value heads `(s, t, kv_heads, head_dim)` repeated for the queries that share them, `(s, heads, t, head_dim)`.
    fn repeated(&self, x: &Tensor, batch: Batch) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        if group == 1 {
            return Ok(x.f_transpose(1, 2)?);
        }
        let Batch { sequences, time } = batch;
        let wide =
            x.f_unsqueeze(3)?.f_expand([sequences, time, self.kv_heads, group, self.head_dim], false)?;
        Ok(wide.f_reshape([sequences, time, self.heads, self.head_dim])?.f_transpose(1, 2)?)
    }

    /// The way back of [`Self::repeated`], to `(s, t, kv_heads, head_dim)`.
    fn summed(&self, dx: &Tensor, batch: Batch) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        let dx = dx.f_transpose(1, 2)?;
        if group == 1 {
            return Ok(dx);
        }
        let Batch { sequences, time } = batch;
        let apart = dx.f_reshape([sequences, time, self.kv_heads, group, self.head_dim])?;
        Ok(apart.f_sum_dim_intlist([3i64].as_slice(), false, Kind::Float)?)
    }

    /// `(s, heads, t, head_dim)` to `(s * t, heads * head_dim)`.
    fn rows(&self, o: &Tensor, batch: Batch) -> Result<Tensor> {
        Ok(o.f_transpose(1, 2)?.f_reshape([batch.sequences * batch.time, self.heads * self.head_dim])?)
    }
}

/// Gradients of queries, keys and values.
fn core_backward(d_out: &Tensor, saved: &Saved) -> Result<(Tensor, Tensor, Tensor)> {
    if let Some(log_sum) = &saved.log_sum {
        return Ok(Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
            d_out,
            &saved.q,
            &saved.k,
            &saved.v,
            &saved.o,
            log_sum,
            0.0,
            true,
            None::<Tensor>,
            None,
        )?);
    }
    // Elsewhere which kernel runs, and so which way back, is libtorch's choice: let its own graph find it.
    tch::with_grad(|| {
        let leaf = |t: &Tensor| -> Result<Tensor> { Ok(t.f_detach()?.f_set_requires_grad(true)?) };
        let (q, k, v) = (leaf(&saved.q)?, leaf(&saved.k)?, leaf(&saved.v)?);
        let o = Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, true, None, false)?;
        let along = o.f_mul(d_out)?.f_sum(Kind::Float)?;
        let grads = Tensor::f_run_backward(&[along], &[&q, &k, &v], false, false)?;
        match <[Tensor; 3]>::try_from(grads) {
            Ok([dq, dk, dv]) => Ok((dq, dk, dv)),
            Err(_) => Err(crate::Error::invalid("libtorch returned the wrong number of gradients")),
        }
    })
}
