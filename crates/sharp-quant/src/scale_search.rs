//! Least squares search of block scales.
//!
//! For fixed integers the best scale is a ratio of two sums; for a fixed scale the best integers are the
//! rounded ones. Each search starts from a grid of inverse scales around the plain rule's, refits the scale
//! to the integers, rounds it to the 16 bits it is stored in, rounds the integers again to that stored scale,
//! and keeps the candidate of least weighted error. The plain rule's result is a candidate, so the search
//! never loses to it.

use crate::{
    dtype::BLOCK,
    scale_max::{QuantBlock, extreme, inverse},
};
use half::f16;

type Row = [f32; BLOCK];

/// Importances with the unusable ones removed.
fn weights(w: Option<&Row>) -> Row {
    match w {
        None => [1.0; BLOCK],
        Some(w) => w.map(|v| if v.is_finite() && v > 0.0 { v } else { 0.0 }),
    }
}

/// Weighted squared error of `scale * q` against `x`.
fn error(x: &Row, w: &Row, scale: f32, q: &Row) -> f32 {
    let mut sum = [0.0f32; 8];
    for i in 0..BLOCK {
        let e = x[i] - scale * q[i];
        sum[i % 8] += w[i] * e * e;
    }
    sum.iter().sum()
}

/// `x * inv` rounded to integers in `low..=high`.
fn rounded(x: &Row, inv: f32, low: f32, high: f32) -> Row {
    x.map(|v| (v * inv).round_ties_even().clamp(low, high))
}

/// The scale of least weighted squared error for the integers `q`.
fn refit(x: &Row, w: &Row, q: &Row) -> f32 {
    let (mut xq, mut qq) = ([0.0f32; 8], [0.0f32; 8]);
    for i in 0..BLOCK {
        xq[i % 8] += w[i] * x[i] * q[i];
        qq[i % 8] += w[i] * q[i] * q[i];
    }
    let (xq, qq) = (xq.iter().sum::<f32>(), qq.iter().sum::<f32>());
    if qq > 0.0 { xq / qq } else { 0.0 }
}

/// The best symmetric quantisation to integers in `low..=high` over the inverse scales given, or `None` if
/// none is better than `limit`.
fn symmetric(
    x: &Row,
    w: &Row,
    (low, high): (f32, f32),
    inverses: impl Iterator<Item = f32>,
    limit: f32,
) -> Option<(f16, Row)> {
    let mut best = None;
    let mut least = limit;
    for inv in inverses {
        let q = rounded(x, inv, low, high);
        let stored = f16::from_f32(refit(x, w, &q));
        let scale = stored.to_f32();
        if !scale.is_finite() || scale == 0.0 {
            continue;
        }
        let q = rounded(x, 1.0 / scale, low, high);
        let e = error(x, w, scale, &q);
        if e < least {
            least = e;
            best = Some((stored, q));
        }
    }
    best
}

pub(crate) fn q8_0(x: &Row, w: Option<&Row>, plain: QuantBlock<i8>) -> QuantBlock<i8> {
    let w = weights(w);
    let top = extreme(x).abs();
    if top == 0.0 {
        return plain;
    }
    let limit = error(x, &w, plain.scale.to_f32(), &plain.q.map(f32::from));
    // Clipping never pays at 8 bits; a slightly larger or smaller step sometimes fits the values better.
    let inverses = (-4i8..=4).map(|s| (127.0 + 0.25 * f32::from(s)) / top);
    match symmetric(x, &w, (-127.0, 127.0), inverses, limit) {
        Some((scale, q)) => QuantBlock { scale, min: f16::ZERO, q: q.map(|v| v as i8) },
        None => plain,
    }
}

pub(crate) fn q4_0(x: &Row, w: Option<&Row>, plain: QuantBlock<u8>) -> QuantBlock<u8> {
    let w = weights(w);
    let signed = extreme(x);
    if signed == 0.0 {
        return plain;
    }
    let limit = error(x, &w, plain.scale.to_f32(), &plain.q.map(|q| f32::from(q) - 8.0));
    // The range is -8..=7, so the sign of the scale decides which side has the extra step. Both are tried,
    // from a step that clips nothing to one that clips the extreme value by a third.
    let inverses = (0..=24u8).flat_map(|s| {
        let reach = 6.5 + 0.2 * f32::from(s);
        [-reach / signed, reach / signed]
    });
    match symmetric(x, &w, (-8.0, 7.0), inverses, limit) {
        Some((scale, q)) => QuantBlock { scale, min: f16::ZERO, q: q.map(|v| (v + 8.0) as u8) },
        None => plain,
    }
}

pub(crate) fn q4_1(x: &Row, w: Option<&Row>, plain: QuantBlock<u8>) -> QuantBlock<u8> {
    let w = weights(w);
    let affine_error = |scale: f32, min: f32, q: &Row| error(&x.map(|v| v - min), &w, scale, q);
    let mut best = plain;
    let mut least = affine_error(plain.scale.to_f32(), plain.min.to_f32(), &plain.q.map(f32::from));
    let (low, high) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    let total: f32 = w.iter().sum();
    if high <= low || total <= 0.0 {
        return plain;
    }
    for s in 0..=16u8 {
        let inv = (13.0 + 0.2 * f32::from(s)) / (high - low);
        // Centred, so that a range cut shorter is cut on both sides.
        let start = 0.5 * (low + high) - 7.5 / inv;
        let mut q = x.map(|v| ((v - start) * inv).round_ties_even().clamp(0.0, 15.0));
        for _ in 0..2 {
            // Regression of x on q.
            let (mut sx, mut sq, mut sxq, mut sqq) = (0.0f32, 0.0f32, 0.0f32, 0.0f32);
            for i in 0..BLOCK {
                sx += w[i] * x[i];
                sq += w[i] * q[i];
                sxq += w[i] * x[i] * q[i];
                sqq += w[i] * q[i] * q[i];
            }
            let spread = total * sqq - sq * sq;
            if spread <= 0.0 {
                break;
            }
            let scale = f16::from_f32((total * sxq - sx * sq) / spread);
            let min = f16::from_f32((sx - scale.to_f32() * sq) / total);
            if !scale.is_finite() || !min.is_finite() || scale.to_f32() == 0.0 {
                break;
            }
            let inv = inverse(scale.to_f32());
            q = x.map(|v| ((v - min.to_f32()) * inv).round_ties_even().clamp(0.0, 15.0));
            let e = affine_error(scale.to_f32(), min.to_f32(), &q);
            if e < least {
                least = e;
                best = QuantBlock { scale, min, q: q.map(|v| v as u8) };
            }
        }
    }
    best
}
