//! What forms have in common: `B A`, sums over rows, and pieces that must be there.

use tch::{Kind, Tensor};

use super::form::{Flow, Pieces, Size};
use crate::error::{Error, Result};

/// Returns the shapes of the factors of a projection; without any where the rank is 0.
pub(super) fn shapes(size: &Size) -> Pieces<Vec<usize>> {
    let Size { out, input, rank, .. } = *size;
    if rank == 0 {
        return Pieces::default();
    }
    Pieces { a: Some(vec![rank, input]), b: Some(vec![out, rank]), ..Pieces::default() }
}

/// Returns a piece or reference that must be there.
pub(super) fn need<'a>(piece: Option<&'a Tensor>, what: &str) -> Result<&'a Tensor> {
    piece.ok_or_else(|| Error::invalid(format!("the recovery form needs {what}, which is missing")))
}

/// Adds `B A` to `out`, if there are factors.
pub(super) fn add_product(out: &mut Tensor, pieces: &Pieces) -> Result<()> {
    if let (Some(a), Some(b)) = (&pieces.a, &pieces.b) {
        let _ = out.f_addmm_(b, a)?;
    }
    Ok(())
}

/// Computes `dA (r, in)` and `dB (out, r)`: `dB = dyᵀ (x Aᵀ)`, `dA = (dy B)ᵀ x`; 4 r (in + out) operations a
/// token.
pub(super) fn gradients(pieces: &Pieces, flow: &Flow<'_>) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (Some(a), Some(b)) = (&pieces.a, &pieces.b) else { return Ok((None, None)) };
    let down = flow.x.f_mm(&a.f_tr()?)?;
    let db = flow.dy.f_tr()?.f_mm(&down)?;
    let up = flow.dy.f_mm(b)?;
    let da = up.f_tr()?.f_mm(flow.x)?;
    Ok((Some(da), Some(db)))
}

/// Computes `dA` and `dB` from the effective weight's gradient.
pub(super) fn from_weight(pieces: &Pieces, dw: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (Some(a), Some(b)) = (&pieces.a, &pieces.b) else { return Ok((None, None)) };
    Ok((Some(b.f_tr()?.f_mm(dw)?), Some(dw.f_mm(&a.f_tr()?)?)))
}

/// Computes `Σ p∘q` over dimension `along`.
pub(super) fn dot(p: &Tensor, q: &Tensor, along: i64) -> Result<Tensor> {
    Ok(p.f_mul(q)?.f_sum_dim_intlist([along].as_slice(), false, Kind::Float)?)
}

/// Computes `numerator / scale`, and 0 where the scale is too near 0 for the quotient to mean anything.
pub(super) fn safe_ratio(numerator: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let usable = scale.f_abs()?.f_gt(1e-7)?;
    Ok(numerator.f_div(&scale.f_where_scalarother(&usable, 1.0)?)?.f_mul_(&usable)?)
}
