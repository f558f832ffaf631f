//! Stored floats of three widths, widened to f32 a vector at a time.

use super::{LANES, Lane};

/// A float as it lies in a file or in the cache: little-endian bytes of any alignment.
pub(crate) trait Element: Send + Sync {
    /// The bytes of one value.
    type Raw: Copy + Send + Sync;

    /// Views bytes as values; an incomplete last one is left out.
    fn view(bytes: &[u8]) -> &[Self::Raw];

    /// The same for writing.
    fn view_mut(bytes: &mut [u8]) -> &mut [Self::Raw];

    /// One value.
    fn one(raw: Self::Raw) -> f32;

    /// The nearest value (ties to even); finite numbers stay finite.
    fn narrow(x: f32) -> Self::Raw;

    /// A vector of values; with F16C instructions if `HW`, which the caller must then have.
    fn widen<const HW: bool>(raw: &[Self::Raw; LANES]) -> Lane;

    /// [`Element::narrow`] of a vector, in the same way.
    #[inline(always)]
    fn narrow_lane<const HW: bool>(x: &Lane) -> [Self::Raw; LANES] {
        x.map(Self::narrow)
    }
}

/// IEEE binary32.
pub(crate) struct F32;
/// IEEE binary16.
pub(crate) struct F16;
/// The upper half of a binary32.
pub(crate) struct BF16;

impl Element for F32 {
    type Raw = [u8; 4];

    #[inline(always)]
    fn view(bytes: &[u8]) -> &[[u8; 4]] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn view_mut(bytes: &mut [u8]) -> &mut [[u8; 4]] {
        bytes.as_chunks_mut().0
    }

    #[inline(always)]
    fn one(raw: [u8; 4]) -> f32 {
        f32::from_le_bytes(raw)
    }

    #[inline(always)]
    fn narrow(x: f32) -> [u8; 4] {
        x.to_le_bytes()
    }

    #[inline(always)]
    fn widen<const HW: bool>(raw: &[[u8; 4]; LANES]) -> Lane {
        let mut out = [0.0; LANES];
        for (o, r) in out.iter_mut().zip(raw) {
            *o = f32::from_le_bytes(*r);
        }
        out
    }
}

impl Element for BF16 {
    type Raw = [u8; 2];

    #[inline(always)]
    fn view(bytes: &[u8]) -> &[[u8; 2]] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn view_mut(bytes: &mut [u8]) -> &mut [[u8; 2]] {
        bytes.as_chunks_mut().0
    }

    #[inline(always)]
    fn one(raw: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> [u8; 2] {
        half::bf16::from_f32(x).to_le_bytes()
    }

    #[inline(always)]
    fn widen<const HW: bool>(raw: &[[u8; 2]; LANES]) -> Lane {
        let mut out = [0.0; LANES];
        for (o, r) in out.iter_mut().zip(raw) {
            *o = f32::from_bits(u32::from(u16::from_le_bytes(*r)) << 16);
        }
        out
    }
}

impl Element for F16 {
    type Raw = [u8; 2];

    #[inline(always)]
    fn view(bytes: &[u8]) -> &[[u8; 2]] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn view_mut(bytes: &mut [u8]) -> &mut [[u8; 2]] {
        bytes.as_chunks_mut().0
    }

    #[inline(always)]
    fn one(raw: [u8; 2]) -> f32 {
        half_to_single(u16::from_le_bytes(raw))
    }

    #[inline(always)]
    fn narrow(x: f32) -> [u8; 2] {
        // NaN stays NaN; what would overflow becomes the largest half.
        half::f16::from_f32(x.clamp(-65504.0, 65504.0)).to_le_bytes()
    }

    #[inline(always)]
    fn narrow_lane<const HW: bool>(x: &Lane) -> [[u8; 2]; LANES] {
        #[cfg(target_arch = "x86_64")]
        if HW {
            use std::arch::x86_64::{_mm_storeu_si128, _mm256_cvtps_ph, _mm256_loadu_ps};
            let x = x.map(|x| x.clamp(-65504.0, 65504.0));
            let mut out = [[0; 2]; LANES];
            // SAFETY: `x` is 64 bytes and `out` 32; loads and stores are unaligned ones; the caller has F16C.
            unsafe {
                let to = out.as_mut_ptr().cast::<std::arch::x86_64::__m128i>();
                _mm_storeu_si128(to, _mm256_cvtps_ph::<0>(_mm256_loadu_ps(x.as_ptr())));
                _mm_storeu_si128(to.add(1), _mm256_cvtps_ph::<0>(_mm256_loadu_ps(x.as_ptr().add(8))));
            }
            return out;
        }
        x.map(Self::narrow)
    }

    #[inline(always)]
    fn widen<const HW: bool>(raw: &[[u8; 2]; LANES]) -> Lane {
        #[cfg(target_arch = "x86_64")]
        if HW {
            use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
            let mut out = [0.0; LANES];
            // SAFETY: `raw` is 32 bytes and `out` 64; loads and stores are unaligned ones; the caller has
            // F16C.
            unsafe {
                let from = raw.as_ptr().cast::<std::arch::x86_64::__m128i>();
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from)));
                _mm256_storeu_ps(out.as_mut_ptr().add(8), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1))));
            }
            return out;
        }
        let mut out = [0.0; LANES];
        for (o, r) in out.iter_mut().zip(raw) {
            *o = half_to_single(u16::from_le_bytes(*r));
        }
        out
    }
}

/// Exact, without branches or tables, so that it vectorises: exponent and fraction moved into place and
/// multiplied by 2^112, which rights the exponent's bias and makes halves below 2^-14 normal.
#[inline(always)]
fn half_to_single(h: u16) -> f32 {
    let h = u32::from(h);
    let magnitude = (f32::from_bits((h & 0x7fff) << 13) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    // A NaN's quiet bit is set, as the processor's own instruction does.
    let quiet = if h & 0x7fff > 0x7c00 { 0x0040_0000 } else { 0 };
    f32::from_bits(magnitude | special | quiet | ((h & 0x8000) << 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_as_ieee_says() {
        let hardware = crate::Isa::best() != crate::Isa::scalar() && cfg!(target_arch = "x86_64");
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32_const();
            let raw = [bits.to_le_bytes(); LANES];
            let mut found = vec![F16::one(raw[0]), F16::widen::<false>(&raw)[7]];
            if hardware {
                found.push(F16::widen::<true>(&raw)[9]);
            }
            for f in found {
                assert!(f.to_bits() == expected.to_bits() || (f.is_nan() && expected.is_nan()), "{bits:#x}");
            }
        }
    }

    #[test]
    fn narrowing_keeps_finite_numbers_finite() {
        assert_eq!(F16::one(F16::narrow(1e6)), 65504.0);
        assert_eq!(F16::one(F16::narrow(-1e6)), -65504.0);
        assert!(F16::one(F16::narrow(f32::NAN)).is_nan());
        assert_eq!(F16::one(F16::narrow(1.0 / 3.0)), half::f16::from_f32(1.0 / 3.0).to_f32());
        assert_eq!(F32::one(F32::narrow(1.0 / 3.0)), 1.0 / 3.0);
        assert_eq!(BF16::one(BF16::narrow(1.0)), 1.0);
    }

    #[test]
    fn narrowing_a_vector_is_narrowing_each() {
        let hardware = crate::Isa::best() != crate::Isa::scalar() && cfg!(target_arch = "x86_64");
        // Every half, what lies halfway between two of them, and what is nearest to those.
        for bits in (0u32..0x8000_0000).step_by(0x0fff) {
            let x: Lane = std::array::from_fn(|i| f32::from_bits(bits + i as u32) * [1.0, -1.0][i % 2]);
            let each = x.map(F16::narrow);
            let nan = |i: usize| x[i].is_nan();
            let found = if hardware { F16::narrow_lane::<true>(&x) } else { F16::narrow_lane::<false>(&x) };
            for i in 0..LANES {
                assert!(found[i] == each[i] || (nan(i) && F16::one(found[i]).is_nan()), "{}", x[i]);
            }
        }
    }
}
