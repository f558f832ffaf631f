//! Which neurons of its own a layer keeps beside its reference's MLP, and what the two become together.
//!
//! The output wanted is `y`, the reference's is `b`, and the layer's own hidden activations are `h`. Neurons
//! are chosen by what `s ∘ b` leaves, with each channel's `s` fitted alone ([`super::pruned::select`]). Then
//! scales and down projection are fitted together: for channel `c` the normal equations of `s_c b_c + D_c h`
//! have the same `H = E[h hᵀ]` for every channel, and eliminating `D_c` leaves one number,
//! `s_c = (E[b y] − gᵀ H⁻¹ r) / (E[b²] − gᵀ H⁻¹ g)` with `g = E[h b_c]` and `r = E[h y_c]`.

use sharp_model::{PerProjection, Projection};
use tch::{Kind, Tensor};

use super::StartInput;
use super::moments::{Second, add, cholesky};
use super::pruned::{RIDGE, largest_neurons, select};
use crate::activations::Activations;
use crate::error::{Error, Result};
use crate::forms::Pieces;
use crate::mlp::Mlp;
use crate::pool::Pool;
use crate::tensors::dim;

/// Rows of activations that go through both MLPs together.
const ROWS: i64 = 2048;

/// Fits neurons and scales to the original's outputs.
pub(crate) fn fitted(keep: usize, input: &StartInput<'_>) -> Result<PerProjection<Pieces>> {
    let reference = input.reference.ok_or_else(|| Error::invalid("neurons beside no reference"))?;
    let Moments { second, by_reference, energy, overlap } =
        Moments::of(input.original, reference, input.activations, input.pool)?;
    let alone = ratio(&overlap, &energy, &energy)?;
    let left = Second {
        xx: second.xx.shallow_clone(),
        xy: second.xy.f_sub(&by_reference.f_mul(&alone.f_unsqueeze(0)?)?)?,
    };
    let kept = select(&left, dim(keep)?)?;

    let among = second.xx.f_index_select(0, &kept)?.f_index_select(1, &kept)?;
    let factor = cholesky(&among, RIDGE)?;
    let g = by_reference.f_index_select(0, &kept)?;
    let without = second.xy.f_index_select(0, &kept)?.f_cholesky_solve(&factor, false)?; // H⁻¹ r
    let through = g.f_cholesky_solve(&factor, false)?; // H⁻¹ g
    let product = |other: &Tensor| -> Result<Tensor> {
        Ok(g.f_mul(other)?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?)
    };
    let scale = ratio(&overlap.f_sub(&product(&without)?)?, &energy.f_sub(&product(&through)?)?, &energy)?;
    let down = without.f_sub(&through.f_mul(&scale.f_unsqueeze(0)?)?)?;
    pieces(input.original, &kept, down.f_tr()?, scale)
}

/// Keeps the layer's own largest neurons, with a down projection of zeros and scales of one: the layer begins
/// as its reference does.
pub(crate) fn silent(keep: usize, original: &Mlp) -> Result<PerProjection<Pieces>> {
    let kept = largest_neurons(keep, original)?;
    let down = original.down.weight.f_index_select(1, &kept)?.f_zeros_like()?;
    let scale = Tensor::f_ones([original.down.weight.size2()?.0], (Kind::Float, down.device()))?;
    pieces(original, &kept, down, scale)
}

fn pieces(original: &Mlp, kept: &Tensor, down: Tensor, scale: Tensor) -> Result<PerProjection<Pieces>> {
    let float = |t: Tensor| -> Result<Tensor> { Ok(t.f_to_kind(Kind::Float)?.f_contiguous()?) };
    let rows = |p| -> Result<Pieces> {
        let neurons = float(original.weight(p)?.f_index_select(0, kept)?)?;
        Ok(Pieces { neurons: Some(neurons), ..Pieces::default() })
    };
    Ok(PerProjection {
        gate: rows(Projection::Gate)?,
        up: rows(Projection::Up)?,
        down: Pieces { row: Some(float(scale)?), neurons: Some(float(down)?), ..Pieces::default() },
    })
}

/// Computes `numerator / denominator`, and 0 where the denominator is a rounding error of `energy`.
fn ratio(numerator: &Tensor, denominator: &Tensor, energy: &Tensor) -> Result<Tensor> {
    let usable = denominator.f_gt_tensor(&energy.f_mul_scalar(1e-6)?.f_clamp_min(1e-30)?)?;
    Ok(numerator.f_div(&denominator.f_where_scalarother(&usable, 1.0)?)?.f_mul_(&usable)?)
}

/// Weighted second moments of the layer's hidden activations `h (f)`, the reference's output `b (d)` and the
/// output wanted `y (d)`, float64 sums over the tokens.
struct Moments {
    /// Of `h`, and of `h` with `y`.
    second: Second,
    /// `E[h bᵀ]`, `(f, d)`.
    by_reference: Tensor,
    /// `E[b²]`, `(d)`.
    energy: Tensor,
    /// `E[b y]`, `(d)`.
    overlap: Tensor,
}

impl Moments {
    fn of(original: &Mlp, reference: &Mlp, activations: &Activations, pool: &Pool<()>) -> Result<Self> {
        let parts = activations.chunks(ROWS)?;
        let items = parts.into_iter().map(|part| (original.shallow_clone(), reference.shallow_clone(), part));
        let n = activations.rows()?.max(1) as f64;
        let mut sums: Option<[Tensor; 5]> = None;
        pool.run(
            "fitting neurons beside the reference",
            items.collect(),
            move |_, (original, reference, part)| {
                let (gate, up) = original.inner(&part.x)?;
                let hidden = gate.f_silu()?.f_mul_(&up)?;
                let beside = reference.forward(&part.x)?.y().f_to_kind(Kind::Float)?;
                let turned = hidden.f_mul(&part.weight)?.f_tr()?;
                let weighted = beside.f_mul(&part.weight)?;
                let mean =
                    |t: Tensor| -> Result<Tensor> { Ok(t.f_to_kind(Kind::Double)?.f_mul_scalar(1.0 / n)?) };
                let per_channel = |other: &Tensor| -> Result<Tensor> {
                    let along = [0i64];
                    mean(weighted.f_mul(other)?.f_sum_dim_intlist(along.as_slice(), false, Kind::Double)?)
                };
                Ok([
                    mean(turned.f_mm(&hidden)?)?,
                    mean(turned.f_mm(&part.y)?)?,
                    mean(turned.f_mm(&beside)?)?,
                    per_channel(&beside)?,
                    per_channel(&part.y)?,
                ])
            },
            |part| add(&mut sums, part),
        )?;
        let [xx, xy, by_reference, energy, overlap] =
            sums.ok_or_else(|| Error::invalid("no activations to fit on"))?;
        Ok(Self { second: Second { xx, xy }, by_reference, energy, overlap })
    }
}
