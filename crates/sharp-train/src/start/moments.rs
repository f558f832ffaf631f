//! Weighted second moments of a layer's activations, and what they say about its neurons.

use tch::{Kind, Tensor};

use crate::activations::Activations;
use crate::error::{Error, Result};
use crate::mlp::Mlp;
use crate::pool::Pool;
use crate::tensors::scalar;

/// Rows of activations that go through the layer together.
const ROWS: i64 = 1024;

/// How much each neuron matters for the MLP's output.
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

/// Computes the inputs' weighted second moment `(d, d)`, float32 of float64 sums, and how much each neuron
/// matters.
pub(crate) fn statistics(
    mlp: &Mlp,
    activations: &Activations,
    pool: &Pool<()>,
) -> Result<(Tensor, Importance)> {
    let items: Vec<(Mlp, Activations)> =
        activations.chunks(ROWS)?.into_iter().map(|part| (mlp.shallow_clone(), part)).collect();
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
        |part| add(&mut sums, part),
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

/// Computes the second moments of the hidden activations that `fitted`'s gate and up give, and their moments
/// with the outputs wanted (less the down bias).
pub(crate) fn hidden_moments(
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
        .map(|part| (fitted.shallow_clone(), original.shallow_clone(), part))
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

/// Adds what one part of the activations gives to the sums so far.
pub(crate) fn add<const N: usize>(sums: &mut Option<[Tensor; N]>, part: [Tensor; N]) -> Result<()> {
    match sums {
        None => *sums = Some(part),
        Some(sums) => {
            for (sum, part) in sums.iter_mut().zip(&part) {
                let _ = sum.f_add_(part)?;
            }
        }
    }
    Ok(())
}

/// Computes the lower Cholesky factor of `matrix + ridge`. The ridge is a fraction of the mean diagonal and
/// grows until the factor exists.
pub(crate) fn cholesky(matrix: &Tensor, ridge: f64) -> Result<Tensor> {
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
