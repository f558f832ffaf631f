//! The gated MLP, `down(silu(gate x) ∘ up x)`, forwards and backwards, and what of it is trained.

use sharp_model::{ModelSource, Projection, Treatment, names};
use tch::{Kind, Tensor};

use crate::device::Compute;
use crate::error::{Error, Result};
use crate::finetune::Turn;
use crate::forms::{Flow, Form, Pieces};
use crate::linear::Linear;
use crate::params::{Layout, ParamId};
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

/// What the way back needs of a forward pass, in the products' number type.
#[derive(Debug)]
pub(crate) struct Saved {
    /// `(n, 2 f)`: gate's and up's outputs.
    gate_up: Tensor,
    /// `(n, d)`: the output.
    y: Tensor,
}

impl Mlp {
    /// A layer's MLP with everything merged into plain weights; `None` where it was removed.
    pub(crate) fn load(source: &ModelSource, layer: usize, compute: &Compute) -> Result<Option<Self>> {
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for projection in Projection::ALL {
            let part = source.projection(layer, projection)?;
            if part.is_zero() {
                return Ok(None);
            }
            weights.push(from_f32(
                &part.effective_f32()?,
                &[part.out_features, part.in_features],
                compute.device,
            )?);
            if let Some(bias) = &part.bias {
                biases.push(from_ref(bias, compute.device)?);
            }
        }
        Self::from_parts(weights, biases, source.config().intermediate_size, compute).map(Some)
    }

    /// A layer's own three weights as they are stored.
    pub(crate) fn load_stored(all: Weights<'_>, layer: usize, compute: &Compute) -> Result<Self> {
        let config = all.source.config();
        let get = |name: fn(usize, Projection) -> String| -> Result<Vec<Tensor>> {
            Projection::ALL.iter().map(|&p| all.tensor(&name(layer, p), compute.device)).collect()
        };
        let biases = if config.mlp_bias { get(names::mlp_bias)? } else { Vec::new() };
        Self::from_parts(get(names::mlp_weight)?, biases, config.intermediate_size, compute)
    }

    /// From `[gate, up, down]` and their biases, if any.
    fn from_parts(
        weights: Vec<Tensor>,
        biases: Vec<Tensor>,
        inner: usize,
        compute: &Compute,
    ) -> Result<Self> {
        let [gate, up, down] = <[Tensor; 3]>::try_from(weights)
            .map_err(|_| Error::invalid("an MLP has three weights".to_owned()))?;
        let (outer_bias, down_bias) = match <[Tensor; 3]>::try_from(biases) {
            Ok([gate, up, down]) => (Some(Tensor::f_cat(&[gate, up], 0)?), Some(down)),
            Err(_) => (None, None),
        };
        Ok(Self {
            gate_up: Linear::new(Tensor::f_cat(&[gate, up], 0)?, outer_bias, compute.precision)?,
            down: Linear::new(down, down_bias, compute.precision)?,
            inner: dim(inner)?,
        })
    }

    /// From three float32 weights `(out, in)` without biases.
    pub(crate) fn from_weights(gate: Tensor, up: Tensor, down: Tensor, compute: &Compute) -> Result<Self> {
        let inner = usize::try_from(gate.size2()?.0).unwrap_or(0);
        Self::from_parts(vec![gate, up, down], Vec::new(), inner, compute)
    }

    /// A new MLP of the same shape and biases with weights of its own, not yet set.
    pub(crate) fn blank(&self) -> Result<Self> {
        let blank = |l: &Linear| -> Result<Linear> {
            Ok(Linear { weight: l.weight.f_zeros_like()?, bias: l.bias.as_ref().map(Tensor::shallow_clone) })
        };
        Ok(Self { gate_up: blank(&self.gate_up)?, down: blank(&self.down)?, inner: self.inner })
    }

    /// The same in the shape that `treatment` asks for: with fewer neurons where it is pruned.
    pub(crate) fn blank_for(&self, treatment: &Treatment) -> Result<Self> {
        let Treatment::Prune { neurons } = *treatment else { return self.blank() };
        let inner = dim(neurons)?;
        let outer = self.down.weight.size2()?.0;
        let zeros = |rows, cols| -> Result<Linear> {
            let like = (self.down.weight.f_kind()?, self.down.weight.device());
            Ok(Linear { weight: Tensor::f_zeros([rows, cols], like)?, bias: None })
        };
        Ok(Self { gate_up: zeros(2 * inner, outer)?, down: zeros(outer, inner)?, inner })
    }

    pub(crate) fn share(&self) -> Self {
        Self { gate_up: self.gate_up.share(), down: self.down.share(), inner: self.inner }
    }

    /// One projection's weight `(out, in)`, sharing memory.
    pub(crate) fn weight(&self, projection: Projection) -> Result<Tensor> {
        Ok(match projection {
            Projection::Gate => self.gate_up.weight.f_narrow(0, 0, self.inner)?,
            Projection::Up => self.gate_up.weight.f_narrow(0, self.inner, self.inner)?,
            Projection::Down => self.down.weight.shallow_clone(),
        })
    }

    /// `x (n, d)` to `y (n, d)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Saved> {
        let gate_up = self.gate_up.forward(x)?;
        let y = self.down.forward(&self.hidden(&gate_up)?)?;
        Ok(Saved { gate_up, y })
    }

    /// Gate's and up's outputs, each `(n, f)`, float32.
    pub(crate) fn inner(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.split(&self.gate_up.forward(x)?.f_to_kind(Kind::Float)?)
    }

    /// `silu(gate) ∘ up`, `(n, f)`.
    fn hidden(&self, gate_up: &Tensor) -> Result<Tensor> {
        let (gate, up) = self.split(gate_up)?;
        let mut hidden = gate.f_silu()?;
        let _ = hidden.f_mul_(&up)?;
        Ok(hidden)
    }

    fn split(&self, gate_up: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((gate_up.f_narrow(1, 0, self.inner)?, gate_up.f_narrow(1, self.inner, self.inner)?))
    }

    /// Gradients: of what is trained into `sink`, and of `x (n, d)` if it is wanted, in the products' number type.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        saved: &Saved,
        dy: &Tensor,
        train: Option<(&MlpTrain, &Sink<'_>)>,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let (gate, up) = self.split(&saved.gate_up)?;
        // Converted once for all products.
        let dy = &dy.f_to_kind(self.down.weight.f_kind()?)?;
        let d_hidden = self.down.input_grad(dy)?;
        let silu = gate.f_silu()?;
        if let Some((train, sink)) = train {
            let hidden = silu.f_mul(&up)?;
            let y = self.down.without_bias(&saved.y)?;
            let flow = Flow { x: &hidden, y: &y, dy, dx: Some(&d_hidden) };
            train.accumulate(Projection::Down, &self.down, &flow, sink)?;
        }
        let d_gate_up = saved.gate_up.f_empty_like()?;
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
        let before_bias = self.gate_up.without_bias(&saved.gate_up)?;
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

impl Saved {
    /// The output `(n, d)`.
    pub(crate) fn y(&self) -> &Tensor {
        &self.y
    }
}

/// Where gradients go: a flat tensor, and the values they belong to.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    pub(crate) layout: &'a Layout,
    /// Values, `(total)`.
    pub(crate) values: &'a Tensor,
    /// Gradients, `(total)`, added to.
    pub(crate) grad: &'a Tensor,
    /// Where others add to the same gradients: when it is this one's turn.
    pub(crate) turn: Option<&'a Turn>,
}

impl Sink<'_> {
    pub(crate) fn value(&self, id: ParamId) -> Result<Tensor> {
        self.layout.view(self.values, id)
    }

    pub(crate) fn add(&self, id: ParamId, grad: &Tensor) -> Result<()> {
        if let Some(turn) = self.turn {
            turn.wait(id);
        }
        let _ = self.layout.view(self.grad, id)?.f_add_(grad)?;
        Ok(())
    }
}

/// One projection's recovery parameters by number.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PieceIds {
    pub(crate) a: Option<ParamId>,
    pub(crate) b: Option<ParamId>,
    pub(crate) row: Option<ParamId>,
    pub(crate) col: Option<ParamId>,
    pub(crate) own: Option<ParamId>,
}

impl PieceIds {
    /// The values, as views.
    pub(crate) fn pieces(&self, layout: &Layout, flat: &Tensor) -> Result<Pieces> {
        let get = |id: Option<ParamId>| id.map(|id| layout.view(flat, id)).transpose();
        Ok(Pieces {
            a: get(self.a)?,
            b: get(self.b)?,
            row: get(self.row)?,
            col: get(self.col)?,
            own: get(self.own)?,
        })
    }
}

/// What of an MLP is trained.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one for each layer, never moved in a loop")]
pub(crate) enum MlpTrain {
    /// A target's recovery parameters, and the reference's weights with it if those are trained too.
    Recovery {
        form: &'static dyn Form,
        /// In the order of [`Projection::ALL`].
        ids: [PieceIds; 3],
        /// The reference's own parameters, in the same order, where they are trained.
        shared: Option<[ParamId; 3]>,
    },
    /// A reference's own weights.
    Own([ParamId; 3]),
}

impl MlpTrain {
    pub(crate) fn share(&self) -> Self {
        match self {
            Self::Recovery { form, ids, shared } => {
                Self::Recovery { form: *form, ids: *ids, shared: *shared }
            }
            Self::Own(ids) => Self::Own(*ids),
        }
    }

    fn needs_input_grad(&self) -> bool {
        matches!(self, Self::Recovery { form, shared: None, .. } if form.needs_input_grad())
    }

    fn accumulate(
        &self,
        projection: Projection,
        linear: &Linear,
        flow: &Flow<'_>,
        sink: &Sink<'_>,
    ) -> Result<()> {
        let which = index(projection);
        let weight_grad = || linear.weight_grad(flow.x, flow.dy);
        match self {
            Self::Own(ids) => match ids.get(which) {
                Some(&id) => sink.add(id, &weight_grad()?),
                None => Ok(()),
            },
            Self::Recovery { form, ids, shared } => {
                let Some(ids) = ids.get(which) else { return Ok(()) };
                let pieces = ids.pieces(sink.layout, sink.values)?;
                let grads = match shared.as_ref().and_then(|s| s.get(which)) {
                    None if form.needs_weight_grad() => {
                        form.weight_gradients(None, &pieces, &weight_grad()?)?.0
                    }
                    None => {
                        let float = |t: &Tensor| t.f_to_kind(Kind::Float);
                        let (x, y, dy) = (float(flow.x)?, float(flow.y)?, float(flow.dy)?);
                        let dx = flow.dx.map(float).transpose()?;
                        form.gradients(&pieces, &Flow { x: &x, y: &y, dy: &dy, dx: dx.as_ref() })?
                    }
                    Some(&reference) => {
                        let weight = sink.value(reference)?;
                        let (grads, d_ref) =
                            form.weight_gradients(Some(&weight), &pieces, &weight_grad()?)?;
                        if let Some(d_ref) = d_ref {
                            sink.add(reference, &d_ref)?;
                        }
                        grads
                    }
                };
                let parts = [
                    (ids.a, grads.a),
                    (ids.b, grads.b),
                    (ids.row, grads.row),
                    (ids.col, grads.col),
                    (ids.own, grads.own),
                ];
                for (id, grad) in parts {
                    if let (Some(id), Some(grad)) = (id, grad) {
                        sink.add(id, &grad)?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// A projection's place in [`Projection::ALL`].
pub(crate) fn index(projection: Projection) -> usize {
    match projection {
        Projection::Gate => 0,
        Projection::Up => 1,
        Projection::Down => 2,
    }
}
