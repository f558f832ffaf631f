//! The forward pass: one layer for some tokens, and the passes over whole sequences made of it.

use sharp_quant::{
    Isa, Scratch, Team,
    float::{self, DenseOp, KvCache},
    gate_up_silu, matmul,
};

use sharp_model::family::Activation;

use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::model::{Attention, Mlp, Model};
use crate::session::Session;
use crate::workspace::{Buffers, RopeTable};

/// From so many tokens on, elementwise work is shared out to the threads.
const PARALLEL_TOKENS: usize = 8;

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
/// They stand at positions `at`, `at + 1`, ... and see each other and what earlier segments of the pass have put at the positions
/// before `at`. So a text can be continued in several ways in one pass: one segment for the text at 0, then one for each
/// continuation at the text's length; the next segment at 0 begins another text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Position of the first token.
    pub at: usize,
    /// Number of tokens.
    pub tokens: usize,
}

/// Looks on while a sequence passes through the layers.
pub trait Observer {
    /// Called after each layer.
    fn layer(&mut self, view: LayerView<'_>);

    /// Whether to be called for this layer; keeping its inputs costs a copy.
    fn wants(&self, layer: usize) -> bool {
        let _ = layer;
        true
    }
}

/// Looks at nothing.
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

/// Calls `f(row index, row)` for rows of `width`, in parallel where there are many.
pub(crate) fn rows(team: &Team, x: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    if x.len() < PARALLEL_TOKENS * width {
        for (i, row) in x.chunks_mut(width).enumerate() {
            f(i, row);
        }
        return;
    }
    team.chunks_mut(x, 4 * width, &|chunk, part| {
        for (i, row) in part.chunks_mut(width).enumerate() {
            f(4 * chunk + i, row);
        }
    });
}

/// Row `i` of `x` (n, width); empty if there is none.
fn row(x: &[f32], width: usize, i: usize) -> &[f32] {
    x.get(i * width..(i + 1) * width).unwrap_or_default()
}

fn norm(team: &Team, x: &[f32], weight: &[f32], eps: f64, out: &mut [f32]) {
    let (isa, d) = (team.isa(), weight.len());
    rows(team, out, d, &|i, out| float::rms_norm(isa, row(x, d, i), weight, eps as f32, out));
}

pub(crate) fn add(team: &Team, x: &mut [f32], y: &[f32], width: usize) {
    let isa = team.isa();
    rows(team, x, width, &|i, x| float::add_assign(isa, x, row(y, width, i)));
}

fn add_bias(isa: Isa, linear: &Linear, out: &mut [f32]) {
    if let Some(bias) = &linear.bias {
        for row in out.chunks_exact_mut(bias.len()) {
            float::add_assign(isa, row, bias);
        }
    }
}

/// The buffers that a product may need besides its input and output.
struct Aside<'a> {
    acts: &'a mut sharp_quant::Activations,
    scratch: &'a mut Scratch,
    low: &'a mut [Vec<f32>; 2],
    scaled: &'a mut [f32],
}

/// `outs[i] = linears[i](x)` for `x` (n, cols), biases included: one region where the matrices allow it.
fn project<const N: usize>(
    team: &Team,
    linears: [&Linear; N],
    x: &[f32],
    n: usize,
    mut outs: [&mut [f32]; N],
    aside: &mut Aside<'_>,
) -> Result<()> {
    if linears.iter().all(|l| l.is_packed()) {
        let cols = linears.first().map_or(1, |l| l.cols());
        aside.acts.quantize_parallel(team, x, n, cols)?;
        packed(team, linears, aside.acts, outs.each_mut().map(|o| &mut **o), aside.scratch)?;
    } else if linears.iter().all(|l| l.base.as_ref().is_some_and(|w| !w.is_packed()) && l.col_scale.is_none())
    {
        plain(team, linears, x, n, outs.each_mut().map(|o| &mut **o), aside)?;
    } else {
        for (linear, out) in linears.into_iter().zip(&mut outs) {
            if linear.is_packed() {
                aside.acts.quantize_parallel(team, x, n, linear.cols())?;
                packed(team, [linear], aside.acts, [out], aside.scratch)?;
            } else {
                scaled(team, linear, x, n, out, aside)?;
            }
        }
    }
    for (linear, out) in linears.into_iter().zip(outs) {
        add_bias(team.isa(), linear, out);
    }
    Ok(())
}

fn packed<const N: usize>(
    team: &Team,
    linears: [&Linear; N],
    acts: &sharp_quant::Activations,
    outs: [&mut [f32]; N],
    scratch: &mut Scratch,
) -> Result<()> {
    // Three at most; an array of results cannot be collected without allocating.
    let mut pairs = linears.into_iter().zip(outs);
    match (pairs.next(), pairs.next(), pairs.next()) {
        (Some((a, x)), None, None) => matmul(team, &mut [a.op(x)?], acts, scratch)?,
        (Some((a, x)), Some((b, y)), None) => matmul(team, &mut [a.op(x)?, b.op(y)?], acts, scratch)?,
        (Some((a, x)), Some((b, y)), Some((c, z))) => {
            matmul(team, &mut [a.op(x)?, b.op(y)?, c.op(z)?], acts, scratch)?;
        }
        _ => {}
    }
    Ok(())
}

/// Plain matrices with weights and without column scales: the stored matrices and the factors `A` in one region, then `B`.
fn plain<const N: usize>(
    team: &Team,
    linears: [&Linear; N],
    x: &[f32],
    n: usize,
    mut outs: [&mut [f32]; N],
    aside: &mut Aside<'_>,
) -> Result<()> {
    let mut ops: [Option<DenseOp<'_>>; 5] = Default::default();
    let mut count = 0;
    let mut low = aside.low.iter_mut();
    for (linear, out) in linears.iter().zip(outs.iter_mut()) {
        if let (Some(slot), Some(op)) = (ops.get_mut(count), linear.dense_op(out)?) {
            *slot = Some(op);
            count += 1;
        }
        if let Some(factors) = &linear.factors {
            let t = low.next().and_then(|t| t.get_mut(..n * linear.rank()));
            let t = t.ok_or_else(|| Error::argument("too many recovery factors in one region"))?;
            if let Some(slot) = ops.get_mut(count) {
                *slot = Some(DenseOp { weight: factors.a.dense()?, row_scale: None, add: false, out: t });
                count += 1;
            }
        }
    }
    run_ops(team, ops, x, n)?;
    let mut low = aside.low.iter();
    for (linear, out) in linears.iter().zip(outs) {
        if let Some(factors) = &linear.factors {
            let t = low.next().and_then(|t| t.get(..n * linear.rank())).unwrap_or_default();
            let op = DenseOp { weight: factors.b.dense()?, row_scale: None, add: true, out };
            float::dense_matmul(team, &mut [op], t, n)?;
        }
    }
    Ok(())
}

/// One plain matrix of any form.
fn scaled(
    team: &Team,
    linear: &Linear,
    x: &[f32],
    n: usize,
    out: &mut [f32],
    aside: &mut Aside<'_>,
) -> Result<()> {
    let isa = team.isa();
    let input = match &linear.col_scale {
        None => x,
        Some(scale) => {
            let cols = linear.cols();
            let to = aside.scaled.get_mut(..n * cols).unwrap_or_default();
            rows(team, to, cols, &|i, to| float::scale(isa, row(x, cols, i), scale, to));
            &*to
        }
    };
    match linear.dense_op(out)? {
        Some(op) => float::dense_matmul(team, &mut [op], input, n)?,
        None => out.fill(0.0),
    }
    if let Some(factors) = &linear.factors {
        let t = aside.low.first_mut().and_then(|t| t.get_mut(..n * linear.rank())).unwrap_or_default();
        let a = DenseOp { weight: factors.a.dense()?, row_scale: None, add: false, out: t };
        float::dense_matmul(team, &mut [a], x, n)?;
        let b = DenseOp { weight: factors.b.dense()?, row_scale: None, add: true, out };
        float::dense_matmul(team, &mut [b], t, n)?;
    }
    Ok(())
}

/// Whose keys and values the tokens of a pass meet.
pub(crate) enum KvTarget<'a, 's> {
    /// Tokens of one sequence.
    Sequence {
        cache: &'a mut KvCache,
        /// The layer's index in the cache.
        layer: usize,
        /// Position of the first token.
        at: usize,
        /// How the tokens fall into segments; none: they follow one another from `at` on.
        segments: &'a [Segment],
    },
    /// One token of each of several sessions.
    Sessions { sessions: &'a mut [&'s mut Session], layer: usize },
}

/// Position of token `t` of a pass that begins at `at` and falls into `segments`.
fn position(at: usize, segments: &[Segment], t: usize) -> usize {
    let mut begin = 0;
    for segment in segments {
        if t < begin + segment.tokens {
            return segment.at + t - begin;
        }
        begin += segment.tokens;
    }
    at + t
}

impl Model {
    /// Embeddings of `tokens` into `hidden` (n, d).
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

    /// One layer for the `n` tokens whose residual stream is `hidden` (n, d).
    pub(crate) fn run_layer(
        &self,
        index: usize,
        hidden: &mut [f32],
        n: usize,
        b: &mut Buffers,
        kv: KvTarget<'_, '_>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let layer = self.layer(index)?;
        let d = self.config().hidden_size;
        let before = observer.wants(index).then(|| hidden.to_vec());
        self.run_attention(&layer.attention, hidden, n, b, kv)?;
        let team = &*self.inner.team;
        add(team, hidden, part(&b.delta, n * d), d);
        self.norm_input(hidden, layer.mlp_norm.as_deref(), part_mut(&mut b.normed, n * d));
        if layer.mlp.zero {
            part_mut(&mut b.delta, n * d).fill(0.0);
        } else {
            self.run_mlp(&layer.mlp, n, b)?;
            self.finish_branch(layer.after_mlp.as_deref(), part_mut(&mut b.delta, n * d));
            add(team, hidden, part(&b.delta, n * d), d);
        }
        if let Some(before) = before {
            observer.layer(LayerView {
                layer: index,
                residual_in: &before,
                mlp_input: part(&b.normed, n * d),
                mlp_output: part(&b.delta, n * d),
                residual_out: hidden,
            });
        }
        Ok(())
    }

    /// Attention of `hidden` (n, d) into `b.delta` (n, d).
    fn run_attention(
        &self,
        attention: &Attention,
        hidden: &[f32],
        n: usize,
        b: &mut Buffers,
        kv: KvTarget<'_, '_>,
    ) -> Result<()> {
        let d = self.config().hidden_size;
        self.norm_input(hidden, attention.norm.as_deref(), part_mut(&mut b.normed, n * d));
        self.run_heads(attention, n, b, kv)?;
        self.run_output(attention, n, b)
    }

    /// The heads of attention, from its input `b.normed` (n, d) into `b.mixed` (n, heads, head_dim).
    pub(crate) fn run_heads(
        &self,
        attention: &Attention,
        n: usize,
        b: &mut Buffers,
        kv: KvTarget<'_, '_>,
    ) -> Result<()> {
        let config = self.config();
        let team = &*self.inner.team;
        let d = config.hidden_size;
        let (q_size, kv_size) = (config.query_size(), config.key_value_size());
        let mut aside =
            Aside { acts: &mut b.acts, scratch: &mut b.scratch, low: &mut b.low, scaled: &mut b.scaled };
        let (q, k, v) = (
            part_mut(&mut b.q, n * q_size),
            part_mut(&mut b.k, n * kv_size),
            part_mut(&mut b.v, n * kv_size),
        );
        let linears = [&attention.query, &attention.key, &attention.value];
        project(team, linears, part(&b.normed, n * d), n, [q, k, v], &mut aside)?;

        let mixed = part_mut(&mut b.mixed, n * q_size);
        match kv {
            KvTarget::Sequence { cache, layer, at, segments } => {
                let table = RopeTable::of(attention.kind.rotary, &b.rope, &b.local_rope);
                let turn = |t: usize, heads: &mut [f32], weight: Option<&[f32]>| {
                    self.turn(heads, weight, table, position(at, segments, t));
                };
                rows(team, q, q_size, &|t, heads| turn(t, heads, attention.q_norm.as_deref()));
                rows(team, k, kv_size, &|t, heads| turn(t, heads, attention.k_norm.as_deref()));
                let whole = [Segment { at, tokens: n }];
                let mut begin = 0;
                for &Segment { at, tokens } in if segments.is_empty() { &whole } else { segments } {
                    let piece = |width: usize| begin * width..(begin + tokens) * width;
                    cache.write(
                        team,
                        layer,
                        at,
                        tokens,
                        slice(k, piece(kv_size)),
                        slice(v, piece(kv_size)),
                    )?;
                    let mixed = mixed.get_mut(piece(q_size)).unwrap_or_default();
                    self.attend(attention, cache, layer, at, slice(q, piece(q_size)), mixed)?;
                    begin += tokens;
                }
            }
            KvTarget::Sessions { sessions, layer } => {
                let failure = std::sync::Mutex::new(None);
                team.chunks_mut(sessions, 1, &|i, session| {
                    let [session] = session else { return };
                    let rows = [row(q, q_size, i), row(k, kv_size, i), row(v, kv_size, i)];
                    if let Err(error) = session.attend(layer, attention, rows) {
                        *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                    }
                });
                if let Some(error) = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
                    return Err(error);
                }
                for (session, to) in sessions.iter().zip(mixed.chunks_exact_mut(q_size)) {
                    to.copy_from_slice(session.mixed());
                }
            }
        }
        Ok(())
    }

    /// What attention adds to the residual stream: from its heads `b.mixed` (n, heads, head_dim) into `b.delta` (n, d).
    pub(crate) fn run_output(&self, attention: &Attention, n: usize, b: &mut Buffers) -> Result<()> {
        let team = &*self.inner.team;
        let mut aside =
            Aside { acts: &mut b.acts, scratch: &mut b.scratch, low: &mut b.low, scaled: &mut b.scaled };
        let delta = part_mut(&mut b.delta, n * self.config().hidden_size);
        let mixed = part(&b.mixed, n * self.config().query_size());
        project(team, [&attention.output], mixed, n, [&mut *delta], &mut aside)?;
        self.finish_branch(attention.after.as_deref(), delta);
        Ok(())
    }

    /// What attention or an MLP gets: the residual stream `x` (n, d), normed where there is a norm.
    pub(crate) fn norm_input(&self, x: &[f32], weight: Option<&[f32]>, out: &mut [f32]) {
        match weight {
            Some(weight) => norm(&self.inner.team, x, weight, self.config().rms_norm_eps, out),
            None => out.copy_from_slice(x),
        }
    }

    /// What attention's or an MLP's output `x` (n, d) passes before it is added to the residual stream.
    pub(crate) fn finish_branch(&self, weight: Option<&[f32]>, x: &mut [f32]) {
        let (team, config) = (&*self.inner.team, self.config());
        let (d, factor) = (config.hidden_size, config.scales.residual as f32);
        if let Some(weight) = weight {
            rows(team, x, d, &|_, x| norm_in_place(team.isa(), x, weight, config.rms_norm_eps as f32));
        }
        if factor != 1.0 {
            rows(team, x, d, &|_, x| x.iter_mut().for_each(|x| *x *= factor));
        }
    }

    /// Norms and turns the query or key heads of one token for its position.
    pub(crate) fn turn(
        &self,
        heads: &mut [f32],
        weight: Option<&[f32]>,
        table: Option<&RopeTable>,
        position: usize,
    ) {
        let isa = self.inner.team.isa();
        let (dim, eps) = (self.config().head_dim, self.config().rms_norm_eps as f32);
        if let Some(weight) = weight {
            // One head at a time, or all of them, as long as the weight is.
            for heads in heads.chunks_exact_mut(weight.len()) {
                norm_in_place(isa, heads, weight, eps);
            }
        }
        if let Some(RopeTable { cos, sin }) = table {
            float::rope(isa, heads, row(cos, dim / 2, position), row(sin, dim / 2, position));
        }
    }

    /// Queries `q` (n, heads, head_dim) at positions from `at` on over what the cache holds, into `mixed` of the same shape.
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
        float::attention(&self.inner.team, cache, layer, config.num_attention_heads, at, q, scores, mixed)?;
        Ok(())
    }

    /// An MLP from `b.normed` (n, d) into `b.delta` (n, d).
    pub(crate) fn run_mlp(&self, mlp: &Mlp, n: usize, b: &mut Buffers) -> Result<()> {
        if !mlp.fused {
            self.run_gates(mlp, n, b)?;
            return self.run_down(mlp, n, b);
        }
        let team = &*self.inner.team;
        let d = self.config().hidden_size;
        let delta = part_mut(&mut b.delta, n * d);
        b.acts.quantize_parallel(team, part(&b.normed, n * d), n, d)?;
        let (gate, up) = (mlp.gate.kernel()?, mlp.up.kernel()?);
        gate_up_silu(team, &gate, &up, &b.acts, &mut b.mlp_acts, &mut b.scratch)?;
        packed(team, [&mlp.down], &b.mlp_acts, [&mut *delta], &mut b.scratch)?;
        add_bias(team.isa(), &mlp.down, delta);
        Ok(())
    }

    /// The first half of an MLP that is not fused, from `b.normed` (n, d) into `b.gate` (n, f): the input of its down projection.
    pub(crate) fn run_gates(&self, mlp: &Mlp, n: usize, b: &mut Buffers) -> Result<()> {
        let team = &*self.inner.team;
        let isa = team.isa();
        let (d, f) = (self.config().hidden_size, mlp.gate.rows());
        let mut aside =
            Aside { acts: &mut b.acts, scratch: &mut b.scratch, low: &mut b.low, scaled: &mut b.scaled };
        let (gate, up) = (part_mut(&mut b.gate, n * f), part_mut(&mut b.up, n * f));
        project(team, [&mlp.gate, &mlp.up], part(&b.normed, n * d), n, [&mut *gate, &mut *up], &mut aside)?;
        match mlp.activation {
            Activation::Silu => {
                rows(team, gate, f, &|i, gate| sharp_quant::silu_mul(isa, gate, row(up, f, i)))
            }
            Activation::GeluTanh => rows(team, gate, f, &|i, gate| gelu_mul(gate, row(up, f, i))),
        }
        Ok(())
    }

    /// The second half, from `b.gate` (n, f) into `b.delta` (n, d).
    pub(crate) fn run_down(&self, mlp: &Mlp, n: usize, b: &mut Buffers) -> Result<()> {
        let (d, f) = (self.config().hidden_size, mlp.down.cols());
        let mut aside =
            Aside { acts: &mut b.acts, scratch: &mut b.scratch, low: &mut b.low, scaled: &mut b.scaled };
        let delta = part_mut(&mut b.delta, n * d);
        project(&self.inner.team, [&mlp.down], part(&b.gate, n * f), n, [delta], &mut aside)
    }

    /// Logits (n, vocab) of the rows of `hidden` (n, d), which have left the last layer.
    pub(crate) fn run_head(&self, hidden: &[f32], n: usize, b: &mut Buffers, out: &mut [f32]) -> Result<()> {
        let team = &*self.inner.team;
        let d = self.config().hidden_size;
        let normed = part_mut(&mut b.normed, n * d);
        norm(team, hidden, &self.inner.final_norm, self.config().rms_norm_eps, normed);
        let head = &self.inner.head;
        if head.is_packed() {
            b.acts.quantize_parallel(team, normed, n, d)?;
            let op = sharp_quant::MatOp { linear: head.packed()?.into(), out: &mut *out };
            matmul(team, &mut [op], &b.acts, &mut b.scratch)?;
        } else {
            let op = DenseOp { weight: head.dense()?, row_scale: None, add: false, out: &mut *out };
            float::dense_matmul(team, &mut [op], normed, n)?;
        }
        if let Some(cap) = self.config().scales.logit_cap.map(|c| c as f32) {
            rows(team, out, self.config().vocab_size, &|_, row| {
                row.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
            });
        }
        Ok(())
    }
}

/// `gate[i] = gelu(gate[i]) * up[i]`, the GELU by its tanh approximation.
fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    const ROOT_2_OVER_PI: f32 = 0.797_884_6;
    for (g, u) in gate.iter_mut().zip(up) {
        let x = *g;
        *g = 0.5 * x * (1.0 + (ROOT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh()) * u;
    }
}

fn norm_in_place(isa: Isa, head: &mut [f32], weight: &[f32], eps: f32) {
    let mean = float::dot(isa, head, head) / head.len().max(1) as f32;
    let inverse = 1.0 / (mean + eps).sqrt();
    for (x, w) in head.iter_mut().zip(weight) {
        *x = *x * inverse * w;
    }
}

fn run_ops(team: &Team, ops: [Option<DenseOp<'_>>; 5], x: &[f32], n: usize) -> Result<()> {
    match ops {
        [Some(a), None, None, None, None] => float::dense_matmul(team, &mut [a], x, n)?,
        [Some(a), Some(b), None, None, None] => float::dense_matmul(team, &mut [a, b], x, n)?,
        [Some(a), Some(b), Some(c), None, None] => float::dense_matmul(team, &mut [a, b, c], x, n)?,
        [Some(a), Some(b), Some(c), Some(d), None] => float::dense_matmul(team, &mut [a, b, c, d], x, n)?,
        [Some(a), Some(b), Some(c), Some(d), Some(e)] => {
            float::dense_matmul(team, &mut [a, b, c, d, e], x, n)?;
        }
        _ => {}
    }
    Ok(())
}

fn slice(x: &[f32], range: std::ops::Range<usize>) -> &[f32] {
    x.get(range).unwrap_or_default()
}

/// The first `len` values of a buffer, which was made large enough.
pub(crate) fn part(x: &[f32], len: usize) -> &[f32] {
    x.get(..len).unwrap_or_default()
}

/// The same for writing.
pub(crate) fn part_mut(x: &mut [f32], len: usize) -> &mut [f32] {
    x.get_mut(..len).unwrap_or_default()
}
