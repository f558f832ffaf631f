//! Arithmetic row by row: norms, sums and activations, shared out to the threads where there are many rows.

use sharp_quant::{Isa, Team, float};

/// From so many rows on, work is shared out to the threads.
const PARALLEL_ROWS: usize = 8;
/// Rows that one thread takes at a time.
const ROWS_PER_ITEM: usize = 4;

/// Calls `f(row index, row)` for the rows of `x`, each of `width` values; in parallel where there are many.
pub(crate) fn for_each_row(team: &Team, x: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    if x.len() < PARALLEL_ROWS * width {
        for (i, row) in x.chunks_mut(width).enumerate() {
            f(i, row);
        }
        return;
    }
    team.chunks_mut(x, ROWS_PER_ITEM * width, &|chunk, part| {
        for (i, row) in part.chunks_mut(width).enumerate() {
            f(ROWS_PER_ITEM * chunk + i, row);
        }
    });
}

/// Returns row `i` of `x` (n, width).
pub(crate) fn row(x: &[f32], width: usize, i: usize) -> &[f32] {
    &x[i * width..(i + 1) * width]
}

/// Computes `out = x / rms(x) * weight` for the rows of `x` and `out` (n, d).
pub(crate) fn rms_norm(team: &Team, x: &[f32], weight: &[f32], eps: f64, out: &mut [f32]) {
    let (isa, d) = (team.isa(), weight.len());
    for_each_row(team, out, d, &|i, out| float::rms_norm(isa, row(x, d, i), weight, eps as f32, out));
}

/// Computes `x = x / rms(x) * weight` for one vector.
pub(crate) fn rms_norm_in_place(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    let mean = float::dot(isa, x, x) / x.len().max(1) as f32;
    let inverse = 1.0 / (mean + eps).sqrt();
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * inverse * w;
    }
}

/// Computes `x += y` for `x` and `y` (n, width).
pub(crate) fn add(team: &Team, x: &mut [f32], y: &[f32], width: usize) {
    let isa = team.isa();
    for_each_row(team, x, width, &|i, x| float::add_assign(isa, x, row(y, width, i)));
}

/// Computes `gate[i] = gelu(gate[i]) * up[i]`, the GELU by its tanh approximation.
pub(crate) fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    const ROOT_2_OVER_PI: f32 = 0.797_884_6;
    for (g, u) in gate.iter_mut().zip(up) {
        let x = *g;
        *g = 0.5 * x * (1.0 + (ROOT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh()) * u;
    }
}
