//! NEON with 8-bit matrix multiplication: products with many tokens. What is one token's or of floats is
//! [`neon`]'s.
//!
//! `smmla` multiplies 2 rows of 8 columns with 2 tokens of 8 columns and adds to the 4 sums, exactly. The
//! layout has 4 columns of each of 4 rows in a vector: two vectors that follow one another are zipped to 8
//! columns of 2 rows.

#![allow(clippy::needless_range_loop, reason = "the loops run over registers")]

use super::{arm::halves, *};
use std::arch::{aarch64::*, asm};

macro_rules! kernels {
    ($($item:item)*) => { $(#[target_feature(enable = "neon,dotprod,i8mm")] $item)* };
}

/// Computes `vmmlaq_s32`, which this compiler version does not have as a stable function.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn multiply(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction of registers only, which the features above include.
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

pub(super) static KERNELS: Kernels =
    Kernels { gemv: neon::KERNELS.gemv, gemm: [q4_gemm, q8_gemm, neon::KERNELS.gemm[2]] };

/// Tokens of one tile.
const TILE: usize = 4;

kernels! {
    /// # Safety
    /// The processor must have NEON, `dotprod` and `i8mm`; `w` must hold one group of `x.blocks()`
    /// blocks, and `acc` an entry for each token.
    unsafe fn q4_gemm(w: &[u8], x: Tokens<'_>, acc: &mut [Acc]) {
        // SAFETY: the caller's lengths are a kernel's.
        unsafe { gemm::<false>(w, x, acc, neon::KERNELS.gemm[0]) }
    }

    /// # Safety
    /// As of `q4_gemm`.
    unsafe fn q8_gemm(w: &[u8], x: Tokens<'_>, acc: &mut [Acc]) {
        // SAFETY: the caller's lengths are a kernel's.
        unsafe { gemm::<true>(w, x, acc, neon::KERNELS.gemm[1]) }
    }

    /// Tiles as long as there are whole ones, then `rest`.
    ///
    /// # Safety
    /// As of `q4_gemm`.
    #[inline]
    unsafe fn gemm<const Q8: bool>(w: &[u8], x: Tokens<'_>, acc: &mut [Acc], rest: Kernel) {
        let (tiles, last) = acc.as_chunks_mut::<TILE>();
        // SAFETY: the group has `x.blocks()` blocks, and there are as many tokens as entries of `acc`.
        unsafe {
            for (i, acc) in tiles.iter_mut().enumerate() {
                tile::<Q8>(w.as_ptr(), x, i * TILE, acc);
            }
            if !last.is_empty() {
                rest(w, x.after(tiles.len() * TILE), last);
            }
        }
    }

    /// 4 columns of each of 4 rows, for the 8 runs of 4 columns of a block: rows `4 * k` on of the group.
    ///
    /// # Safety
    /// `w` must have a block of 8 (Q8) or 4 (Q4) times 64 readable bytes, and `k` be below 4.
    #[inline]
    unsafe fn columns<const Q8: bool>(w: *const u8, k: usize) -> [int8x16_t; 8] {
        let mut all = [vdupq_n_s8(0); 8];
        // SAFETY: a block has 4 (Q4) or 8 (Q8) times 64 bytes.
        unsafe {
            for v in 0..if Q8 { 8 } else { 4 } {
                let bytes = vld1q_u8(w.add(64 * v + 16 * k));
                if Q8 {
                    all[v] = vreinterpretq_s8_u8(bytes);
                } else {
                    all[v] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                    all[v + 4] = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
                }
            }
        }
        all
    }

    /// One group with `TILE` tokens from `from` on.
    ///
    /// # Safety
    /// `w` must have `x.blocks()` blocks.
    #[inline]
    unsafe fn tile<const Q8: bool>(mut w: *const u8, x: Tokens<'_>, from: usize, acc: &mut [Acc; TILE]) {
        let tokens: [Token<'_>; TILE] = std::array::from_fn(|t| x.get(from + t));
        for b in 0..x.blocks() {
            // SAFETY: `w` has `x.blocks()` blocks and so has every token; within them all offsets are
            // constants below a block's size, and an `Acc` has 16 numbers.
            unsafe {
                for k in 0..4 {
                    let columns = columns::<Q8>(w, k);
                    let scale = halves(w.add(if Q8 { 512 } else { 256 } + 8 * k));
                    for pair in 0..TILE / 2 {
                        let [one, two] = [&tokens[2 * pair], &tokens[2 * pair + 1]];
                        let start = |t: &Token<'_>| if Q8 { 0 } else { -8 * *t.sum.get_unchecked(b) };
                        let start = [start(one), start(two), start(one), start(two)];
                        let mut sums = [vld1q_s32(start.as_ptr()); 2];
                        for half in 0..2 {
                            let at = b * BLOCK + 16 * half;
                            let a = vreinterpretq_s64_s8(vld1q_s8(one.q.as_ptr().add(at)));
                            let b = vreinterpretq_s64_s8(vld1q_s8(two.q.as_ptr().add(at)));
                            for (i, x) in [vzip1q_s64(a, b), vzip2q_s64(a, b)].into_iter().enumerate() {
                                let x = vreinterpretq_s8_s64(x);
                                let run = 4 * half + 2 * i;
                                let (l, h) = (
                                    vreinterpretq_s32_s8(columns[run]),
                                    vreinterpretq_s32_s8(columns[run + 1]),
                                );
                                sums[0] = multiply(sums[0], vreinterpretq_s8_s32(vzip1q_s32(l, h)), x);
                                sums[1] = multiply(sums[1], vreinterpretq_s8_s32(vzip2q_s32(l, h)), x);
                            }
                        }
                        let rows = [vuzp1q_s32(sums[0], sums[1]), vuzp2q_s32(sums[0], sums[1])];
                        for (i, rows) in rows.into_iter().enumerate() {
                            let t = 2 * pair + i;
                            let to = acc[t].as_mut_ptr().add(4 * k);
                            let scale = vmulq_n_f32(scale, *tokens[t].scale.get_unchecked(b));
                            vst1q_f32(to, vfmaq_f32(vld1q_f32(to), scale, vcvtq_f32_s32(rows)));
                        }
                    }
                }
                w = w.add(if Q8 { Q8_BYTES } else { Q4_BYTES });
            }
        }
    }
}
