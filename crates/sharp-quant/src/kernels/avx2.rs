//! Kernels for AVX2 with FMA and F16C. A group's 16 rows are two vectors of eight: rows 0..8 and 8..16.
//!
//! 4 bits: `maddubs` multiplies unsigned nibbles (`q + 8`) with signed activations and adds neighbours,
//! giving two 16-bit sums for each row. The accumulators start at the correction `-8 * sum` of the
//! activations of the same columns, so that they end at sums of `q * x` over 16 columns, at most 16 * 8 * 127
//! = 16,256; what wraps on the way there wraps back. One `madd` with ones a block joins the two.
//!
//! 8 bits: `maddubs` wants one operand unsigned, so the weight gives its sign to the activation; a pair's sum
//! is at most 2 * 128 * 127 = 32,512, which leaves no room for a second pair: each is widened to 32 bits at
//! once.

use super::{Acc, F16_BYTES, Kernels, Q4_BYTES, Q8_BYTES, Tokens};
use crate::dtype::BLOCK;
use std::arch::x86_64::*;

pub(super) static KERNELS: Kernels =
    Kernels { gemv: [q4_gemv, q8_gemv, f16_gemv], gemm: [q4_gemm, q8_gemm, f16_gemm] };

/// Bytes that a kernel reads ahead of itself; beyond what the hardware prefetchers reach at a block's pace.
const AHEAD: usize = 2304;

macro_rules! kernels {
    ($($item:item)*) => { $(#[target_feature(enable = "avx2,fma,f16c")] $item)* };
}

gemv! { q4_gemv: q4_tile::<1, true>, Q4_BYTES }
gemm! { q4_gemm: 4 => q4_tile::<4, false>, 3 => q4_tile::<3, false>, 2 => q4_tile::<2, false>, 1 => q4_tile::<1, false> }
gemv! { q8_gemv: q8_tile::<1, true>, Q8_BYTES }
gemm! { q8_gemm: 4 => q8_tile::<4, false>, 3 => q8_tile::<3, false>, 2 => q8_tile::<2, false>, 1 => q8_tile::<1, false> }

/// Pointers to one token's activations.
#[derive(Clone, Copy)]
struct Ptr {
    q: *const i8,
    x: *const f32,
    scale: *const f32,
    pair: *const i32,
}

impl Ptr {
    fn new(x: Tokens<'_>, t: usize) -> Self {
        let t = x.get(t);
        Ptr { q: t.q.as_ptr(), x: t.x.as_ptr(), scale: t.scale.as_ptr(), pair: t.pair.as_ptr() }
    }
}

/// # Safety
/// The processor must have AVX2; `p` must have 32 readable bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load(p: *const u8) -> __m256i {
    // SAFETY: the caller's pointer has 32 readable bytes.
    unsafe { _mm256_loadu_si256(p.cast()) }
}

/// Four activations in every lane.
///
/// # Safety
/// The processor must have AVX2; `p` must have 4 readable bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quad(p: *const i8) -> __m256i {
    // SAFETY: the caller's pointer has 4 readable bytes.
    _mm256_set1_epi32(unsafe { p.cast::<i32>().read_unaligned() })
}

/// Eight f16 as f32.
///
/// # Safety
/// The processor must have F16C; `p` must have 16 readable bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves(p: *const u8) -> __m256 {
    // SAFETY: the caller's pointer has 16 readable bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
}

/// `acc + (scale * x_scale) * sums`, rounded as the contract says.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn step(scale: __m256, x_scale: __m256, sums: __m256i, acc: __m256) -> __m256 {
    _mm256_fmadd_ps(_mm256_mul_ps(scale, x_scale), _mm256_cvtepi32_ps(sums), acc)
}

/// Gives back `v`, in a tile of several tokens in a way that the compiler cannot see through. Otherwise it
/// regroups the additions token by token, which is the same sum but needs twice the registers there are
/// (measured: 1.4 times slower).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pinned<const T: usize>(mut v: __m256i) -> __m256i {
    if T == 1 {
        return v;
    }
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}

/// Asks for `LINES` cache lines, `AHEAD` bytes from `p` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch<const LINES: usize>(p: *const u8) {
    for i in 0..LINES {
        // A prefetch of an address that is not mapped does nothing.
        _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(AHEAD + 64 * i).cast());
    }
}

/// One group with `T` tokens from `from` on. `STREAM` says that the weights come from memory, to be asked for
/// ahead.
///
/// # Safety
/// The processor must have AVX2, FMA and F16C; `w` must have `x.blocks()` blocks, and `acc` an entry for each
/// token.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_tile<const T: usize, const STREAM: bool>(
    mut w: *const u8,
    x: Tokens<'_>,
    from: usize,
    acc: *mut Acc,
) {
    // SAFETY: `w` has `x.blocks()` blocks and so has every token; within them all offsets are constants below
    // a block's size. `acc` has `T` entries.
    unsafe {
        let acc = &mut *acc.cast::<[Acc; T]>();
        let tokens: [Ptr; T] = std::array::from_fn(|t| Ptr::new(x, from + t));
        let low = _mm256_set1_epi8(15);
        let ones = _mm256_set1_epi16(1);
        let mut sums: [[__m256; 2]; T] = std::array::from_fn(|t| {
            [_mm256_loadu_ps(acc[t].as_ptr()), _mm256_loadu_ps(acc[t].as_ptr().add(8))]
        });
        for b in 0..x.blocks() {
            if STREAM {
                prefetch::<5>(w);
            }
            let mut s: [[__m256i; 2]; T] =
                std::array::from_fn(|t| [_mm256_set1_epi32(*tokens[t].pair.add(b)); 2]);
            for v in 0..4 {
                let (w0, w1) = (load(w.add(64 * v)), load(w.add(64 * v + 32)));
                let (l0, l1) = (_mm256_and_si256(w0, low), _mm256_and_si256(w1, low));
                for t in 0..T {
                    let a = quad(tokens[t].q.add(b * BLOCK + 4 * v));
                    s[t][0] = pinned::<T>(_mm256_add_epi16(s[t][0], _mm256_maddubs_epi16(l0, a)));
                    s[t][1] = pinned::<T>(_mm256_add_epi16(s[t][1], _mm256_maddubs_epi16(l1, a)));
                }
                let h0 = _mm256_and_si256(_mm256_srli_epi16::<4>(w0), low);
                let h1 = _mm256_and_si256(_mm256_srli_epi16::<4>(w1), low);
                for t in 0..T {
                    let a = quad(tokens[t].q.add(b * BLOCK + 16 + 4 * v));
                    s[t][0] = pinned::<T>(_mm256_add_epi16(s[t][0], _mm256_maddubs_epi16(h0, a)));
                    s[t][1] = pinned::<T>(_mm256_add_epi16(s[t][1], _mm256_maddubs_epi16(h1, a)));
                }
            }
            let (d0, d1) = (halves(w.add(256)), halves(w.add(272)));
            for t in 0..T {
                let d = _mm256_set1_ps(*tokens[t].scale.add(b));
                sums[t][0] = step(d0, d, _mm256_madd_epi16(s[t][0], ones), sums[t][0]);
                sums[t][1] = step(d1, d, _mm256_madd_epi16(s[t][1], ones), sums[t][1]);
            }
            w = w.add(Q4_BYTES);
        }
        for (acc, sums) in acc.iter_mut().zip(sums) {
            _mm256_storeu_ps(acc.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(acc.as_mut_ptr().add(8), sums[1]);
        }
    }
}

/// One group with `T` tokens from `from` on. `STREAM` says that the weights come from memory, to be asked for
/// ahead.
///
/// # Safety
/// The processor must have AVX2, FMA and F16C; `w` must have `x.blocks()` blocks, and `acc` an entry for each
/// token.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q8_tile<const T: usize, const STREAM: bool>(
    mut w: *const u8,
    x: Tokens<'_>,
    from: usize,
    acc: *mut Acc,
) {
    // SAFETY: `w` has `x.blocks()` blocks and so has every token; within them all offsets are constants below
    // a block's size. `acc` has `T` entries.
    unsafe {
        let acc = &mut *acc.cast::<[Acc; T]>();
        let tokens: [Ptr; T] = std::array::from_fn(|t| Ptr::new(x, from + t));
        let ones = _mm256_set1_epi16(1);
        let mut sums: [[__m256; 2]; T] = std::array::from_fn(|t| {
            [_mm256_loadu_ps(acc[t].as_ptr()), _mm256_loadu_ps(acc[t].as_ptr().add(8))]
        });
        for b in 0..x.blocks() {
            if STREAM {
                prefetch::<9>(w);
            }
            let mut s = [[_mm256_setzero_si256(); 2]; T];
            for v in 0..8 {
                let (w0, w1) = (load(w.add(64 * v)), load(w.add(64 * v + 32)));
                let (m0, m1) = (_mm256_abs_epi8(w0), _mm256_abs_epi8(w1));
                for t in 0..T {
                    let a = quad(tokens[t].q.add(b * BLOCK + 4 * v));
                    let p0 = _mm256_maddubs_epi16(m0, _mm256_sign_epi8(a, w0));
                    let p1 = _mm256_maddubs_epi16(m1, _mm256_sign_epi8(a, w1));
                    s[t][0] = _mm256_add_epi32(s[t][0], _mm256_madd_epi16(p0, ones));
                    s[t][1] = _mm256_add_epi32(s[t][1], _mm256_madd_epi16(p1, ones));
                }
            }
            let (d0, d1) = (halves(w.add(512)), halves(w.add(528)));
            for t in 0..T {
                let d = _mm256_set1_ps(*tokens[t].scale.add(b));
                sums[t][0] = step(d0, d, s[t][0], sums[t][0]);
                sums[t][1] = step(d1, d, s[t][1], sums[t][1]);
            }
            w = w.add(Q8_BYTES);
        }
        for (acc, sums) in acc.iter_mut().zip(sums) {
            _mm256_storeu_ps(acc.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(acc.as_mut_ptr().add(8), sums[1]);
        }
    }
}

/// # Safety
/// The processor must have AVX2, FMA and F16C; `w` must hold `acc.len()` groups of `x.blocks()` blocks, and
/// the tokens must keep their floats.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f16_gemv(w: &[u8], x: Tokens<'_>, acc: &mut [Acc]) {
    let group = x.blocks() * F16_BYTES;
    let w = w.as_ptr();
    // Groups together, because one group's sums are two chains of additions that wait for themselves.
    let (fours, rest) = acc.as_chunks_mut::<4>();
    // SAFETY: `w` has as many groups as `acc`, each of `x.blocks()` blocks.
    unsafe {
        for (i, acc) in fours.iter_mut().enumerate() {
            f16_tile::<4, 1>(w.add(4 * i * group), group, x, 0, acc);
        }
        let w = w.add(4 * fours.len() * group);
        match rest {
            [a] => f16_tile::<1, 1>(w, group, x, 0, std::slice::from_mut(a)),
            [_, _] => f16_tile::<2, 1>(w, group, x, 0, rest),
            [_, _, _] => f16_tile::<3, 1>(w, group, x, 0, rest),
            _ => {}
        }
    }
}

/// # Safety
/// The processor must have AVX2, FMA and F16C; `w` must hold one group of `x.blocks()` blocks, and `acc` an
/// entry for each token; the tokens must keep their floats.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f16_gemm(w: &[u8], x: Tokens<'_>, acc: &mut [Acc]) {
    let (tiles, rest) = acc.as_chunks_mut::<6>();
    let done = 6 * tiles.len();
    let w = w.as_ptr();
    // SAFETY: the group has `x.blocks()` blocks, and there are as many tokens as entries of `acc`.
    unsafe {
        for (i, acc) in tiles.iter_mut().enumerate() {
            f16_tile::<1, 6>(w, 0, x, 6 * i, acc);
        }
        let mut t = done;
        let (threes, rest) = rest.as_chunks_mut::<3>();
        for acc in threes {
            f16_tile::<1, 3>(w, 0, x, t, acc);
            t += 3;
        }
        for acc in rest {
            f16_tile::<1, 1>(w, 0, x, t, std::slice::from_mut(acc));
            t += 1;
        }
    }
}

/// `G` groups, `group` bytes apart, with `T` tokens from `from` on. One of the two numbers is 1.
///
/// # Safety
/// The processor must have AVX2, FMA and F16C; each group must have `x.blocks()` blocks, and `acc` `G * T`
/// entries; the tokens must keep their floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f16_tile<const G: usize, const T: usize>(
    w: *const u8,
    group: usize,
    x: Tokens<'_>,
    from: usize,
    acc: &mut [Acc],
) {
    // SAFETY: each group and each token has `x.blocks()` blocks; `acc` has `G * T` entries.
    unsafe {
        let acc = acc.as_mut_ptr().cast::<f32>();
        let tokens: [Ptr; T] = std::array::from_fn(|t| Ptr::new(x, from + t));
        let mut sums: [[[__m256; 2]; T]; G] = std::array::from_fn(|g| {
            std::array::from_fn(|t| {
                let acc = acc.add(16 * (g * T + t));
                [_mm256_loadu_ps(acc), _mm256_loadu_ps(acc.add(8))]
            })
        });
        for c in 0..x.blocks() * BLOCK {
            let w = w.add(32 * c);
            for (g, sums) in sums.iter_mut().enumerate() {
                let w = w.add(g * group);
                if T == 1 && c % 2 == 0 {
                    prefetch::<1>(w);
                }
                let (w0, w1) = (halves(w), halves(w.add(16)));
                for t in 0..T {
                    let a = _mm256_set1_ps(*tokens[t].x.add(c));
                    sums[t][0] = _mm256_fmadd_ps(w0, a, sums[t][0]);
                    sums[t][1] = _mm256_fmadd_ps(w1, a, sums[t][1]);
                }
            }
        }
        for (g, sums) in sums.iter().enumerate() {
            for (t, sums) in sums.iter().enumerate() {
                let acc = acc.add(16 * (g * T + t));
                _mm256_storeu_ps(acc, sums[0]);
                _mm256_storeu_ps(acc.add(8), sums[1]);
            }
        }
    }
}
