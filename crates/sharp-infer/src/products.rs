//! Products of one input with several linear maps, biases included.

use arrayvec::ArrayVec;
use sharp_quant::{
    Activations, Isa, MatOp, Scratch, Team,
    float::{self, DenseOp},
    matmul,
};

use crate::elementwise::{for_each_row, row};
use crate::error::Result;
use crate::linear::{DenseWeight, Factors, Linear, Matrices, Parts, Weight};

/// Dense matrices in one region: a weight and a factor for each of up to three maps.
const MAX_DENSE_OPS: usize = 6;

/// The buffers that products need besides their inputs and outputs.
pub(crate) struct ProductBuffers {
    /// Quantised inputs of packed maps.
    pub(crate) acts: Activations,
    /// What the packed kernels need for recovery factors and column scales.
    pub(crate) scratch: Scratch,
    /// (n, max rank) twice: `A x` of dense recovery factors, of which a region has two at most.
    pub(crate) low: [Vec<f32>; 2],
    /// (n, max(d, f)): an input with column scales applied.
    pub(crate) scaled: Vec<f32>,
}

/// Computes `outs[i] = linears[i](x)` for `x` (n, cols): in one region where all maps are of one kind.
pub(crate) fn project<const N: usize>(
    team: &Team,
    linears: [&Linear; N],
    x: &[f32],
    n: usize,
    mut outs: [&mut [f32]; N],
    b: &mut ProductBuffers,
) -> Result<()> {
    if let Some(kernels) = all(linears.map(Linear::packed)) {
        b.acts.quantize_parallel(team, x, n, linears[0].cols())?;
        packed(team, kernels, &b.acts, outs.each_mut().map(|out| &mut **out), &mut b.scratch)?;
    } else if let Some(parts) = all(linears.map(plain_parts)) {
        plain(team, linears, parts, x, n, outs.each_mut().map(|out| &mut **out), b)?;
    } else {
        for (linear, out) in linears.into_iter().zip(&mut outs) {
            match &linear.matrices {
                Matrices::Zero => out.fill(0.0),
                Matrices::Dense(parts) => scaled(team, linear, parts, x, n, out, b)?,
                Matrices::Packed(_) => {
                    let kernel = linear.packed().expect("a map of packed matrices");
                    b.acts.quantize_parallel(team, x, n, linear.cols())?;
                    packed(team, [kernel], &b.acts, [out], &mut b.scratch)?;
                }
            }
        }
    }
    for (linear, out) in linears.into_iter().zip(outs) {
        add_bias(team.isa(), linear, out);
    }
    Ok(())
}

/// Returns the values if none is missing.
fn all<T, const N: usize>(options: [Option<T>; N]) -> Option<[T; N]> {
    options.iter().all(Option::is_some).then(|| options.map(|value| value.expect("all are there")))
}

/// The matrices of a dense map that has a weight and no column scales.
fn plain_parts(linear: &Linear) -> Option<(&DenseWeight, Option<&Factors<DenseWeight>>)> {
    match &linear.matrices {
        Matrices::Dense(Parts { base: Some(base), factors }) if linear.col_scale.is_none() => {
            Some((base, factors.as_ref()))
        }
        _ => None,
    }
}

/// Adds a map's bias, if it has one, to the rows of `out`.
pub(crate) fn add_bias(isa: Isa, linear: &Linear, out: &mut [f32]) {
    if let Some(bias) = &linear.bias {
        for row in out.chunks_exact_mut(bias.len()) {
            float::add_assign(isa, row, bias);
        }
    }
}

/// Multiplies packed maps with quantised inputs, in one region, without biases.
pub(crate) fn packed<const N: usize>(
    team: &Team,
    kernels: [sharp_quant::Linear<'_>; N],
    acts: &Activations,
    outs: [&mut [f32]; N],
    scratch: &mut Scratch,
) -> Result<()> {
    let mut outs = outs.into_iter();
    let mut ops = kernels.map(|linear| MatOp { linear, out: outs.next().expect("an output for each map") });
    Ok(matmul(team, &mut ops, acts, scratch)?)
}

/// Multiplies dense maps without column scales: the weights and the factors `A` in one region, then the
/// factors `B`.
fn plain<const N: usize>(
    team: &Team,
    linears: [&Linear; N],
    parts: [(&DenseWeight, Option<&Factors<DenseWeight>>); N],
    x: &[f32],
    n: usize,
    mut outs: [&mut [f32]; N],
    b: &mut ProductBuffers,
) -> Result<()> {
    let mut ops = ArrayVec::<DenseOp<'_>, MAX_DENSE_OPS>::new();
    let mut low = b.low.iter_mut();
    for ((linear, (base, factors)), out) in linears.into_iter().zip(parts).zip(&mut outs) {
        let row_scale = linear.row_scale.as_deref();
        ops.push(DenseOp { weight: base.view(), row_scale, add: false, out });
        if let Some(factors) = factors {
            let low = low.next().expect("a buffer for each map with factors");
            let out = &mut low[..n * factors.rank()];
            ops.push(DenseOp { weight: factors.a.view(), row_scale: None, add: false, out });
        }
    }
    float::dense_matmul(team, &mut ops, x, n)?;
    drop(ops);
    let factors = parts.into_iter().zip(outs).filter_map(|((_, factors), out)| Some((factors?, out)));
    for ((factors, out), low) in factors.zip(&b.low) {
        let op = DenseOp { weight: factors.b.view(), row_scale: None, add: true, out };
        float::dense_matmul(team, &mut [op], &low[..n * factors.rank()], n)?;
    }
    Ok(())
}

/// Multiplies one dense map of any form, without its bias.
fn scaled(
    team: &Team,
    linear: &Linear,
    parts: &Parts<DenseWeight>,
    x: &[f32],
    n: usize,
    out: &mut [f32],
    b: &mut ProductBuffers,
) -> Result<()> {
    let isa = team.isa();
    let input = match &linear.col_scale {
        None => x,
        Some(scale) => {
            let cols = linear.cols();
            let to = &mut b.scaled[..n * cols];
            for_each_row(team, to, cols, &|i, to| float::scale(isa, row(x, cols, i), scale, to));
            &*to
        }
    };
    match &parts.base {
        None => out.fill(0.0),
        Some(base) => {
            let row_scale = linear.row_scale.as_deref();
            let op = DenseOp { weight: base.view(), row_scale, add: false, out: &mut *out };
            float::dense_matmul(team, &mut [op], input, n)?;
        }
    }
    if let Some(factors) = &parts.factors {
        let low = &mut b.low[0][..n * factors.rank()];
        let a = DenseOp { weight: factors.a.view(), row_scale: None, add: false, out: low };
        float::dense_matmul(team, &mut [a], x, n)?;
        let b = DenseOp { weight: factors.b.view(), row_scale: None, add: true, out };
        float::dense_matmul(team, &mut [b], low, n)?;
    }
    Ok(())
}

/// Multiplies a single matrix with `x` (n, cols): `out` (n, rows).
pub(crate) fn multiply(
    team: &Team,
    weight: &Weight,
    x: &[f32],
    n: usize,
    out: &mut [f32],
    b: &mut ProductBuffers,
) -> Result<()> {
    match weight {
        Weight::Packed(weight) => {
            b.acts.quantize_parallel(team, x, n, weight.cols())?;
            packed(team, [weight.view().into()], &b.acts, [out], &mut b.scratch)
        }
        Weight::Dense(weight) => {
            let op = DenseOp { weight: weight.view(), row_scale: None, add: false, out };
            Ok(float::dense_matmul(team, &mut [op], x, n)?)
        }
    }
}
