//! Functions of one vector.

use super::{LANES, Lane, element::Element};
use crate::{math::exp, vectorised::vectorised};

/// Sums the lanes pairwise: 0 with 8, 1 with 9, ... then halves again.
#[inline(always)]
pub(crate) fn sum_lanes(mut v: Lane) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            v[i] += v[i + width];
        }
        width /= 2;
    }
    v[0]
}

/// Inner products of `R` rows with `x`; the rows must be as long as `x`.
///
/// Lane `l` sums columns `l, l + 16, ...` in ascending order.
#[inline(always)]
pub(crate) fn dots<const HW: bool, E: Element, const R: usize>(rows: [&[E::Raw]; R], x: &[f32]) -> [f32; R] {
    let mut acc = [[0.0f32; LANES]; R];
    let (chunks, tail) = x.as_chunks::<LANES>();
    let split = rows.map(|r| r.as_chunks::<LANES>());
    for (c, x) in chunks.iter().enumerate() {
        for r in 0..R {
            let w = E::widen::<HW>(&split[r].0[c]);
            for l in 0..LANES {
                acc[r][l] = w[l].mul_add(x[l], acc[r][l]);
            }
        }
    }
    for r in 0..R {
        for (l, (&w, &x)) in split[r].1.iter().zip(tail).enumerate() {
            acc[r][l] = E::one(w).mul_add(x, acc[r][l]);
        }
    }
    acc.map(sum_lanes)
}

#[inline(always)]
fn dot_body<const HW: bool>(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, a_tail) = a[..n].as_chunks::<LANES>();
    let (b, b_tail) = b[..n].as_chunks::<LANES>();
    let mut acc = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            acc[l] = a[l].mul_add(b[l], acc[l]);
        }
    }
    for (l, (a, b)) in a_tail.iter().zip(b_tail).enumerate() {
        acc[l] = a.mul_add(*b, acc[l]);
    }
    sum_lanes(acc)
}

vectorised! {
    /// Inner product over the shorter of the two.
    pub fn dot / dot_body [] (a: &[f32], b: &[f32]) -> f32
}

#[inline(always)]
fn rms_norm_body<const HW: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = dot_body::<HW>(x, x) / x.len().max(1) as f32;
    let inverse = 1.0 / (mean + eps).sqrt();
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * inverse * w;
    }
}

vectorised! {
    /// `out = x / sqrt(mean(x^2) + eps) * weight`, all of one length (past the shortest nothing is written).
    pub fn rms_norm / rms_norm_body [] (x: &[f32], weight: &[f32], eps: f32, out: &mut [f32])
}

#[inline(always)]
fn add_assign_body<const HW: bool>(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

vectorised! {
    /// `x += y` over the shorter of the two.
    pub fn add_assign / add_assign_body [] (x: &mut [f32], y: &[f32])
}

#[inline(always)]
fn scale_body<const HW: bool>(x: &[f32], by: &[f32], out: &mut [f32]) {
    for ((o, x), s) in out.iter_mut().zip(x).zip(by) {
        *o = x * s;
    }
}

vectorised! {
    /// `out = x * by`, element by element, over the shortest.
    pub fn scale / scale_body [] (x: &[f32], by: &[f32], out: &mut [f32])
}

#[inline(always)]
fn max_body<const HW: bool>(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut top = [f32::NEG_INFINITY; LANES];
    for c in chunks {
        for l in 0..LANES {
            top[l] = if c[l] > top[l] { c[l] } else { top[l] };
        }
    }
    tail.iter().chain(&top).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

vectorised! {
    /// The largest value, NaN passed over; minus infinity of nothing.
    pub fn max / max_body [] (x: &[f32]) -> f32
}

/// `exp` of numbers up to 0, with exact zero far below, where [`exp`] alone would give the least normal
/// number.
#[inline(always)]
pub(crate) fn exp_negative(x: f32) -> f32 {
    let e = exp(x);
    if x < -87.0 { 0.0 } else { e }
}

#[inline(always)]
fn exp_sum_body<const HW: bool>(x: &mut [f32], minus: f32) -> f32 {
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    let mut acc = [0.0f32; LANES];
    for c in chunks {
        for l in 0..LANES {
            c[l] = exp_negative(c[l] - minus);
            acc[l] += c[l];
        }
    }
    for (l, v) in tail.iter_mut().enumerate() {
        *v = exp_negative(*v - minus);
        acc[l] += *v;
    }
    sum_lanes(acc)
}

vectorised! {
    /// `x = exp(x - minus)`, and the sum of that. `minus` should be the largest of `x`.
    pub fn exp_sum / exp_sum_body [] (x: &mut [f32], minus: f32) -> f32
}

#[inline(always)]
fn log_sum_exp_body<const HW: bool>(x: &[f32]) -> f64 {
    let top = max_body::<HW>(x);
    if !top.is_finite() {
        return f64::from(top);
    }
    // Short runs are summed in f32, the runs in f64: a vocabulary is too long for f32 alone.
    let mut total = 0.0f64;
    for run in x.chunks(1024) {
        let (chunks, tail) = run.as_chunks::<LANES>();
        let mut acc = [0.0f32; LANES];
        for c in chunks {
            for l in 0..LANES {
                acc[l] += exp_negative(c[l] - top);
            }
        }
        for (l, v) in tail.iter().enumerate() {
            acc[l] += exp_negative(v - top);
        }
        total += f64::from(sum_lanes(acc));
    }
    f64::from(top) + total.ln()
}

vectorised! {
    /// `ln(sum(exp(x)))`, to about 1e-7: the logits' normaliser. Minus infinity of nothing.
    pub fn log_sum_exp / log_sum_exp_body [] (x: &[f32]) -> f64
}

#[inline(always)]
fn rope_body<const HW: bool>(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len().min(sin.len());
    if half == 0 {
        return;
    }
    for head in heads.chunks_exact_mut(2 * half) {
        let (low, high) = head.split_at_mut(half);
        for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

vectorised! {
    /// Rotary embedding of one token: every head of `heads` (heads, head_dim) has its halves turned by the
    /// angles whose cosines and sines are given (head_dim / 2).
    pub fn rope / rope_body [] (heads: &mut [f32], cos: &[f32], sin: &[f32])
}
