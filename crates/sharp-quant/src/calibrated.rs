//! Rounding that makes the error of a matrix's outputs small, not that of its weights.

use half::f16;

use crate::{
    dtype::BLOCK,
    error::{Error, Result},
    float::{LANES, Lane, tile},
    gram::Feedback,
    packed::{GROUP, PackedFormat, check_pack, put_q4_row, put_q8_row, shifted},
    scale_max::inverse,
    team::Team,
    vectorised::vectorised,
};

// One lane for every row of a group.
const _: () = assert!(LANES == GROUP);

/// Columns whose sums of feedback stay in registers together.
const TILE: usize = 8;
/// Scales that are tried together.
const CANDIDATES: usize = 4;
/// How often the best scale is fitted to its integers and these are rounded again.
const REFITS: usize = 2;

/// Quantises and packs the row-major matrix `x` (rows, cols) as [`pack_f32_into`](crate::pack_f32_into) lays
/// it out, rounding against the second moments of its inputs: each column takes up the errors of those before
/// it, and each block of 32 columns of a row gets the scale that is best when its first column is reached,
/// among those of a grid and their least squares refits.
///
/// Returns the squared error of the outputs, summed over rows, as `feedback`'s damped moments measure it, in
/// units of their mean diagonal. The bits do not depend on the number of threads nor on the instruction set.
/// A matrix narrower than a block has few errors to feed back, and
/// [`ScaleRule::LeastSquares`](crate::ScaleRule::LeastSquares), which tries more scales, may round it better.
///
/// # Errors
/// [`Error::Unknown`] for [`PackedFormat::F16`], which has no scales; [`Error::Shape`] if `feedback` is for
/// inputs of another length; otherwise those of `pack_f32_into`.
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
        return Err(Error::Shape {
            what: "columns of the second moments",
            expected: cols,
            found: feedback.cols(),
        });
    }
    if let Some(index) = x.iter().position(|v| !v.is_finite()) {
        return Err(Error::NotFinite { index, value: x[index].to_string() });
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
    /// The integer that a block's value of largest magnitude lands on, by its scale, before it is cut off at
    /// the range.
    reaches: Vec<[f32; CANDIDATES]>,
}

impl Grid {
    fn of(format: PackedFormat) -> Result<Self> {
        match format {
            // The range is -8..=7: the sign of the scale decides which side has the extra step. From a step
            // that clips nothing to one that clips the extreme value by a third.
            PackedFormat::Q4 => Ok(Grid {
                low: -8.0,
                high: 7.0,
                reaches: (0..10u8)
                    .map(|i| {
                        let reach = 6.5 + 0.5 * f32::from(i);
                        [-reach, reach, -reach - 0.25, reach + 0.25]
                    })
                    .collect(),
            }),
            PackedFormat::Q8 => Ok(Grid {
                low: -127.0,
                high: 127.0,
                reaches: [126.0, 127.0].map(|r| [r, r + 0.25, r + 0.5, r + 0.75]).to_vec(),
            }),
            PackedFormat::F16 => Err(Error::Unknown {
                what: "format with scales",
                name: format.name().to_owned(),
                known: [PackedFormat::Q4, PackedFormat::Q8].map(PackedFormat::name).join(", "),
            }),
        }
    }
}

/// A block of 32 columns of 16 rows that is to be rounded.
struct Work<'a> {
    /// The weights.
    weights: [Lane; BLOCK],
    /// The same with the errors of earlier blocks fed back.
    target: [Lane; BLOCK],
    /// `M` of the block: for each column the rows up to the block's end, of which the last 32 are the
    /// block's own.
    m: &'a [f32],
    importance: &'a [f32],
}

impl Work<'_> {
    /// The block's own rows of `M` before column `j`, in that column.
    #[inline(always)]
    fn within(&self, j: usize) -> &[f32] {
        let height = self.m.len() / BLOCK;
        let from = (j + 1) * height - BLOCK;
        &self.m[from..from + j]
    }
}

/// What a block is rounded to.
struct Rounded {
    q: [Lane; BLOCK],
    /// Weights less what they are rounded to.
    errors: [Lane; BLOCK],
    scales: Lane,
    costs: Lane,
}

/// Rounds one group of rows, given by its `x` (up to 16 rows), into `out`. Returns its part of the outputs'
/// squared error.
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
        let mut weights = [[0.0; LANES]; BLOCK];
        for (r, row) in x.chunks_exact(cols).enumerate() {
            for (to, v) in weights.iter_mut().zip(&row[from..from + width]) {
                to[r] = *v;
            }
        }
        let m = feedback.block(b);
        let importance = &feedback.importance[from..from + BLOCK];
        let mut work = Work { weights, target: weights, m, importance };
        feed(isa, &errors, m, &mut work.target);
        let rounded = choose(isa, grid, &work);
        for r in 0..GROUP {
            let cost = f64::from(rounded.costs[r]);
            if !cost.is_finite() {
                let index = r * cols + from;
                let value = x.get(index).copied().unwrap_or(f32::NAN).to_string();
                return Err(Error::NotFinite { index, value });
            }
            total += cost;
            let scale = f16::from_f32(rounded.scales[r]);
            if format == PackedFormat::Q4 {
                put_q4_row(block, r, scale, &std::array::from_fn(|j| (rounded.q[j][r] + 8.0) as u8));
            } else {
                put_q8_row(block, r, scale, &std::array::from_fn(|j| rounded.q[j][r] as i8));
            }
        }
        errors.extend_from_slice(&rounded.errors);
    }
    Ok(total)
}

#[inline(always)]
fn feed_body<const HW: bool>(errors: &[Lane], m: &[f32], target: &mut [Lane; BLOCK]) {
    let height = m.len() / BLOCK;
    for (i, target) in target.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let sums = tile::<TILE>(errors, &m[i * TILE * height..], height);
        for j in 0..TILE {
            for l in 0..LANES {
                target[j][l] += sums[j][l];
            }
        }
    }
}

vectorised! {
    /// Adds the errors of earlier columns, times `M`, to a block.
    fn feed / feed_body [] (errors: &[Lane], m: &[f32], target: &mut [Lane; BLOCK])
}

#[inline(always)]
fn choose_body<const HW: bool>(grid: &Grid, work: &Work<'_>) -> Rounded {
    let mut extreme = [0.0f32; LANES];
    for target in &work.target {
        for l in 0..LANES {
            extreme[l] = if target[l].abs() > extreme[l].abs() { target[l] } else { extreme[l] };
        }
    }
    let mut best = [0.0f32; LANES];
    let mut least = [f32::INFINITY; LANES];
    let mut q = [[[0.0; LANES]; BLOCK]; CANDIDATES];
    let mut errors = q;
    for reaches in &grid.reaches {
        let scales = reaches.map(|reach| extreme.map(|v| stored(v / reach)));
        let costs = round_block(grid, work, &scales, &mut q, &mut errors);
        for (scale, cost) in scales.iter().zip(&costs) {
            keep(scale, cost, &mut best, &mut least);
        }
    }
    let (mut q, mut errors) = ([q[0]], [errors[0]]);
    for _ in 0..REFITS {
        round_block(grid, work, &[best], &mut q, &mut errors);
        let scale = fitted(work, &q[0]).map(stored);
        let [cost] = round_block(grid, work, &[scale], &mut q, &mut errors);
        keep(&scale, &cost, &mut best, &mut least);
    }
    let [mut costs] = round_block(grid, work, &[best], &mut q, &mut errors);
    for l in 0..LANES {
        // Where no scale could be stored there is no cost.
        costs[l] = if least[l].is_finite() { costs[l] } else { least[l] };
    }
    Rounded { q: q[0], errors: errors[0], scales: best, costs }
}

vectorised! {
    /// Finds the scales of a block of 16 rows and rounds it by them.
    fn choose / choose_body [] (grid: &Grid, work: &Work<'_>) -> Rounded
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

/// Rounds a block by each of the given scales, column by column, into integers `q` and errors. Returns each
/// row's error, the importance of columns counted.
#[inline(always)]
fn round_block<const C: usize>(
    grid: &Grid,
    work: &Work<'_>,
    scales: &[Lane; C],
    q: &mut [[Lane; BLOCK]; C],
    errors: &mut [[Lane; BLOCK]; C],
) -> [Lane; C] {
    let inverses = scales.map(|s| s.map(inverse));
    let mut costs = [[0.0f32; LANES]; C];
    for (j, d) in work.importance.iter().enumerate() {
        let mut place = [work.target[j]; C];
        for (k, m) in work.within(j).iter().enumerate() {
            for c in 0..C {
                let e = &errors[c][k];
                for l in 0..LANES {
                    place[c][l] = m.mul_add(e[l], place[c][l]);
                }
            }
        }
        for c in 0..C {
            for l in 0..LANES {
                let v = place[c][l];
                let n = (v * inverses[c][l]).round_ties_even().clamp(grid.low, grid.high);
                let rest = (-scales[c][l]).mul_add(n, v);
                costs[c][l] = (d * rest).mul_add(rest, costs[c][l]);
                q[c][j][l] = n;
                errors[c][j][l] = (-scales[c][l]).mul_add(n, work.weights[j][l]);
            }
        }
    }
    costs
}

/// The scales of least error for the integers `q`: what is left of column `j` is `a - scale * b`, `a` being
/// the weights with feedback of weights, `b` the integers with feedback of integers. NaN where all integers
/// are zero.
#[inline(always)]
fn fitted(work: &Work<'_>, q: &[Lane; BLOCK]) -> Lane {
    let (mut ab, mut bb) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (j, d) in work.importance.iter().enumerate() {
        let (mut a, mut b) = (work.target[j], q[j]);
        for (k, m) in work.within(j).iter().enumerate() {
            for l in 0..LANES {
                a[l] = m.mul_add(work.weights[k][l], a[l]);
                b[l] = m.mul_add(q[k][l], b[l]);
            }
        }
        for l in 0..LANES {
            ab[l] = (d * a[l]).mul_add(b[l], ab[l]);
            bb[l] = (d * b[l]).mul_add(b[l], bb[l]);
        }
    }
    std::array::from_fn(|l| ab[l] / bb[l])
}
