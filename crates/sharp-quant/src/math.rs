//! Elementwise functions with the same bits on every instruction set.

use crate::vectorised::vectorised;

vectorised! {
    /// `gate[i] = silu(gate[i]) * up[i]`, where `silu(x) = x / (1 + exp(-x))`, over the shorter of the two.
    pub fn silu_mul / silu_mul_body [] (gate: &mut [f32], up: &[f32])
}

#[inline(always)]
fn silu_mul_body<const HW: bool>(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

/// `e^x` to within 2 units in the last place for results that are normal numbers; 0 below -87.3 becomes the
/// least normal number, and above 88.7 it is `e^88.7`; NaN stays NaN. Only exact or correctly rounded
/// operations, so the bits are the same everywhere.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23, see the quantisation of activations.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n * ln 2 is subtracted without loss.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    // The coefficients of Taylor's series, of which the sixth power's is the last that matters on |r| < 0.35.
    let p = 1.0f32 / 720.0;
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(power)
}
