//! What every form does with `B A`.

use tch::{Kind, Tensor};

use super::{Flow, Pieces};
use crate::error::Result;

/// `out += B A`, if there are factors.
pub(super) fn add_product(out: &mut Tensor, pieces: &Pieces) -> Result<()> {
    if let (Some(a), Some(b)) = (&pieces.a, &pieces.b) {
        let _ = out.f_addmm_(b, a)?;
    }
    Ok(())
}

/// `dA (r, in)` and `dB (out, r)`: `dB = dyᵀ (x Aᵀ)`, `dA = (dy B)ᵀ x`; 4 r (in + out) operations a token.
pub(super) fn gradients(pieces: &Pieces, flow: &Flow<'_>) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (Some(a), Some(b)) = (&pieces.a, &pieces.b) else { return Ok((None, None)) };
    let down = flow.x.f_mm(&a.f_tr()?)?;
    let db = flow.dy.f_tr()?.f_mm(&down)?;
    let up = flow.dy.f_mm(b)?;
    let da = up.f_tr()?.f_mm(flow.x)?;
    Ok((Some(da), Some(db)))
}

/// `dA` and `dB` from the effective weight's gradient.
pub(super) fn from_weight(pieces: &Pieces, dw: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (Some(a), Some(b)) = (&pieces.a, &pieces.b) else { return Ok((None, None)) };
    Ok((Some(b.f_tr()?.f_mm(dw)?), Some(dw.f_mm(&a.f_tr()?)?)))
}

/// `Σ p∘q` over dimension `along`.
pub(super) fn dot(p: &Tensor, q: &Tensor, along: i64) -> Result<Tensor> {
    Ok(p.f_mul(q)?.f_sum_dim_intlist([along].as_slice(), false, Kind::Float)?)
}

/// `numerator / scale`, and 0 where the scale is too near 0 for the quotient to mean anything.
pub(super) fn safe_ratio(numerator: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let usable = scale.f_abs()?.f_gt(1e-7)?;
    Ok(numerator.f_div(&scale.f_where_scalarother(&usable, 1.0)?)?.f_mul_(&usable)?)
}
