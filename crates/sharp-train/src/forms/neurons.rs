//! Another layer's MLP, scaled for each output channel, beside a few neurons of the layer's own.
//!
//! `y = s ∘ D_ref h_ref(x) + D h(x)`: the neurons are further rows of gate and up and further columns of
//! down, so that the layer stays one MLP to everybody else. Only the down projection has scales.

use tch::Tensor;

use super::factors::{self, need};
use super::form::{Flow, Form, Pieces, Size};
use crate::error::Result;

/// `[W_ref; N]` for gate and up, `[diag(row_scale) W_ref, N]` for down.
#[derive(Debug)]
pub struct Neurons;

impl Form for Neurons {
    fn name(&self) -> &str {
        "neurons"
    }

    fn shapes(&self, size: &Size) -> Pieces<Vec<usize>> {
        use sharp_model::Projection::{Down, Gate, Up};
        match size.projection {
            Gate | Up => Pieces { neurons: Some(vec![size.neurons, size.input]), ..Pieces::default() },
            Down => Pieces {
                row: Some(vec![size.out]),
                neurons: Some(vec![size.out, size.neurons]),
                ..Pieces::default()
            },
        }
    }

    fn effective_into(&self, out: &mut Tensor, reference: Option<&Tensor>, pieces: &Pieces) -> Result<()> {
        let parts = Parts::of(pieces)?;
        let (mut shared, mut own) = (parts.shared(out)?, parts.own(out)?);
        let reference = need(reference, "a reference weight")?;
        match parts.scale {
            None => shared.f_copy_(reference)?,
            Some(scale) => {
                let _ = reference.f_mul_out(&shared, &scale.f_unsqueeze(1)?)?;
            }
        }
        own.f_copy_(parts.neurons)?;
        Ok(())
    }

    fn gradients(&self, pieces: &Pieces, flow: &Flow<'_>) -> Result<Pieces> {
        let parts = Parts::of(pieces)?;
        let Some(scale) = parts.scale else {
            let neurons = parts.last(flow.dy)?.f_tr()?.f_mm(flow.x)?;
            return Ok(Pieces { neurons: Some(neurons), ..Pieces::default() });
        };
        let neurons = flow.dy.f_tr()?.f_mm(&parts.last(flow.x)?)?;
        // Without the reference's own output: `y = s∘u + N h`, so `s∘ds = Σ dy∘y − Σ_k N∘dN`.
        let product = factors::dot(flow.dy, flow.y, 0)?.f_sub(&factors::dot(parts.neurons, &neurons, 1)?)?;
        let row = factors::safe_ratio(&product, scale)?;
        Ok(Pieces { row: Some(row), neurons: Some(neurons), ..Pieces::default() })
    }

    fn weight_gradients(
        &self,
        reference: Option<&Tensor>,
        pieces: &Pieces,
        dw: &Tensor,
    ) -> Result<(Pieces, Option<Tensor>)> {
        let parts = Parts::of(pieces)?;
        let (shared, neurons) = (parts.shared(dw)?, parts.own(dw)?.f_contiguous()?);
        let Some(scale) = parts.scale else {
            let pieces = Pieces { neurons: Some(neurons), ..Pieces::default() };
            return Ok((pieces, Some(shared.f_contiguous()?)));
        };
        let row = factors::dot(&shared, need(reference, "a reference weight")?, 1)?;
        let d_ref = shared.f_mul(&scale.f_unsqueeze(1)?)?;
        Ok((Pieces { row: Some(row), neurons: Some(neurons), ..Pieces::default() }, Some(d_ref)))
    }
}

/// A projection's pieces. One with scales is the down projection, whose neurons are columns.
struct Parts<'a> {
    neurons: &'a Tensor,
    scale: Option<&'a Tensor>,
}

impl<'a> Parts<'a> {
    fn of(pieces: &'a Pieces) -> Result<Self> {
        let neurons = need(pieces.neurons.as_ref(), "neurons of the layer's own")?;
        Ok(Self { neurons, scale: pieces.row.as_ref() })
    }

    /// The dimension of a weight `(out, in)` along which neurons lie.
    fn along(&self) -> i64 {
        if self.scale.is_some() { 1 } else { 0 }
    }

    fn count(&self) -> Result<i64> {
        let (rows, columns) = self.neurons.size2()?;
        Ok(if self.scale.is_some() { columns } else { rows })
    }

    /// Returns the reference's part of a weight `(out, in)`, sharing memory.
    fn shared(&self, weight: &Tensor) -> Result<Tensor> {
        let all = weight.size()[self.along() as usize];
        Ok(weight.f_narrow(self.along(), 0, all - self.count()?)?)
    }

    /// Returns the neurons' part of a weight `(out, in)`, sharing memory.
    fn own(&self, weight: &Tensor) -> Result<Tensor> {
        let (all, count) = (weight.size()[self.along() as usize], self.count()?);
        Ok(weight.f_narrow(self.along(), all - count, count)?)
    }

    /// Returns the neurons' columns of activations `(n, f + k)`.
    fn last(&self, activations: &Tensor) -> Result<Tensor> {
        let (all, count) = (activations.size2()?.1, self.count()?);
        Ok(activations.f_narrow(1, all - count, count)?)
    }
}
