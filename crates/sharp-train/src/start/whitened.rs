//! The closed-form start: what the reference cannot give, as the best low-rank map in the metric of the
//! activations.
//!
//! Gate and up: the truncated singular value decomposition of `P (W_target − diag(s) W_ref) C^½`, `C` the
//! second moment of the inputs and `P` how much each hidden neuron matters for the output (whitening:
//! SVD-LLM, Wang et al., arXiv 2403.07378). Down: with gate and up in place, reduced-rank regression of what
//! is missing from the output on the hidden activations there really are (Izenman, 1975), so that it repairs
//! the others' errors as far as it can.

use sharp_model::{PerProjection, Projection, Scales, Treatment};
use tch::{Kind, Tensor};

use super::align::{align, permuted};
use super::input::StartInput;
use super::moments::{Second, cholesky, hidden_moments, statistics};
use crate::error::{Error, Result};
use crate::forms::{Pieces, form};
use crate::mlp::Mlp;
use crate::tensors::dim;

/// Added to a second moment's diagonal, as a fraction of its mean: directions the data never showed get no
/// large weights.
const RIDGE: f64 = 1e-4;

/// Computes the closed-form start of a layer that shares an MLP or is low rank alone: row scales `(out)`, `A
/// (rank, in)` and `B (out, rank)` of each projection. Takes a few decompositions of `(d, d)` and `(f, f)`
/// matrices.
pub(crate) fn whitened(treatment: &Treatment, input: &StartInput<'_>) -> Result<PerProjection<Pieces>> {
    // A low-rank form has the same scales in all projections.
    let (form_scales, ranks) = (treatment.scales(Projection::Down), treatment.ranks());
    let StartInput { original, reference, activations, pool, compute, .. } = *input;
    let (metric, importance) = statistics(original, activations, pool)?;
    let aligned = match reference {
        None => original.shallow_clone(),
        Some(reference) => {
            let order = align(form_scales, original, reference, &metric, &importance)?;
            permuted(original, &order, compute)?
        }
    };
    // Importance in the aligned order, from the aligned weights: cheaper to recompute than to carry along.
    let importance = match reference {
        None => importance,
        Some(_) => statistics(&aligned, activations, pool)?.1,
    };
    let (out_d, inner) = original.down.weight.size2()?;
    let mut fitted = original.blank()?;
    fitted.gate_up.bias = aligned.gate_up.bias.as_ref().map(Tensor::shallow_clone);
    let mut all = PerProjection::<Pieces>::default();
    let metric64 = metric.f_to_kind(Kind::Double)?;
    for (projection, weight) in [(Projection::Gate, &importance.gate), (Projection::Up, &importance.up)] {
        let wanted = aligned.weight(projection)?.f_to_kind(Kind::Double)?;
        let base = reference
            .map(|r| r.weight(projection)?.f_to_kind(Kind::Double).map_err(Error::from))
            .transpose()?;
        let rank = dim(ranks[projection])?;
        let mut pieces = scales(form_scales, &wanted, base.as_ref(), &metric64)?;
        let rest = match &base {
            Some(base) => wanted.f_sub(&scaled(base, &pieces)?)?,
            None => wanted,
        };
        if rank > 0 {
            let rows = weight.f_to_kind(Kind::Double)?.f_sqrt()?;
            let (a, b) = truncated(&rest, &metric64, Some(&rows), rank)?;
            pieces.a = Some(a);
            pieces.b = Some(b);
        }
        let pieces = single(pieces)?;
        install(treatment, &mut fitted, reference, projection, &pieces)?;
        all[projection] = pieces;
    }
    let second = hidden_moments(&fitted, original, activations, pool, inner, out_d)?;
    let base = reference.map(|r| r.down.weight.f_to_kind(Kind::Double)).transpose()?;
    let pieces = regression(form_scales, base.as_ref(), &second, dim(ranks.down)?)?;
    all.down = single(pieces)?;
    Ok(all)
}

/// Converts pieces to contiguous float32.
fn single(pieces: Pieces) -> Result<Pieces> {
    pieces.try_map(|_, t| Ok(t.f_to_kind(Kind::Float)?.f_contiguous()?))
}

/// Writes an effective weight into `fitted`.
fn install(
    treatment: &Treatment,
    fitted: &mut Mlp,
    reference: Option<&Mlp>,
    projection: Projection,
    pieces: &Pieces,
) -> Result<()> {
    let form = form(treatment).ok_or_else(|| Error::invalid("direct sharing has nothing to fit"))?;
    let base =
        reference.map(|r| r.weight(projection)?.f_to_kind(Kind::Float).map_err(Error::from)).transpose()?;
    let mut place = fitted.weight(projection)?;
    let mut effective = Tensor::f_zeros(place.size(), (Kind::Float, place.device()))?;
    form.effective_into(&mut effective, base.as_ref(), pieces)?;
    place.f_copy_(&effective)?;
    Ok(())
}

/// Computes row scales by least squares in the metric, where the form has them; column scales are one.
fn scales(which: Scales, wanted: &Tensor, base: Option<&Tensor>, metric: &Tensor) -> Result<Pieces> {
    let mut pieces = Pieces::default();
    if let (Some(base), true) = (base, which.rows()) {
        let weighted = base.f_mm(metric)?;
        let along = |t: &Tensor| -> Result<Tensor> {
            Ok(weighted.f_mul(t)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?)
        };
        pieces.row = Some(along(wanted)?.f_div(&along(base)?.f_clamp_min(1e-30)?)?);
    }
    if let (Some(base), true) = (base, which.columns()) {
        pieces.col = Some(Tensor::f_ones([base.size2()?.1], (Kind::Double, base.device()))?);
    }
    Ok(pieces)
}

fn scaled(base: &Tensor, pieces: &Pieces) -> Result<Tensor> {
    match &pieces.row {
        Some(row) => Ok(base.f_mul(&row.f_unsqueeze(1)?)?),
        None => Ok(base.shallow_clone()),
    }
}

/// Computes the `A (rank, in)` and `B (out, rank)` that minimise `‖diag(rows) (W − B A) C^½‖`, all float64.
///
/// The right singular vectors of `D = diag(rows) W L` (`C = L Lᵀ`) are the eigenvectors `V` of `DᵀD`; then
/// `B A = W L V Vᵀ L⁻¹`, which needs no division by `rows`. The factors share the singular values evenly.
pub(crate) fn truncated(
    weight: &Tensor,
    metric: &Tensor,
    rows: Option<&Tensor>,
    rank: i64,
) -> Result<(Tensor, Tensor)> {
    let factor = cholesky(metric, 1e-9)?;
    let whitened = weight.f_mm(&factor)?;
    let weighted = match rows {
        Some(rows) => whitened.f_mul(&rows.f_unsqueeze(1)?)?,
        None => whitened.shallow_clone(),
    };
    let rank = rank.min(weighted.size2()?.1);
    let vectors = leading(&weighted.f_tr()?.f_mm(&weighted)?, rank)?;
    let b = whitened.f_mm(&vectors)?;
    // A Lᵀ... solved from the right: A = Vᵀ L⁻¹, that is A L = Vᵀ.
    let a = Tensor::f_linalg_solve_triangular(&factor, &vectors.f_tr()?, false, false, false)?;
    balance(a, b)
}

/// Spreads each component's size evenly over its row of `A` and its column of `B`: AdamW moves both at one
/// rate.
fn balance(a: Tensor, b: Tensor) -> Result<(Tensor, Tensor)> {
    let tiny = 1e-12;
    let a_size = a.f_norm_scalaropt_dim(2, [1i64].as_slice(), false)?.f_clamp_min(tiny)?;
    let b_size = b.f_norm_scalaropt_dim(2, [0i64].as_slice(), false)?.f_clamp_min(tiny)?;
    let ratio = b_size.f_div(&a_size)?.f_sqrt()?;
    Ok((a.f_mul(&ratio.f_unsqueeze(1)?)?, b.f_div(&ratio)?))
}

/// Computes the eigenvectors `(n, rank)` of the largest eigenvalues of a symmetric matrix `(n, n)`.
fn leading(symmetric: &Tensor, rank: i64) -> Result<Tensor> {
    let n = symmetric.size2()?.0;
    let (_, vectors) = symmetric.f_linalg_eigh("L")?;
    Ok(vectors.f_narrow(1, n - rank, rank)?.f_contiguous()?)
}

/// Computes the row scales and rank-`rank` factors that best predict `y` from the hidden activations on top
/// of a base `(out, in)`.
pub(crate) fn regression(which: Scales, base: Option<&Tensor>, second: &Second, rank: i64) -> Result<Pieces> {
    let mut pieces = Pieces::default();
    let mut missing = second.xy.shallow_clone(); // E[x (y − base x)ᵀ], (in, out)
    if let Some(base) = base {
        let through = second.xx.f_mm(&base.f_tr()?)?; // E[x (base x)ᵀ], (in, out)
        let mut taken = through.shallow_clone();
        if which.rows() {
            let transposed = base.f_tr()?;
            let along = |t: &Tensor| -> Result<Tensor> {
                Ok(transposed.f_mul(t)?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?)
            };
            let row = along(&second.xy)?.f_div(&along(&through)?.f_clamp_min(1e-30)?)?;
            taken = through.f_mul(&row)?;
            pieces.row = Some(row);
        }
        if which.columns() {
            pieces.col = Some(Tensor::f_ones([base.size2()?.1], (Kind::Double, base.device()))?);
        }
        missing = missing.f_sub(&taken)?;
    }
    if rank == 0 {
        return Ok(pieces);
    }
    let factor = cholesky(&second.xx, RIDGE)?;
    // With x = L z (E[z zᵀ] = 1) the best full-rank map of z is M = L⁻¹ E[x rᵀ]; its leading right singular
    // vectors are the outputs' directions worth spending rank on.
    let map = Tensor::f_linalg_solve_triangular(&factor, &missing, false, true, false)?; // (in, out)
    let rank = rank.min(map.size2()?.1);
    let b = leading(&map.f_tr()?.f_mm(&map)?, rank)?; // (out, rank)
    let projected = map.f_mm(&b)?; // (in, rank)
    let a = Tensor::f_linalg_solve_triangular(&factor.f_tr()?, &projected, true, true, false)?;
    let (a, b) = balance(a.f_tr()?.f_contiguous()?, b)?;
    pieces.a = Some(a);
    pieces.b = Some(b);
    Ok(pieces)
}
