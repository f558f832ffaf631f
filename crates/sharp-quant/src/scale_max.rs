//! ggml's plain rule for the scale of a block: its extreme value decides.

use crate::dtype::BLOCK;
use half::f16;

/// One quantised block before it is laid out: element `j` stands for `scale * (q[j] - zero) + min`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct QuantBlock<Q> {
    pub(crate) scale: f16,
    pub(crate) min: f16,
    pub(crate) q: [Q; BLOCK],
}

/// Returns the element of largest magnitude, the first of several.
pub(crate) fn extreme(x: &[f32; BLOCK]) -> f32 {
    let mut best = 0.0f32;
    for &v in x {
        if v.abs() > best.abs() {
            best = v;
        }
    }
    best
}

/// Returns `1 / d`, or 0 for a scale of 0.
pub(crate) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Quantises a block as ggml's `quantize_row_q8_0` does.
pub(crate) fn q8_0(x: &[f32; BLOCK]) -> QuantBlock<i8> {
    let d = extreme(x).abs() / 127.0;
    let id = inverse(d);
    // `round` is half away from zero, as C's roundf.
    QuantBlock {
        scale: f16::from_f32(d),
        min: f16::ZERO,
        q: x.map(|v| (v * id).round().clamp(-127.0, 127.0) as i8),
    }
}

/// Quantises a block as ggml's `quantize_row_q4_0` does.
pub(crate) fn q4_0(x: &[f32; BLOCK]) -> QuantBlock<u8> {
    let d = extreme(x) / -8.0;
    let id = inverse(d);
    QuantBlock { scale: f16::from_f32(d), min: f16::ZERO, q: x.map(|v| ((v * id + 8.5) as u8).min(15)) }
}

/// Quantises a block as ggml's `quantize_row_q4_1` does.
pub(crate) fn q4_1(x: &[f32; BLOCK]) -> QuantBlock<u8> {
    let (min, max) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    let d = (max - min) / 15.0;
    let id = inverse(d);
    QuantBlock {
        scale: f16::from_f32(d),
        min: f16::from_f32(min),
        q: x.map(|v| (((v - min) * id + 0.5) as u8).min(15)),
    }
}
