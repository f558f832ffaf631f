//! Which neurons a pruned MLP keeps, and what its down projection becomes.
//!
//! With `H` the second moment of the hidden activations and `W` the down projection's rows (one for each
//! neuron), the least squares solution on a set of neurons is `W = H⁻¹ E[h yᵀ]`, and without neuron `j` too
//! the error grows by `|W_j|² / (H⁻¹)_jj`: the optimal brain surgeon (Hassibi and Stork, 1992) for whole
//! neurons. The cheapest sixteenth goes at a time, `H⁻¹` and `W` follow, until as many are left as are
//! wanted; those that stay keep their gate and up rows, and the down projection repairs what it can.

use sharp_model::{PerProjection, Projection};
use tch::{Kind, Tensor};

use super::moments::{Second, cholesky, hidden_moments};
use crate::activations::Activations;
use crate::error::{Error, Result};
use crate::forms::Pieces;
use crate::mlp::Mlp;
use crate::pool::Pool;
use crate::tensors::{dim, size, to_vec};

/// Added to the second moment's diagonal, as a fraction of its mean.
pub(super) const RIDGE: f64 = 1e-3;

/// One over the fraction of the remaining neurons that is removed at a time.
const STEPS: i64 = 16;

/// Keeps the neurons with the largest weights ([`sharp_model::largest_neurons`]), unchanged.
pub(crate) fn largest(keep: usize, original: &Mlp) -> Result<PerProjection<Pieces>> {
    let kept = largest_neurons(keep, original)?;
    let down = original.down.weight.f_index_select(1, &kept)?;
    pieces(original, &kept, down)
}

/// Finds the neurons with the largest weights ([`sharp_model::largest_neurons`]); their numbers ascend.
pub(super) fn largest_neurons(keep: usize, original: &Mlp) -> Result<Tensor> {
    let values = |p| -> Result<Vec<f32>> { to_vec(&original.weight(p)?) };
    let [gate, up, down] = [values(Projection::Gate)?, values(Projection::Up)?, values(Projection::Down)?];
    let neurons = size(original.down.weight.size2()?.1);
    let kept = sharp_model::largest_neurons([&gate, &up, &down], neurons, keep);
    let kept = kept.into_iter().map(dim).collect::<Result<Vec<i64>>>()?;
    Ok(Tensor::f_from_slice(&kept)?.f_to_device(original.down.weight.device())?)
}

/// Keeps the neurons that explain the original's outputs best, with the down projection that does so.
pub(crate) fn fitted(
    keep: usize,
    original: &Mlp,
    activations: &Activations,
    pool: &Pool<()>,
) -> Result<PerProjection<Pieces>> {
    let (outer, inner) = original.down.weight.size2()?;
    let second = hidden_moments(original, original, activations, pool, inner, outer)?;
    let kept = select(&second, dim(keep)?)?;
    let down = solve(&second, &kept)?.0;
    pieces(original, &kept, down.f_tr()?)
}

fn pieces(original: &Mlp, kept: &Tensor, down: Tensor) -> Result<PerProjection<Pieces>> {
    let own = |t: Tensor| -> Result<Pieces> {
        Ok(Pieces { weight: Some(t.f_to_kind(Kind::Float)?.f_contiguous()?), ..Pieces::default() })
    };
    let rows = |p| -> Result<Pieces> { own(original.weight(p)?.f_index_select(0, kept)?) };
    Ok(PerProjection { gate: rows(Projection::Gate)?, up: rows(Projection::Up)?, down: own(down)? })
}

/// Chooses the `keep` neurons that stay; their numbers ascend.
pub(crate) fn select(second: &Second, keep: i64) -> Result<Tensor> {
    let neurons = second.xx.size2()?.0;
    if !(1..=neurons).contains(&keep) {
        return Err(Error::invalid(format!("{keep} of {neurons} neurons cannot be kept")));
    }
    let mut kept = Tensor::f_arange(neurons, (Kind::Int64, second.xx.device()))?;
    let (weights, factor) = solve(second, &kept)?;
    let mut explained = Explained { inverse: factor.f_cholesky_inverse(false)?, weights };
    let mut left = neurons;
    while left > keep {
        let going = (left / STEPS).max(1).min(left - keep);
        let order = explained.harm()?.f_argsort_stable(true, 0, true)?; // the dearest first
        let stay = order.f_narrow(0, 0, left - going)?.f_sort(0, false)?.0;
        let gone = order.f_narrow(0, left - going, going)?;
        explained = explained.without(&stay, &gone)?;
        kept = kept.f_index_select(0, &stay)?;
        left -= going;
    }
    Ok(kept)
}

/// The least squares fit of the outputs on a set of `k` neurons.
pub(crate) struct Explained {
    /// The inverse of their second moment, `(k, k)`.
    pub(crate) inverse: Tensor,
    /// The least squares down projection, transposed, `(k, d)`.
    pub(crate) weights: Tensor,
}

impl Explained {
    /// Computes by how much the squared error grows without each neuron, `(k)`.
    fn harm(&self) -> Result<Tensor> {
        let energy = self.weights.f_square()?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?;
        Ok(energy.f_div(&self.inverse.f_diagonal(0, 0, 1)?)?)
    }

    /// Computes the fit on the neurons `stay` alone, by eliminating the others, `gone`, which is exact.
    pub(crate) fn without(&self, stay: &Tensor, gone: &Tensor) -> Result<Self> {
        let inverse = self.inverse.f_index_select(0, stay)?;
        let across = inverse.f_index_select(1, gone)?;
        let among = self.inverse.f_index_select(0, gone)?.f_index_select(1, gone)?;
        let coefficients =
            across.f_tr()?.f_cholesky_solve(&among.f_linalg_cholesky(false)?, false)?.f_tr()?; // (stay, gone)
        let lost = self.weights.f_index_select(0, gone)?;
        Ok(Self {
            inverse: inverse.f_index_select(1, stay)?.f_sub(&coefficients.f_mm(&across.f_tr()?)?)?,
            weights: self.weights.f_index_select(0, stay)?.f_sub(&coefficients.f_mm(&lost)?)?,
        })
    }
}

/// Computes the least squares down projection, transposed `(k, d)`, on the neurons `kept (k)`, and the
/// Cholesky factor it comes from.
fn solve(second: &Second, kept: &Tensor) -> Result<(Tensor, Tensor)> {
    let moments = second.xx.f_index_select(0, kept)?.f_index_select(1, kept)?;
    let factor = cholesky(&moments, RIDGE)?;
    let weights = second.xy.f_index_select(0, kept)?.f_cholesky_solve(&factor, false)?;
    Ok((weights, factor))
}
