//! The gated MLP, `down(silu(gate x) ∘ up x)`, forwards and backwards.

use sharp_model::{ModelSource, PerProjection, Projection, Repair, Treatment, names};
use tch::{Kind, Tensor};

use crate::device::Compute;
use crate::error::Result;
use crate::forms::Flow;
use crate::gradients::Sink;
use crate::linear::Linear;
use crate::mlp_train::MlpTrain;
use crate::tensors::{dim, from_f32, from_ref};
use crate::weights::Weights;

/// One layer's MLP with its effective weights. Gate and up are one matrix.
#[derive(Debug)]
pub(crate) struct Mlp {
    /// `(2 f, d)`: gate, then up.
    pub(crate) gate_up: Linear,
    /// `(d, f)`.
    pub(crate) down: Linear,
    /// `f`
    inner: i64,
}

/// What the backward pass needs of a forward pass, in the products' number type.
#[derive(Debug)]
pub(crate) struct Kept {
    /// `(n, 2 f)`: gate's and up's outputs.
    gate_up: Tensor,
    /// `(n, d)`: the output.
    y: Tensor,
}

impl Mlp {
    /// Loads a layer's MLP with everything merged into plain weights; `None` where it was removed.
    pub(crate) fn load(source: &ModelSource, layer: usize, compute: &Compute) -> Result<Option<Self>> {
        let parts = PerProjection::try_from_fn(|p| source.projection(layer, p))?;
        if parts.values().any(|part| part.is_zero()) {
            return Ok(None);
        }
        let weights = PerProjection::try_from_fn(|p| {
            let part = &parts[p];
            from_f32(&part.effective_f32()?, &[part.out_features, part.in_features], compute.device)
        })?;
        let biases = match parts.values().all(|part| part.bias.is_some()) {
            false => None,
            true => Some(PerProjection::try_from_fn(|p| {
                let bias = parts[p].bias.as_ref().expect("every projection has a bias");
                from_ref(bias, compute.device)
            })?),
        };
        Self::from_parts(weights, biases, compute).map(Some)
    }

    /// Loads a layer's own three weights as they are stored.
    pub(crate) fn load_stored(all: Weights<'_>, layer: usize, compute: &Compute) -> Result<Self> {
        let get = |name: fn(usize, Projection) -> String| {
            PerProjection::try_from_fn(|p| all.tensor(&name(layer, p), compute.device))
        };
        let biases = all.source.config().mlp_bias.then(|| get(names::mlp_bias)).transpose()?;
        Self::from_parts(get(names::mlp_weight)?, biases, compute)
    }

    /// Makes an MLP of float32 weights `(out, in)` and their biases `(out)`, if any.
    pub(crate) fn from_parts(
        weights: PerProjection<Tensor>,
        biases: Option<PerProjection<Tensor>>,
        compute: &Compute,
    ) -> Result<Self> {
        let inner = weights.gate.size2()?.0;
        let joined = |gate: Tensor, up: Tensor| Tensor::f_cat(&[gate, up], 0);
        let (gate_up_bias, down_bias) = match biases {
            Some(PerProjection { gate, up, down }) => (Some(joined(gate, up)?), Some(down)),
            None => (None, None),
        };
        let PerProjection { gate, up, down } = weights;
        Ok(Self {
            gate_up: Linear::new(joined(gate, up)?, gate_up_bias, compute.precision)?,
            down: Linear::new(down, down_bias, compute.precision)?,
            inner,
        })
    }

    /// Copies the three weights `(out, in)` to float32, if they are not of that type.
    pub(crate) fn float_weights(&self) -> Result<PerProjection<Tensor>> {
        PerProjection::try_from_fn(|p| Ok(self.weight(p)?.f_to_kind(Kind::Float)?))
    }

    /// Makes an MLP of the same shape and biases with weights of its own, not yet set.
    pub(crate) fn blank(&self) -> Result<Self> {
        let blank = |l: &Linear| -> Result<Linear> {
            Ok(Linear { weight: l.weight.f_zeros_like()?, bias: l.bias.as_ref().map(Tensor::shallow_clone) })
        };
        Ok(Self { gate_up: blank(&self.gate_up)?, down: blank(&self.down)?, inner: self.inner })
    }

    /// Makes an MLP as [`Self::blank`] does, with as many neurons as a layer has under `treatment`.
    pub(crate) fn blank_for(&self, treatment: &Treatment) -> Result<Self> {
        let inner = match *treatment {
            Treatment::Prune { neurons } => dim(neurons)?,
            Treatment::Share { repair: Repair::Neurons { neurons }, .. } => self.inner + dim(neurons)?,
            Treatment::Share { .. } | Treatment::LowRank { .. } | Treatment::Drop => return self.blank(),
        };
        let outer = self.down.weight.size2()?.0;
        let zeros = |rows, cols| -> Result<Linear> {
            let like = (self.down.weight.f_kind()?, self.down.weight.device());
            Ok(Linear { weight: Tensor::f_zeros([rows, cols], like)?, bias: None })
        };
        Ok(Self { gate_up: zeros(2 * inner, outer)?, down: zeros(outer, inner)?, inner })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { gate_up: self.gate_up.shallow_clone(), down: self.down.shallow_clone(), inner: self.inner }
    }

    /// Combines these weights with the biases of `other`, as a layer does that uses this MLP without repair.
    pub(crate) fn with_biases_of(&self, other: &Self) -> Self {
        let mut mixed = self.shallow_clone();
        mixed.gate_up.bias = other.gate_up.bias.as_ref().map(Tensor::shallow_clone);
        mixed.down.bias = other.down.bias.as_ref().map(Tensor::shallow_clone);
        mixed
    }

    /// Returns one projection's weight `(out, in)`, sharing memory.
    pub(crate) fn weight(&self, projection: Projection) -> Result<Tensor> {
        Ok(match projection {
            Projection::Gate => self.gate_up.weight.f_narrow(0, 0, self.inner)?,
            Projection::Up => self.gate_up.weight.f_narrow(0, self.inner, self.inner)?,
            Projection::Down => self.down.weight.shallow_clone(),
        })
    }

    /// Computes `y (n, d)` from `x (n, d)` and keeps what the backward pass needs.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Kept> {
        let gate_up = self.gate_up.forward(x)?;
        let y = self.down.forward(&self.hidden(&gate_up)?)?;
        Ok(Kept { gate_up, y })
    }

    /// Computes gate's and up's outputs, each `(n, f)`, float32.
    pub(crate) fn inner(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.split(&self.gate_up.forward(x)?.f_to_kind(Kind::Float)?)
    }

    /// Computes `silu(gate) ∘ up`, `(n, f)`.
    fn hidden(&self, gate_up: &Tensor) -> Result<Tensor> {
        let (gate, up) = self.split(gate_up)?;
        let mut hidden = gate.f_silu()?;
        let _ = hidden.f_mul_(&up)?;
        Ok(hidden)
    }

    fn split(&self, gate_up: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((gate_up.f_narrow(1, 0, self.inner)?, gate_up.f_narrow(1, self.inner, self.inner)?))
    }

    /// Adds the gradients of what is trained to the sink, and computes that of `x (n, d)` if `want_dx`, in
    /// the products' number type.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        kept: &Kept,
        dy: &Tensor,
        train: Option<(&MlpTrain, &Sink<'_>)>,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let (gate, up) = self.split(&kept.gate_up)?;
        // Converted once for all products.
        let dy = &dy.f_to_kind(self.down.weight.f_kind()?)?;
        let d_hidden = self.down.input_grad(dy)?;
        let silu = gate.f_silu()?;
        if let Some((train, sink)) = train {
            let hidden = silu.f_mul(&up)?;
            let y = self.down.without_bias(&kept.y)?;
            let flow = Flow { x: &hidden, y: &y, dy, dx: Some(&d_hidden) };
            train.accumulate(Projection::Down, &self.down, &flow, sink)?;
        }
        let d_gate_up = kept.gate_up.f_empty_like()?;
        let (d_gate, d_up) = self.split(&d_gate_up)?;
        let _ = d_hidden.f_mul_out(&d_up, &silu)?;
        // The gate's: silu_backward(d_hidden ∘ up), `silu` reused as scratch.
        let _ = d_hidden.f_mul_out(&silu, &up)?;
        let _ = gate.f_silu_backward_grad_input(&d_gate, &silu)?;
        drop((silu, d_hidden));
        let Some((train, sink)) = train else {
            return if want_dx { Ok(Some(self.gate_up.input_grad(&d_gate_up)?)) } else { Ok(None) };
        };
        let apart = train.needs_input_grad();
        let own = |projection, dy: &Tensor| -> Result<Option<Tensor>> {
            if !apart {
                return Ok(None);
            }
            Ok(Some(dy.f_to_kind(Kind::Float)?.f_mm(&self.weight(projection)?.f_to_kind(Kind::Float)?)?))
        };
        let before_bias = self.gate_up.without_bias(&kept.gate_up)?;
        let (gate, up) = self.split(&before_bias)?;
        let dx_gate = own(Projection::Gate, &d_gate)?;
        let flow = Flow { x, y: &gate, dy: &d_gate, dx: dx_gate.as_ref() };
        train.accumulate(Projection::Gate, &self.gate_up, &flow, sink)?;
        let dx_up = own(Projection::Up, &d_up)?;
        let flow = Flow { x, y: &up, dy: &d_up, dx: dx_up.as_ref() };
        train.accumulate(Projection::Up, &self.gate_up, &flow, sink)?;
        Ok(match (want_dx, dx_gate, dx_up) {
            (false, ..) => None,
            (true, Some(gate), Some(up)) => Some(gate.f_add(&up)?),
            (true, ..) => Some(self.gate_up.input_grad(&d_gate_up)?),
        })
    }
}

impl Kept {
    /// Returns the output `(n, d)`.
    pub(crate) fn y(&self) -> &Tensor {
        &self.y
    }
}
