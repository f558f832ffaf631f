//! Hidden neurons of an MLP can be permuted freely; the target's are put in the order in which the reference
//! serves them best (the idea of Git Re-Basin, Ainsworth et al., arXiv 2209.04836, with the activations'
//! metric).

use sharp_model::{PerProjection, Projection, Scales};
use tch::{Kind, Tensor};

use super::assignment::assign;
use super::moments::Importance;
use crate::device::Compute;
use crate::error::Result;
use crate::mlp::Mlp;
use crate::tensors::{self, to_vec};

/// Finds, for each of the reference's neurons, the layer's own neuron to put in its place, `(f)` int64.
///
/// `metric (d, d)` is the second moment of the MLP's inputs. What is maximised is the output energy that a
/// neuron pair explains, gate, up and down together: for scaled forms with the best scale, otherwise with the
/// reference as it is.
pub(crate) fn align(
    scales: Scales,
    target: &Mlp,
    reference: &Mlp,
    metric: &Tensor,
    importance: &Importance,
) -> Result<Tensor> {
    let (_, f) = target.down.weight.size2()?;
    let mut gain = Tensor::f_zeros([f, f], (Kind::Float, metric.device()))?; // (target, reference)
    for (projection, weight) in [(Projection::Gate, &importance.gate), (Projection::Up, &importance.up)] {
        let theirs = target.weight(projection)?.f_to_kind(Kind::Float)?;
        let ours = reference.weight(projection)?.f_to_kind(Kind::Float)?;
        let ours_metric = ours.f_mm(metric)?;
        let cross = theirs.f_mm(&ours_metric.f_tr()?)?;
        let size = ours_metric.f_mul(&ours)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
        let part = explained(scales, &cross, &size)?;
        let _ = gain.f_add_(&part.f_mul(&weight.f_unsqueeze(1)?)?)?;
    }
    let theirs = target.down.weight.f_to_kind(Kind::Float)?;
    let ours = reference.down.weight.f_to_kind(Kind::Float)?;
    let cross = theirs.f_tr()?.f_mm(&ours)?;
    let size = ours.f_square()?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?;
    // The down projection's scales belong to outputs, not to neurons: a pair of opposite sign explains
    // nothing.
    let part = match scales.rows() {
        true => explained(scales, &cross.f_clamp_min(0.0)?, &size)?,
        false => explained(scales, &cross, &size)?,
    };
    let _ = gain.f_add_(&part.f_mul(&importance.hidden.f_unsqueeze(1)?)?)?;
    let n = tensors::size(f);
    // Rows of the assignment are the reference's neurons, columns the target's.
    let cost = to_vec(&gain.f_tr()?.f_neg()?)?;
    let order: Vec<i64> = assign(&cost, n).into_iter().map(|i| i as i64).collect();
    Ok(Tensor::f_from_slice(&order)?.f_to_device(metric.device())?)
}

/// Computes how much of each target row's energy a reference row explains, from inner products `cross
/// (target, reference)` and the reference rows' squared sizes `(reference)`; up to a term of the target's
/// own.
fn explained(scales: Scales, cross: &Tensor, size: &Tensor) -> Result<Tensor> {
    if scales.rows() {
        return Ok(cross.f_square()?.f_div(&size.f_clamp_min(1e-20)?)?);
    }
    Ok(cross.f_mul_scalar(2.0)?.f_sub(size)?)
}

/// Returns an MLP of the same function with its hidden neurons in the order `order (f)`.
pub(crate) fn permuted(mlp: &Mlp, order: &Tensor, compute: &Compute) -> Result<Mlp> {
    let order = order.f_to_device(mlp.down.weight.device())?;
    let rows =
        |p| -> Result<Tensor> { Ok(mlp.weight(p)?.f_index_select(0, &order)?.f_to_kind(Kind::Float)?) };
    let down = mlp.down.weight.f_index_select(1, &order)?.f_to_kind(Kind::Float)?;
    let weights = PerProjection { gate: rows(Projection::Gate)?, up: rows(Projection::Up)?, down };
    let mut new = Mlp::from_parts(weights, None, compute)?;
    new.down.bias = mlp.down.bias.as_ref().map(Tensor::shallow_clone);
    if let Some(bias) = &mlp.gate_up.bias {
        let f = order.size1()?;
        let part =
            |start: i64| -> Result<Tensor> { Ok(bias.f_narrow(0, start, f)?.f_index_select(0, &order)?) };
        new.gate_up.bias = Some(Tensor::f_cat(&[part(0)?, part(f)?], 0)?);
    }
    Ok(new)
}
