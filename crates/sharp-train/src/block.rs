//! One transformer layer, forwards and backwards. Frozen weights get no gradients, and nothing of libtorch's
//! own graph is built: the backward pass is written out, so it keeps only what it needs and stops where
//! nothing below is trained.

use sharp_model::{ModelSource, names};
use tch::{Kind, Tensor};

use crate::attention::{self, Attention, Batch};
use crate::device::Compute;
use crate::error::Result;
use crate::gradients::Sink;
use crate::mlp::{self, Mlp};
use crate::mlp_train::MlpTrain;
use crate::norm;
use crate::params::ParamId;
use crate::rope::Rope;
use crate::tensors::from_ref;
use crate::weights::Weights;

/// One layer's weights.
#[derive(Debug)]
pub(crate) struct Block {
    /// `(d)`
    pub(crate) input_norm: Tensor,
    pub(crate) attention: Attention,
    /// `(d)`
    pub(crate) mlp_norm: Tensor,
    /// `None` where the MLP was removed.
    pub(crate) mlp: Option<Mlp>,
    /// What attention's and the MLP's outputs are multiplied by, `(d)` each, in a layer's second run.
    pub(crate) gates: Option<Gates>,
    eps: f64,
}

/// One value for each of a layer's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gates<T = Tensor> {
    pub(crate) attention: T,
    pub(crate) mlp: T,
}

/// What of a layer is trained.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlockTrain {
    pub(crate) mlp: Option<MlpTrain>,
    pub(crate) input_norm: Option<ParamId>,
    pub(crate) mlp_norm: Option<ParamId>,
    pub(crate) gates: Option<Gates<ParamId>>,
}

impl BlockTrain {
    /// Lists the parameters that this layer's backward pass adds gradients to.
    pub(crate) fn parameters(&self) -> Vec<ParamId> {
        let norms = [self.input_norm, self.mlp_norm].into_iter().flatten();
        let gates = self.gates.iter().flat_map(|gates| [gates.attention, gates.mlp]);
        norms.chain(gates).chain(self.mlp.iter().flat_map(MlpTrain::parameters)).collect()
    }
}

/// What is the same for every layer of a backward pass.
pub(crate) struct BackwardPass<'a> {
    pub(crate) rope: &'a Rope,
    pub(crate) batch: Batch,
    pub(crate) sink: &'a Sink<'a>,
}

/// What the backward pass needs. All float32 `(n, d)` unless said otherwise, `n = sequences * time`.
#[derive(Debug)]
pub(crate) struct Kept {
    input: Tensor,
    /// `(n, 1)`
    input_inv: Tensor,
    attention: attention::Kept,
    /// Attention's output, where it is gated.
    attended: Option<Tensor>,
    middle: Tensor,
    /// `(n, 1)`
    middle_inv: Tensor,
    mlp: Option<mlp::Kept>,
}

impl Block {
    /// Loads one layer, its MLP's effective weights merged.
    pub(crate) fn load(source: &ModelSource, layer: usize, compute: &Compute) -> Result<Self> {
        let mlp = Mlp::load(source, layer, compute)?;
        Self::load_around(source, layer, mlp, compute)
    }

    /// Loads a layer's attention and norms around a given MLP.
    pub(crate) fn load_around(
        source: &ModelSource,
        layer: usize,
        mlp: Option<Mlp>,
        compute: &Compute,
    ) -> Result<Self> {
        let get = |name: String| from_ref(&source.tensor(&name)?, compute.device);
        Ok(Self {
            input_norm: get(names::input_norm(layer))?,
            attention: Attention::load(Weights::of(source), layer, compute)?,
            mlp_norm: get(names::mlp_norm(layer))?,
            mlp,
            gates: None,
            eps: source.config().rms_norm_eps,
        })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            input_norm: self.input_norm.shallow_clone(),
            attention: self.attention.shallow_clone(),
            mlp_norm: self.mlp_norm.shallow_clone(),
            mlp: self.mlp.as_ref().map(Mlp::shallow_clone),
            gates: self.gates.as_ref().map(Gates::shallow_clone),
            eps: self.eps,
        }
    }

    /// Computes the residual stream after attention, `(n, d)`.
    pub(crate) fn attend(&self, input: &Tensor, rope: &Rope, batch: Batch) -> Result<Tensor> {
        let (normed, _) = norm::forward(input, &self.input_norm, self.eps)?;
        let (out, _) = self.attention.forward(&normed, rope, batch)?;
        self.add_gated(input, &out, |gates| &gates.attention)
    }

    /// Computes the MLP's input `(n, d)` from the residual stream after attention.
    pub(crate) fn mlp_input(&self, middle: &Tensor) -> Result<Tensor> {
        Ok(norm::forward(middle, &self.mlp_norm, self.eps)?.0)
    }

    /// Computes the layer's output `(n, d)` and keeps nothing.
    pub(crate) fn forward(&self, input: &Tensor, rope: &Rope, batch: Batch) -> Result<Tensor> {
        let middle = self.attend(input, rope, batch)?;
        let Some(mlp) = &self.mlp else { return Ok(middle) };
        self.add_gated(&middle, mlp.forward(&self.mlp_input(&middle)?)?.y(), |gates| &gates.mlp)
    }

    /// Computes the layer's output `(n, d)` and what the backward pass needs.
    pub(crate) fn forward_keeping(&self, input: Tensor, rope: &Rope, batch: Batch) -> Result<(Tensor, Kept)> {
        let (normed, input_inv) = norm::forward(&input, &self.input_norm, self.eps)?;
        let (out, attention) = self.attention.forward(&normed, rope, batch)?;
        drop(normed);
        let middle = self.add_gated(&input, &out, |gates| &gates.attention)?;
        let attended = self.gates.is_some().then_some(out);
        let (normed, middle_inv) = norm::forward(&middle, &self.mlp_norm, self.eps)?;
        let mlp = self.mlp.as_ref().map(|mlp| mlp.forward(&normed)).transpose()?;
        let output = match &mlp {
            Some(mlp) => self.add_gated(&middle, mlp.y(), |gates| &gates.mlp)?,
            None => middle.shallow_clone(),
        };
        Ok((output, Kept { input, input_inv, attention, attended, middle, middle_inv, mlp }))
    }

    /// Takes the output's gradient `d (n, d)`, which is overwritten, to the input's; `None` unless
    /// `want_input`. Gradients of what is trained here go to the pass's sink.
    pub(crate) fn backward(
        &self,
        mut d: Tensor,
        kept: Kept,
        train: &BlockTrain,
        pass: &BackwardPass<'_>,
        want_input: bool,
    ) -> Result<Option<Tensor>> {
        let sink = pass.sink;
        let below_mlp = want_input || train.input_norm.is_some();
        if let (Some(mlp), Some(mlp_kept)) = (&self.mlp, &kept.mlp) {
            let x = norm::apply(&kept.middle, &kept.middle_inv, &self.mlp_norm)?;
            let trained = train.mlp.as_ref().map(|t| (t, sink));
            let want = below_mlp || train.mlp_norm.is_some();
            let dy = self.through_gate(&d, mlp_kept.y(), train.gates.map(|ids| ids.mlp), |g| &g.mlp, sink)?;
            if let Some(dx) = mlp.backward(&x, mlp_kept, &dy, trained, want)? {
                if let Some(id) = train.mlp_norm {
                    sink.add(id, &norm::weight_grad(&dx, &kept.middle, &kept.middle_inv)?)?;
                }
                if below_mlp {
                    norm::backward_onto(&mut d, &dx, &kept.middle, &kept.middle_inv, &self.mlp_norm)?;
                }
            }
        }
        if !below_mlp {
            return Ok(None);
        }
        let dy = match &kept.attended {
            None => d.shallow_clone(),
            Some(y) => {
                let id = train.gates.map(|ids| ids.attention);
                self.through_gate(&d, y, id, |gates| &gates.attention, sink)?
            }
        };
        let dx = self.attention.backward(&dy, &kept.attention, pass.rope, pass.batch)?;
        if let Some(id) = train.input_norm {
            sink.add(id, &norm::weight_grad(&dx, &kept.input, &kept.input_inv)?)?;
        }
        if !want_input {
            return Ok(None);
        }
        norm::backward_onto(&mut d, &dx, &kept.input, &kept.input_inv, &self.input_norm)?;
        Ok(Some(d))
    }

    /// Adds an output `y (n, d)` to the residual stream `x (n, d)`, gated in a second run.
    fn add_gated(&self, x: &Tensor, y: &Tensor, gate: impl Fn(&Gates) -> &Tensor) -> Result<Tensor> {
        Ok(match &self.gates {
            None => x.f_add(y)?,
            Some(gates) => x.f_add(&y.f_mul(gate(gates))?)?,
        })
    }

    /// Takes the gradient `d (n, d)` of what [`Self::add_gated`] gave to that of `y`. The gate's own goes to
    /// the sink.
    fn through_gate(
        &self,
        d: &Tensor,
        y: &Tensor,
        id: Option<ParamId>,
        gate: impl Fn(&Gates) -> &Tensor,
        sink: &Sink<'_>,
    ) -> Result<Tensor> {
        let Some(gates) = &self.gates else { return Ok(d.shallow_clone()) };
        if let Some(id) = id {
            sink.add(id, &d.f_mul(y)?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?)?;
        }
        Ok(d.f_mul(gate(gates))?)
    }
}

impl Gates {
    fn shallow_clone(&self) -> Self {
        Self { attention: self.attention.shallow_clone(), mlp: self.mlp.shallow_clone() }
    }
}
