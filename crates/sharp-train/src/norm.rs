//! RMS norm over the last dimension, forwards and backwards.

use tch::{Kind, Tensor};

use crate::error::Result;

/// Computes `x * inv * weight` and `inv (…, 1)`, the inverse root mean square. `x (…, n)`, `weight (n)` or
/// broadcastable.
pub(crate) fn forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let inv = inverse(x, eps)?;
    Ok((apply(x, &inv, weight)?, inv))
}

/// Computes `x * inv * weight` with a known `inv`.
pub(crate) fn apply(x: &Tensor, inv: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut out = x.f_mul(inv)?;
    let _ = out.f_mul_(weight)?;
    Ok(out)
}

/// Computes `1 / sqrt(mean(x²) + eps)`, `(…, 1)`.
pub(crate) fn inverse(x: &Tensor, eps: f64) -> Result<Tensor> {
    let n = width(x);
    let norm = x.f_norm_scalaropt_dim(2, [-1i64].as_slice(), true)?;
    Ok(norm.f_square()?.f_mul_scalar(1.0 / n)?.f_add_scalar(eps)?.f_rsqrt()?)
}

/// Adds the gradient with respect to `x` onto `into`, given the output's gradient `dy`, all `(…, n)`.
pub(crate) fn backward_onto(
    into: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    inv: &Tensor,
    weight: &Tensor,
) -> Result<()> {
    let n = width(x);
    let weighted = dy.f_mul(weight)?;
    let along = weighted.f_mul(x)?.f_sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)?;
    let coefficient = inv.f_pow_tensor_scalar(3)?.f_mul_(&along)?.f_mul_scalar_(-1.0 / n)?;
    let _ = into.f_addcmul_(&weighted, inv)?.f_addcmul_(x, &coefficient)?;
    Ok(())
}

/// Computes the gradient with respect to the weight `(n)` from `dy` and `x` of `(rows, n)`.
pub(crate) fn weight_grad(dy: &Tensor, x: &Tensor, inv: &Tensor) -> Result<Tensor> {
    Ok(x.f_mul(inv)?.f_mul_(dy)?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?)
}

/// Returns the size of the last dimension.
fn width(x: &Tensor) -> f64 {
    *x.size().last().expect("a norm is of vectors") as f64
}
