//! The forward pass: embeddings, one layer for some tokens, and the output head.

use sharp_model::Activation;
use sharp_quant::gate_up_silu;

use crate::elementwise::{add, for_each_row, gelu_mul, rms_norm, rms_norm_in_place, row};
use crate::error::{Error, Result};
use crate::kv_target::{Heads, KvTarget};
use crate::model::{Attention, Mlp, Model};
use crate::products::{add_bias, multiply, packed, project};
use crate::workspace::Buffers;

/// What one layer did to a sequence. All slices are (n, d), row-major.
#[derive(Debug, Clone, Copy)]
pub struct LayerView<'a> {
    /// The layer.
    pub layer: usize,
    /// The residual stream entering the layer.
    pub residual_in: &'a [f32],
    /// What the MLP got: the residual stream after attention, normed.
    pub mlp_input: &'a [f32],
    /// What the MLP added to the residual stream.
    pub mlp_output: &'a [f32],
    /// The residual stream leaving the layer.
    pub residual_out: &'a [f32],
}

/// Tokens of a pass that follow one another.
///
/// Their positions are `at`, `at + 1`, ... They attend to each other and to what earlier segments of the pass
/// have put at the positions before `at`. So one pass can continue a text in several ways: one segment for
/// the text at 0, then one for each continuation at the text's length. The next segment at 0 begins another
/// text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Position of the first token.
    pub at: usize,
    /// Number of tokens.
    pub tokens: usize,
}

/// Sees what every layer does to a sequence.
pub trait Observer {
    /// Called after each layer.
    fn layer(&mut self, view: LayerView<'_>);

    /// Whether to be called for this layer; keeping its inputs costs a copy.
    fn wants(&self, layer: usize) -> bool {
        let _ = layer;
        true
    }
}

/// Observes nothing.
impl Observer for () {
    fn layer(&mut self, _: LayerView<'_>) {}

    fn wants(&self, _: usize) -> bool {
        false
    }
}

impl<F: FnMut(LayerView<'_>)> Observer for F {
    fn layer(&mut self, view: LayerView<'_>) {
        self(view);
    }
}

impl Model {
    /// Writes the embeddings of `tokens` into `hidden` (n, d).
    pub(crate) fn embed(&self, tokens: &[u32], hidden: &mut [f32]) -> Result<()> {
        let d = self.config().hidden_size;
        for (position, (&token, out)) in tokens.iter().zip(hidden.chunks_exact_mut(d)).enumerate() {
            let vocab_size = self.config().vocab_size;
            if token as usize >= vocab_size {
                return Err(Error::Token { token, position, vocab_size });
            }
            self.inner.embedding.row(token as usize, out)?;
            let factor = self.config().scales.embedding as f32;
            if factor != 1.0 {
                out.iter_mut().for_each(|x| *x *= factor);
            }
        }
        Ok(())
    }

    /// Runs one layer for the `n` tokens whose residual stream is `hidden` (n, d).
    pub(crate) fn run_layer(
        &self,
        index: usize,
        hidden: &mut [f32],
        n: usize,
        b: &mut Buffers,
        kv: &mut dyn KvTarget,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let layer = self.layer(index)?;
        let d = self.config().hidden_size;
        let before = observer.wants(index).then(|| hidden.to_vec());
        let team = &*self.inner.team;
        self.norm_input(hidden, layer.attention.norm.as_deref(), &mut b.normed[..n * d]);
        self.run_heads(&layer.attention, n, b, kv)?;
        self.run_output(&layer.attention, n, b)?;
        add(team, hidden, &b.delta[..n * d], d);
        self.norm_input(hidden, layer.mlp_norm.as_deref(), &mut b.normed[..n * d]);
        if layer.mlp.zero {
            b.delta[..n * d].fill(0.0);
        } else {
            self.run_mlp(&layer.mlp, n, b)?;
            self.finish_branch(layer.after_mlp.as_deref(), &mut b.delta[..n * d]);
            add(team, hidden, &b.delta[..n * d], d);
        }
        if let Some(before) = before {
            observer.layer(LayerView {
                layer: index,
                residual_in: &before,
                mlp_input: &b.normed[..n * d],
                mlp_output: &b.delta[..n * d],
                residual_out: hidden,
            });
        }
        Ok(())
    }

    /// Runs the heads of attention, from its input `b.normed` (n, d) into `b.mixed` (n, heads, head_dim).
    pub(crate) fn run_heads(
        &self,
        attention: &Attention,
        n: usize,
        b: &mut Buffers,
        kv: &mut dyn KvTarget,
    ) -> Result<()> {
        let config = self.config();
        let (q_size, kv_size) = (config.query_size(), config.key_value_size());
        let (q, k, v) = (&mut b.q[..n * q_size], &mut b.k[..n * kv_size], &mut b.v[..n * kv_size]);
        let linears = [&attention.query, &attention.key, &attention.value];
        let input = &b.normed[..n * config.hidden_size];
        project(&self.inner.team, linears, input, n, [&mut *q, &mut *k, &mut *v], &mut b.products)?;
        let heads = Heads { q, k, v, mixed: &mut b.mixed[..n * q_size], rope: &b.rope };
        kv.attend(self, attention, heads)
    }

    /// Runs attention's output projection, from its heads `b.mixed` (n, heads, head_dim) into `b.delta` (n,
    /// d).
    pub(crate) fn run_output(&self, attention: &Attention, n: usize, b: &mut Buffers) -> Result<()> {
        let delta = &mut b.delta[..n * self.config().hidden_size];
        let mixed = &b.mixed[..n * self.config().query_size()];
        project(&self.inner.team, [&attention.output], mixed, n, [&mut *delta], &mut b.products)?;
        self.finish_branch(attention.after.as_deref(), delta);
        Ok(())
    }

    /// Writes the input of attention or of an MLP: the residual stream `x` (n, d), normed where there is a
    /// norm.
    pub(crate) fn norm_input(&self, x: &[f32], weight: Option<&[f32]>, out: &mut [f32]) {
        match weight {
            Some(weight) => rms_norm(&self.inner.team, x, weight, self.config().rms_norm_eps, out),
            None => out.copy_from_slice(x),
        }
    }

    /// Norms and scales attention's or an MLP's output `x` (n, d) as the family does before adding it to the
    /// stream.
    pub(crate) fn finish_branch(&self, weight: Option<&[f32]>, x: &mut [f32]) {
        let (team, config) = (&*self.inner.team, self.config());
        let (d, factor) = (config.hidden_size, config.scales.residual as f32);
        if let Some(weight) = weight {
            let eps = config.rms_norm_eps as f32;
            for_each_row(team, x, d, &|_, x| rms_norm_in_place(team.isa(), x, weight, eps));
        }
        if factor != 1.0 {
            for_each_row(team, x, d, &|_, x| x.iter_mut().for_each(|x| *x *= factor));
        }
    }

    /// Runs an MLP, with the neurons beside it, from `b.normed` (n, d) into `b.delta` (n, d).
    pub(crate) fn run_mlp(&self, mlp: &Mlp, n: usize, b: &mut Buffers) -> Result<()> {
        self.run_mlp_alone(mlp, n, b)?;
        let Some(own) = &mlp.own else { return Ok(()) };
        std::mem::swap(&mut b.delta, &mut b.beside);
        self.run_mlp_alone(own, n, b)?;
        self.add_beside(n, b);
        Ok(())
    }

    /// Adds `b.beside` to `b.delta`, both (n, d).
    pub(crate) fn add_beside(&self, n: usize, b: &mut Buffers) {
        let d = self.config().hidden_size;
        add(&self.inner.team, &mut b.delta[..n * d], &b.beside[..n * d], d);
    }

    /// Runs an MLP without what is beside it, from `b.normed` (n, d) into `b.delta` (n, d).
    fn run_mlp_alone(&self, mlp: &Mlp, n: usize, b: &mut Buffers) -> Result<()> {
        let Some([gate, up, down]) = mlp.fused_kernels() else {
            self.run_gates(mlp, n, b)?;
            return self.run_down(mlp, n, b);
        };
        let team = &*self.inner.team;
        let d = self.config().hidden_size;
        let delta = &mut b.delta[..n * d];
        let products = &mut b.products;
        products.acts.quantize_parallel(team, &b.normed[..n * d], n, d)?;
        gate_up_silu(team, &gate, &up, &products.acts, &mut b.mlp_acts, &mut products.scratch)?;
        packed(team, [down], &b.mlp_acts, [&mut *delta], &mut products.scratch)?;
        add_bias(team.isa(), &mlp.down, delta);
        Ok(())
    }

    /// Runs the first half of an MLP that is not fused, from `b.normed` (n, d) into `b.gate` (n, f): the
    /// input of its down projection.
    pub(crate) fn run_gates(&self, mlp: &Mlp, n: usize, b: &mut Buffers) -> Result<()> {
        let team = &*self.inner.team;
        let isa = team.isa();
        let (d, f) = (self.config().hidden_size, mlp.gate.rows());
        let (gate, up) = (&mut b.gate[..n * f], &mut b.up[..n * f]);
        let input = &b.normed[..n * d];
        project(team, [&mlp.gate, &mlp.up], input, n, [&mut *gate, &mut *up], &mut b.products)?;
        match mlp.activation {
            Activation::Silu => {
                for_each_row(team, gate, f, &|i, gate| sharp_quant::silu_mul(isa, gate, row(up, f, i)));
            }
            Activation::GeluTanh => {
                for_each_row(team, gate, f, &|i, gate| gelu_mul(gate, row(up, f, i)));
            }
        }
        Ok(())
    }

    /// Runs the second half of an MLP that is not fused, from `b.gate` (n, f) into `b.delta` (n, d).
    pub(crate) fn run_down(&self, mlp: &Mlp, n: usize, b: &mut Buffers) -> Result<()> {
        let (d, f) = (self.config().hidden_size, mlp.down.cols());
        let (gate, delta) = (&b.gate[..n * f], &mut b.delta[..n * d]);
        project(&self.inner.team, [&mlp.down], gate, n, [delta], &mut b.products)
    }

    /// Computes the logits (n, vocab) of the rows of `hidden` (n, d), the residual stream after the last
    /// layer.
    pub(crate) fn run_head(&self, hidden: &[f32], n: usize, b: &mut Buffers, out: &mut [f32]) -> Result<()> {
        let team = &*self.inner.team;
        let normed = &mut b.normed[..n * self.config().hidden_size];
        rms_norm(team, hidden, &self.inner.final_norm, self.config().rms_norm_eps, normed);
        multiply(team, &self.inner.head, normed, n, out, &mut b.products)?;
        if let Some(cap) = self.config().scales.logit_cap.map(|c| c as f32) {
            for_each_row(team, out, self.config().vocab_size, &|_, row| {
                row.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
            });
        }
        Ok(())
    }
}
