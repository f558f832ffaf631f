//! The closed-form start: what the reference cannot give, as the best low-rank map in the metric of the activations.
//!
//! Gate and up: the truncated singular value decomposition of `P (W_target − diag(s) W_ref) C^½`, `C` the second moment of
//! the inputs and `P` how much each hidden neuron matters for the output (whitening: SVD-LLM, Wang et al., arXiv
//! 2403.07378). Down: with gate and up in place, reduced-rank regression of what is missing from the output on the hidden
//! activations there really are (Izenman, 1975), so that it repairs the others' errors as far as it can.

use sharp_model::{LayerChange, Projection, Scales, Treatment};
use tch::{Kind, Tensor};

use super::{Activations, align, permuted};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::forms::{Pieces, form};
use crate::mlp::{Mlp, index};
use crate::pool::Pool;
use crate::tensors::{dim, scalar};

/// Rows of activations taken through the layer at once.
const ROWS: i64 = 1024;

/// Added to a second moment's diagonal, as a fraction of its mean: directions the data never showed get no large weights.
const RIDGE: f64 = 1e-4;

/// How much the target's neurons matter for its output.
#[derive(Debug)]
pub(crate) struct Importance {
    /// `E[(up silu'(gate))²] |down_j|²`: of an error in each gate row, `(f)`.
    pub(crate) gate: Tensor,
    /// `E[silu(gate)²] |down_j|²`: of an error in each up row, `(f)`.
    pub(crate) up: Tensor,
    /// `E[hidden²]`, `(f)`.
    pub(crate) hidden: Tensor,
}

/// Weighted second moments of a map's input and of input with output.
#[derive(Debug)]
pub(crate) struct Second {
    /// `E[x xᵀ]`, `(in, in)`, float64.
    pub(crate) xx: Tensor,
    /// `E[x yᵀ]`, `(in, out)`, float64.
    pub(crate) xy: Tensor,
}

/// See the module.
pub(crate) fn whitened(
    target: &LayerChange,
    original: &Mlp,
    reference: Option<&Mlp>,
    activations: &Activations,
    pool: &Pool<()>,
    compute: &Compute,
) -> Result<[Pieces; 3]> {
    let (metric, importance) = statistics(original, activations, pool)?;
    let aligned = match reference {
        None => original.share(),
        Some(reference) => {
            let order = align(target.treatment.scales(), original, reference, &metric, &importance)?;
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
    let mut all = [Pieces::default(), Pieces::default(), Pieces::default()];
    let metric64 = metric.f_to_kind(Kind::Double)?;
    for (projection, weight) in [(Projection::Gate, &importance.gate), (Projection::Up, &importance.up)] {
        let wanted = aligned.weight(projection)?.f_to_kind(Kind::Double)?;
        let base = reference
            .map(|r| r.weight(projection)?.f_to_kind(Kind::Double).map_err(Error::from))
            .transpose()?;
        let rank = dim(target.treatment.ranks()[projection])?;
        let mut pieces = scales(target.treatment.scales(), &wanted, base.as_ref(), &metric64)?;
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
        install(&target.treatment, &mut fitted, reference, projection, &pieces)?;
        put(&mut all, projection, pieces);
    }
    let second = hidden_moments(&fitted, original, activations, pool, inner, out_d)?;
    let base = reference.map(|r| r.down.weight.f_to_kind(Kind::Double)).transpose()?;
    let pieces = regression(
        target.treatment.scales(),
        base.as_ref(),
        &second,
        dim(target.treatment.ranks()[Projection::Down])?,
    )?;
    put(&mut all, Projection::Down, single(pieces)?);
    Ok(all)
}

fn put(all: &mut [Pieces; 3], projection: Projection, pieces: Pieces) {
    if let Some(place) = all.get_mut(index(projection)) {
        *place = pieces;
    }
}

/// To float32, contiguous.
fn single(pieces: Pieces) -> Result<Pieces> {
    let narrow = |t: Option<Tensor>| -> Result<Option<Tensor>> {
        t.map(|t| -> Result<Tensor> { Ok(t.f_to_kind(Kind::Float)?.f_contiguous()?) }).transpose()
    };
    Ok(Pieces {
        a: narrow(pieces.a)?,
        b: narrow(pieces.b)?,
        row: narrow(pieces.row)?,
        col: narrow(pieces.col)?,
        own: None,
    })
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

/// Row scales by least squares in the metric, where the form has them; column scales one.
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

/// The `A (rank, in)` and `B (out, rank)` that minimise `‖diag(rows) (W − B A) C^½‖`, all float64.
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

/// Spreads each component's size evenly over its row of `A` and its column of `B`: AdamW moves both at one rate.
fn balance(a: Tensor, b: Tensor) -> Result<(Tensor, Tensor)> {
    let tiny = 1e-12;
    let a_size = a.f_norm_scalaropt_dim(2, [1i64].as_slice(), false)?.f_clamp_min(tiny)?;
    let b_size = b.f_norm_scalaropt_dim(2, [0i64].as_slice(), false)?.f_clamp_min(tiny)?;
    let share = b_size.f_div(&a_size)?.f_sqrt()?;
    Ok((a.f_mul(&share.f_unsqueeze(1)?)?, b.f_div(&share)?))
}

/// Eigenvectors `(n, rank)` of the largest eigenvalues of a symmetric matrix `(n, n)`.
fn leading(symmetric: &Tensor, rank: i64) -> Result<Tensor> {
    let n = symmetric.size2()?.0;
    let (_, vectors) = symmetric.f_linalg_eigh("L")?;
    Ok(vectors.f_narrow(1, n - rank, rank)?.f_contiguous()?)
}

/// Lower Cholesky factor of `matrix + ridge`, the ridge a fraction of the mean diagonal, grown until it succeeds.
pub(super) fn cholesky(matrix: &Tensor, ridge: f64) -> Result<Tensor> {
    let n = matrix.size2()?.0;
    let mean = scalar(&matrix.f_trace()?)? / n.max(1) as f64;
    let identity = Tensor::f_eye(n, (Kind::Double, matrix.device()))?;
    let mut ridge = ridge;
    loop {
        let raised = matrix.f_add(&identity.f_mul_scalar(ridge * mean.max(1e-30))?)?;
        let (factor, info) = raised.f_linalg_cholesky_ex(false, false)?;
        if scalar(&info)? == 0.0 {
            return Ok(factor);
        }
        if ridge > 1.0 {
            return Err(Error::invalid("the activations' second moment is not finite"));
        }
        ridge *= 100.0;
    }
}

/// Row scales and rank-`rank` factors that best predict `y` from the hidden activations on top of a base `(out, in)`.
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
    // With x = L z (E[z zᵀ] = 1) the best full-rank map of z is M = L⁻¹ E[x rᵀ]; its leading right singular vectors are
    // the outputs' directions worth spending rank on.
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

/// The inputs' weighted second moment `(d, d)`, float32 of float64 sums, and how much each neuron matters.
fn statistics(mlp: &Mlp, activations: &Activations, pool: &Pool<()>) -> Result<(Tensor, Importance)> {
    let items: Vec<(Mlp, Activations)> =
        activations.chunks(ROWS)?.into_iter().map(|part| (mlp.share(), part)).collect();
    let mut sums: Option<[Tensor; 4]> = None;
    pool.run(
        "measuring activations",
        items,
        |_, (mlp, part)| {
            let weighted = part.x.f_mul(&part.weight)?;
            let xx = part.x.f_tr()?.f_mm(&weighted)?.f_to_kind(Kind::Double)?;
            let (gate, up) = mlp.inner(&part.x)?;
            let silu = gate.f_silu()?;
            let mean = |t: Tensor| -> Result<Tensor> {
                Ok(t.f_square()?.f_mul_(&part.weight)?.f_sum_dim_intlist(
                    [0i64].as_slice(),
                    false,
                    Kind::Double,
                )?)
            };
            let slope = gate.f_silu_backward(&up)?;
            Ok([xx, mean(slope)?, mean(silu.shallow_clone())?, mean(silu.f_mul(&up)?)?])
        },
        |part| {
            match &mut sums {
                None => sums = Some(part),
                Some(sums) => {
                    for (sum, part) in sums.iter_mut().zip(&part) {
                        let _ = sum.f_add_(part)?;
                    }
                }
            }
            Ok(())
        },
    )?;
    let [xx, gate, up, hidden] = sums.ok_or_else(|| Error::invalid("no activations to fit on"))?;
    let n = activations.rows()? as f64;
    let size = mlp.down.weight.f_to_kind(Kind::Double)?.f_square()?.f_sum_dim_intlist(
        [0i64].as_slice(),
        false,
        Kind::Double,
    )?;
    let mean = |t: Tensor| -> Result<Tensor> { Ok(t.f_mul_scalar(1.0 / n)?) };
    let float = |t: Tensor| -> Result<Tensor> { Ok(t.f_to_kind(Kind::Float)?) };
    Ok((
        float(mean(xx)?)?,
        Importance {
            gate: float(mean(gate)?.f_mul(&size)?)?,
            up: float(mean(up)?.f_mul(&size)?)?,
            hidden: float(mean(hidden)?)?,
        },
    ))
}

/// Moments of the hidden activations that `fitted`'s gate and up give, with the outputs wanted (less the down bias).
pub(super) fn hidden_moments(
    fitted: &Mlp,
    original: &Mlp,
    activations: &Activations,
    pool: &Pool<()>,
    inner: i64,
    outer: i64,
) -> Result<Second> {
    let device = activations.x.device();
    let mut second = Second {
        xx: Tensor::f_zeros([inner, inner], (Kind::Double, device))?,
        xy: Tensor::f_zeros([inner, outer], (Kind::Double, device))?,
    };
    let items: Vec<(Mlp, Mlp, Activations)> = activations
        .chunks(4 * ROWS)?
        .into_iter()
        .map(|part| (fitted.share(), original.share(), part))
        .collect();
    let n = activations.rows()? as f64;
    pool.run(
        "fitting the down projection",
        items,
        |_, (fitted, original, part)| {
            let (gate, up) = fitted.inner(&part.x)?;
            let hidden = gate.f_silu()?.f_mul_(&up)?;
            let weighted = hidden.f_mul(&part.weight)?;
            let y = original.down.without_bias(&part.y)?;
            let turned = weighted.f_tr()?;
            Ok((turned.f_mm(&hidden)?, turned.f_mm(&y)?))
        },
        |(xx, xy)| {
            let _ = second.xx.f_add_(&xx.f_mul_scalar(1.0 / n)?)?;
            let _ = second.xy.f_add_(&xy.f_mul_scalar(1.0 / n)?)?;
            Ok(())
        },
    )?;
    Ok(second)
}
