//! Rounding that makes the error of a matrix's outputs small, not that of its weights.

use half::f16;

use crate::{
    blocks::{BLOCK, inverse},
    error::{QuantError, Result},
    float::{LANES, Lane, vectorised},
    gram::Feedback,
    packed::{GROUP, PackedFormat, check_pack, put_q4_row, put_q8_row, shifted},
    team::Team,
};

// One lane for every row of a group.
const _: () = assert!(LANES == GROUP);

/// Columns whose sums of feedback stay in registers together.
const TILE: usize = 8;
/// How often the best scale is fitted to its integers and these are rounded again.
const REFITS: usize = 2;

/// Quantises and packs the row-major matrix `x` (rows, cols) as [`pack_f32_into`](crate::pack_f32_into) lays it out, rounding against
/// the second moments of its inputs: each column takes up the errors of those before it, and each block of 32 columns of a row
/// gets the scale that is best when its first column is reached, among those of a grid and their least squares refits.
///
/// Returns the squared error of the outputs, summed over rows, as `feedback`'s damped moments measure it, in units of their
/// mean diagonal. The bits do not depend on the number of threads nor on the instruction set.
///
/// # Errors
/// [`QuantError::Unknown`] for [`PackedFormat::F16`], which has no scales; [`QuantError::Shape`] if `feedback` is for inputs of
/// another length; otherwise those of `pack_f32_into`.
pub fn pack_calibrated(
    team: &Team,
    format: PackedFormat,
    (rows, cols): (usize, usize),
    x: &[f32],
    feedback: &Feedback,
    out: &mut [u8],
) -> Result<f64> {
    let grid = Grid::of(format)?;
    check_pack(format, rows, cols, x, out)?;
    if feedback.cols() != cols {
        return Err(QuantError::Shape {
            what: "columns of the second moments",
            expected: cols,
            found: feedback.cols(),
        });
    }
    if let Some(index) = x.iter().position(|v| !v.is_finite()) {
        return Err(QuantError::NotFinite { index, value: x[index].to_string() });
    }
    let isa = team.isa();
    let group_bytes = cols.div_ceil(BLOCK) * format.block_bytes();
    let results = std::sync::Mutex::new(vec![Ok(0.0); rows.div_ceil(GROUP)]);
    team.chunks_mut(out, group_bytes, &|g, out| {
        let from = g * GROUP * cols;
        let x = &x[from..x.len().min(from + GROUP * cols)];
        let result = group(isa, format, &grid, x, feedback, out).map_err(|e| shifted(e, from));
        results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[g] = result;
    });
    // In the order of the rows, so that neither sum nor error depends on the threads.
    results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_iter().sum()
}

/// The integers of a format and the scales that are tried.
struct Grid {
    low: f32,
    high: f32,
    /// The integer that a block's value of largest magnitude lands on, by its scale, before it is cut off at the range.
    reaches: Vec<f32>,
}

impl Grid {
    fn of(format: PackedFormat) -> Result<Self> {
        match format {
            // The range is -8..=7: the sign of the scale decides which side has the extra step. From a step that clips nothing to one
            // that clips the extreme value by a third.
            PackedFormat::Q4 => Ok(Grid {
                low: -8.0,
                high: 7.0,
                reaches: (0..20u8)
                    .flat_map(|i| {
                        let reach = 6.5 + 0.25 * f32::from(i);
                        [-reach, reach]
                    })
                    .collect(),
            }),
            PackedFormat::Q8 => Ok(Grid {
                low: -127.0,
                high: 127.0,
                reaches: (0..9u8).map(|i| 126.0 + 0.25 * f32::from(i)).collect(),
            }),
            PackedFormat::F16 => Err(QuantError::Unknown {
                what: "format with scales",
                name: format.name().to_owned(),
                known: [PackedFormat::Q4, PackedFormat::Q8].map(PackedFormat::name).join(", "),
            }),
        }
    }
}

/// A block of 32 columns of 16 rows while it is rounded.
struct Work {
    /// The weights, then their errors `E`.
    weights: [Lane; BLOCK],
    /// The weights with the errors of earlier blocks fed back.
    target: [Lane; BLOCK],
    /// The integers.
    q: [Lane; BLOCK],
}

/// Rounds one group of rows, given by its `x` (up to 16 rows), into `out`. Returns its part of the outputs' squared error.
fn group(
    isa: crate::Isa,
    format: PackedFormat,
    grid: &Grid,
    x: &[f32],
    feedback: &Feedback,
    out: &mut [u8],
) -> Result<f64> {
    let cols = feedback.cols();
    let mut errors: Vec<Lane> = Vec::with_capacity(feedback.importance.len());
    let mut total = 0.0;
    for (b, block) in out.chunks_exact_mut(format.block_bytes()).enumerate() {
        let from = b * BLOCK;
        let width = BLOCK.min(cols - from);
        let mut work =
            Work { weights: [[0.0; LANES]; BLOCK], target: [[0.0; LANES]; BLOCK], q: [[0.0; LANES]; BLOCK] };
        for (r, row) in x.chunks_exact(cols).enumerate() {
            for (to, v) in work.weights.iter_mut().zip(&row[from..from + width]) {
                to[r] = *v;
            }
        }
        let (before, within) = feedback.block(b).split_at(from);
        work.target = work.weights;
        feed(isa, &errors, before, &mut work.target);
        let importance = &feedback.importance[from..from + BLOCK];
        let mut scales = [0.0; LANES];
        let mut costs = [0.0; LANES];
        choose(isa, grid, within, importance, &mut work, &mut scales, &mut costs);
        for r in 0..GROUP {
            let cost = f64::from(costs[r]);
            if !cost.is_finite() {
                let index = r * cols + from;
                let value = x.get(index).copied().unwrap_or(f32::NAN).to_string();
                return Err(QuantError::NotFinite { index, value });
            }
            total += cost;
            let scale = f16::from_f32(scales[r]);
            if format == PackedFormat::Q4 {
                put_q4_row(block, r, scale, &std::array::from_fn(|j| (work.q[j][r] + 8.0) as u8));
            } else {
                put_q8_row(block, r, scale, &std::array::from_fn(|j| work.q[j][r] as i8));
            }
        }
        errors.extend_from_slice(&work.weights);
    }
    Ok(total)
}

#[inline(always)]
fn feed_body<const HW: bool>(errors: &[Lane], m: &[[f32; BLOCK]], target: &mut [Lane; BLOCK]) {
    for (tile, target) in target.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let mut acc = *target;
        for (e, m) in errors.iter().zip(m) {
            for j in 0..TILE {
                let m = m[tile * TILE + j];
                for l in 0..LANES {
                    acc[j][l] = m.mul_add(e[l], acc[j][l]);
                }
            }
        }
        *target = acc;
    }
}

vectorised! {
    /// Adds the errors of earlier columns, times `M`, to a block.
    fn feed / feed_body [] (errors: &[Lane], m: &[[f32; BLOCK]], target: &mut [Lane; BLOCK])
}

#[inline(always)]
fn choose_body<const HW: bool>(
    grid: &Grid,
    m: &[[f32; BLOCK]],
    importance: &[f32],
    work: &mut Work,
    scales: &mut Lane,
    costs: &mut Lane,
) {
    let mut extreme = [0.0f32; LANES];
    for target in &work.target {
        for l in 0..LANES {
            extreme[l] = if target[l].abs() > extreme[l].abs() { target[l] } else { extreme[l] };
        }
    }
    let mut best = [0.0f32; LANES];
    let mut least = [f32::INFINITY; LANES];
    for reach in &grid.reaches {
        let scale = extreme.map(|v| stored(v / reach));
        let cost = round_block(grid, m, importance, work, &scale, None);
        keep(&scale, &cost, &mut best, &mut least);
    }
    for _ in 0..REFITS {
        let mut fitted = [0.0; LANES];
        round_block(grid, m, importance, work, &best, Some(&mut fitted));
        let scale = fitted.map(stored);
        let cost = round_block(grid, m, importance, work, &scale, None);
        keep(&scale, &cost, &mut best, &mut least);
    }
    let cost = round_block(grid, m, importance, work, &best, None);
    for l in 0..LANES {
        // Where no scale could be stored there is no cost.
        costs[l] = if least[l].is_finite() { cost[l] } else { least[l] };
    }
    for j in 0..BLOCK {
        for l in 0..LANES {
            work.weights[j][l] -= best[l] * work.q[j][l];
        }
    }
    *scales = best;
}

vectorised! {
    /// Finds the scales of a block of 16 rows and rounds it by them: integers into `work.q`, errors into `work.weights`.
    fn choose / choose_body [] (grid: &Grid, m: &[[f32; BLOCK]], importance: &[f32], work: &mut Work,
        scales: &mut Lane, costs: &mut Lane)
}

/// A scale as it is stored.
#[inline(always)]
fn stored(scale: f32) -> f32 {
    f16::from_f32(scale).to_f32()
}

#[inline(always)]
fn keep(scale: &Lane, cost: &Lane, best: &mut Lane, least: &mut Lane) {
    for l in 0..LANES {
        let better = cost[l] < least[l];
        best[l] = if better { scale[l] } else { best[l] };
        least[l] = if better { cost[l] } else { least[l] };
    }
}

/// Rounds a block by the given scales, column by column, into `work.q`. Returns each row's error, the importance of columns counted;
/// into `fitted`, if given, the scales of least error for these integers.
#[inline(always)]
fn round_block(
    grid: &Grid,
    m: &[[f32; BLOCK]],
    importance: &[f32],
    work: &mut Work,
    scales: &Lane,
    fitted: Option<&mut Lane>,
) -> Lane {
    let inverses = scales.map(inverse);
    let mut target = work.target;
    let mut cost = [0.0f32; LANES];
    for (k, d) in importance.iter().enumerate() {
        let mut error = [0.0f32; LANES];
        for l in 0..LANES {
            let v = target[k][l];
            let q = (v * inverses[l]).round_ties_even().clamp(grid.low, grid.high);
            let rest = (-scales[l]).mul_add(q, v);
            cost[l] = (d * rest).mul_add(rest, cost[l]);
            work.q[k][l] = q;
            error[l] = (-scales[l]).mul_add(q, work.weights[k][l]);
        }
        for j in k + 1..BLOCK {
            let m = m[k][j];
            for l in 0..LANES {
                target[j][l] = m.mul_add(error[l], target[j][l]);
            }
        }
    }
    if let Some(fitted) = fitted {
        // With integers fixed, what is left of column j is a - scale * b: a the weights' own, b the integers', both with feedback.
        let mut a = work.target;
        let mut b = work.q;
        for k in 0..BLOCK {
            let (w, q) = (work.weights[k], work.q[k]);
            for j in k + 1..BLOCK {
                let m = m[k][j];
                for l in 0..LANES {
                    a[j][l] = m.mul_add(w[l], a[j][l]);
                    b[j][l] = m.mul_add(q[l], b[j][l]);
                }
            }
        }
        let (mut ab, mut bb) = ([0.0f32; LANES], [0.0f32; LANES]);
        for (k, d) in importance.iter().enumerate() {
            for l in 0..LANES {
                ab[l] = (d * a[k][l]).mul_add(b[k][l], ab[l]);
                bb[l] = (d * b[k][l]).mul_add(b[k][l], bb[l]);
            }
        }
        for l in 0..LANES {
            // Integers that are all zero fit no scale: 0 / 0 is never kept.
            fitted[l] = ab[l] / bb[l];
        }
    }
    cost
}
