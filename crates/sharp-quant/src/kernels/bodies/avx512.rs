//! Kernels of AVX-512 with VNNI. One vector holds a group's 16 rows, four columns each.
//!
//! `dpbusd` adds to each 32-bit lane four products of unsigned weight bytes with signed activation bytes,
//! exactly. Nibbles are unsigned as stored (`q + 8`), signed bytes become so by flipping their top bit (`q +
//! 128`); the accumulators start at -8 or -128 times the block's sum of activations, which takes the offset
//! out again.
//!
//! The parent module brings `kernels!`, which gives functions the features, `prefetch`, and the instructions:
//! the processor's own, or for tests on other processors the same in plain Rust.

#![allow(clippy::needless_range_loop, reason = "the loops run over registers")]

use super::*;

pub(in crate::kernels) static KERNELS: Kernels =
    Kernels { gemv: [q4_gemv, q8_gemv, f16_gemv], gemm: [q4_gemm, q8_gemm, f16_gemm] };

/// Bytes that a kernel asks for ahead of itself, into the second-level cache: 16 requests of the first
/// level's would be too few for the distance of the third.
const AHEAD: usize = 9216;

/// Pointers to one token's activations.
#[derive(Clone, Copy)]
struct Ptr {
    q: *const i8,
    x: *const f32,
    scale: *const f32,
    sum: *const i32,
}

impl Ptr {
    fn new(x: Tokens<'_>, t: usize) -> Self {
        let t = x.get(t);
        Ptr { q: t.q.as_ptr(), x: t.x.as_ptr(), scale: t.scale.as_ptr(), sum: t.sum.as_ptr() }
    }
}

gemv! { q4_gemv: q4_tile::<1>, Q4_BYTES }
gemm! { q4_gemm: 8 => q4_tile::<8>, 4 => q4_tile::<4>, 2 => q4_tile::<2>, 1 => q4_tile::<1> }
gemv! { q8_gemv: q8_tile::<1>, Q8_BYTES }
gemm! { q8_gemm: 8 => q8_tile::<8>, 4 => q8_tile::<4>, 2 => q8_tile::<2>, 1 => q8_tile::<1> }
gemm! { f16_gemm: 12 => f16_tile::<12>, 4 => f16_tile::<4>, 2 => f16_tile::<2>, 1 => f16_tile::<1> }

kernels! {
    /// Four activations in every lane.
    ///
    /// # Safety
    /// `p` must have 4 readable bytes.
    #[inline]
    unsafe fn quad(p: *const i8) -> __m512i {
        // SAFETY: the caller's pointer has 4 readable bytes.
        _mm512_set1_epi32(unsafe { p.cast::<i32>().read_unaligned() })
    }

    /// Sixteen f16 as f32.
    ///
    /// # Safety
    /// `p` must have 32 readable bytes.
    #[inline]
    unsafe fn halves(p: *const u8) -> __m512 {
        // SAFETY: the caller's pointer has 32 readable bytes.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) })
    }

    /// `acc + (scale * x_scale) * sums`, rounded as the contract says.
    #[inline]
    fn step(scale: __m512, x_scale: f32, sums: __m512i, acc: __m512) -> __m512 {
        _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(x_scale)), _mm512_cvtepi32_ps(sums), acc)
    }

    /// One group with `T` tokens from `from` on.
    ///
    /// # Safety
    /// `w` must have `x.blocks()` blocks, and `acc` an entry for each token.
    unsafe fn q4_tile<const T: usize>(mut w: *const u8, x: Tokens<'_>, from: usize, acc: *mut Acc) {
        // SAFETY: `w` has `x.blocks()` blocks and so has every token; within them all offsets are constants
        // below a block's size. `acc` has `T` entries.
        unsafe {
            let tokens: [Ptr; T] = std::array::from_fn(|t| Ptr::new(x, from + t));
            let low = _mm512_set1_epi8(15);
            let mut sums = [_mm512_set1_ps(0.0); T];
            for t in 0..T {
                sums[t] = _mm512_loadu_ps(acc.add(t).cast());
            }
            for b in 0..x.blocks() {
                // The first tile of a group meets its blocks first.
                if from == 0 {
                    prefetch::<5>(w.wrapping_add(AHEAD));
                }
                let mut s = [_mm512_set1_epi32(0); T];
                for t in 0..T {
                    s[t] = _mm512_set1_epi32(-8 * *tokens[t].sum.add(b));
                }
                // A second chain, because one token's eight products would wait for each other.
                let mut second = [_mm512_set1_epi32(0); T];
                for v in 0..4 {
                    let bytes = _mm512_loadu_si512(w.add(64 * v).cast());
                    let l = _mm512_and_si512(bytes, low);
                    let h = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
                    for t in 0..T {
                        let q = tokens[t].q.add(b * BLOCK + 4 * v);
                        s[t] = _mm512_dpbusd_epi32(s[t], l, quad(q));
                        if T == 1 {
                            second[t] = _mm512_dpbusd_epi32(second[t], h, quad(q.add(16)));
                        } else {
                            s[t] = _mm512_dpbusd_epi32(s[t], h, quad(q.add(16)));
                        }
                    }
                }
                let scale = halves(w.add(256));
                for t in 0..T {
                    let s = if T == 1 { _mm512_add_epi32(s[t], second[t]) } else { s[t] };
                    sums[t] = step(scale, *tokens[t].scale.add(b), s, sums[t]);
                }
                w = w.add(Q4_BYTES);
            }
            for t in 0..T {
                _mm512_storeu_ps(acc.add(t).cast(), sums[t]);
            }
        }
    }

    /// One group with `T` tokens from `from` on.
    ///
    /// # Safety
    /// `w` must have `x.blocks()` blocks, and `acc` an entry for each token.
    unsafe fn q8_tile<const T: usize>(mut w: *const u8, x: Tokens<'_>, from: usize, acc: *mut Acc) {
        // SAFETY: `w` has `x.blocks()` blocks and so has every token; within them all offsets are constants
        // below a block's size. `acc` has `T` entries.
        unsafe {
            let tokens: [Ptr; T] = std::array::from_fn(|t| Ptr::new(x, from + t));
            let top = _mm512_set1_epi8(-128);
            let mut sums = [_mm512_set1_ps(0.0); T];
            for t in 0..T {
                sums[t] = _mm512_loadu_ps(acc.add(t).cast());
            }
            for b in 0..x.blocks() {
                if from == 0 {
                    prefetch::<9>(w.wrapping_add(AHEAD));
                }
                let mut s = [_mm512_set1_epi32(0); T];
                for t in 0..T {
                    s[t] = _mm512_set1_epi32(-128 * *tokens[t].sum.add(b));
                }
                let mut second = [_mm512_set1_epi32(0); T];
                for v in 0..8 {
                    let bytes = _mm512_xor_si512(_mm512_loadu_si512(w.add(64 * v).cast()), top);
                    for t in 0..T {
                        let q = quad(tokens[t].q.add(b * BLOCK + 4 * v));
                        if T == 1 && v % 2 == 1 {
                            second[t] = _mm512_dpbusd_epi32(second[t], bytes, q);
                        } else {
                            s[t] = _mm512_dpbusd_epi32(s[t], bytes, q);
                        }
                    }
                }
                let scale = halves(w.add(512));
                for t in 0..T {
                    let s = if T == 1 { _mm512_add_epi32(s[t], second[t]) } else { s[t] };
                    sums[t] = step(scale, *tokens[t].scale.add(b), s, sums[t]);
                }
                w = w.add(Q8_BYTES);
            }
            for t in 0..T {
                _mm512_storeu_ps(acc.add(t).cast(), sums[t]);
            }
        }
    }

    /// # Safety
    /// The processor must have these kernels' instruction set; `w` must hold `acc.len()` groups of
    /// `x.blocks()` blocks, and the tokens must keep their floats.
    unsafe fn f16_gemv(w: &[u8], x: Tokens<'_>, acc: &mut [Acc]) {
        let group = x.blocks() * F16_BYTES;
        let (w, to) = (w.as_ptr(), acc.as_mut_ptr());
        // Groups together, because one group's sums are a chain of additions that wait for each other.
        // SAFETY: `w` has as many groups as `acc`, each of `x.blocks()` blocks.
        unsafe {
            let mut g = 0;
            while acc.len() - g >= 4 {
                f16_groups::<4>(w.add(g * group), group, x, to.add(g));
                g += 4;
            }
            while g < acc.len() {
                f16_groups::<1>(w.add(g * group), group, x, to.add(g));
                g += 1;
            }
        }
    }

    /// `G` groups, `group` bytes apart, with the only token.
    ///
    /// # Safety
    /// Every group must have `x.blocks()` blocks, and `acc` an entry for each group; the token must keep
    /// its floats.
    unsafe fn f16_groups<const G: usize>(w: *const u8, group: usize, x: Tokens<'_>, acc: *mut Acc) {
        // SAFETY: every group and the token have `x.blocks()` blocks; `acc` has `G` entries.
        unsafe {
            let token = Ptr::new(x, 0);
            let mut sums = [_mm512_set1_ps(0.0); G];
            for g in 0..G {
                sums[g] = _mm512_loadu_ps(acc.add(g).cast());
            }
            for c in 0..x.blocks() * BLOCK {
                let a = _mm512_set1_ps(*token.x.add(c));
                for g in 0..G {
                    let w = w.add(g * group + 32 * c);
                    if c % 2 == 0 {
                        prefetch::<1>(w.wrapping_add(AHEAD));
                    }
                    sums[g] = _mm512_fmadd_ps(halves(w), a, sums[g]);
                }
            }
            for g in 0..G {
                _mm512_storeu_ps(acc.add(g).cast(), sums[g]);
            }
        }
    }

    /// One group with `T` tokens from `from` on.
    ///
    /// # Safety
    /// `w` must have `x.blocks()` blocks, and `acc` an entry for each token; the tokens must keep
    /// their floats.
    unsafe fn f16_tile<const T: usize>(w: *const u8, x: Tokens<'_>, from: usize, acc: *mut Acc) {
        // SAFETY: the group and every token have `x.blocks()` blocks; `acc` has `T` entries.
        unsafe {
            let tokens: [Ptr; T] = std::array::from_fn(|t| Ptr::new(x, from + t));
            let mut sums = [_mm512_set1_ps(0.0); T];
            for t in 0..T {
                sums[t] = _mm512_loadu_ps(acc.add(t).cast());
            }
            for c in 0..x.blocks() * BLOCK {
                let w = halves(w.add(32 * c));
                for t in 0..T {
                    sums[t] = _mm512_fmadd_ps(w, _mm512_set1_ps(*tokens[t].x.add(c)), sums[t]);
                }
            }
            for t in 0..T {
                _mm512_storeu_ps(acc.add(t).cast(), sums[t]);
            }
        }
    }
}
