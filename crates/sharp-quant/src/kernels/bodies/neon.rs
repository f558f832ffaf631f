//! Kernels of NEON, with the dot product instructions and without. Four vectors hold a group's 16 rows, four
//! columns each.
//!
//! `dot` adds to each 32-bit lane four products of signed bytes, exactly. Nibbles (`q + 8`) are small enough
//! to be taken as signed bytes as they are; the accumulators start at -8 times the block's sum of
//! activations.
//!
//! The parent module brings `kernels!`, which gives functions the features, `dot`, `halves`, and the
//! instructions: the processor's own, or for tests on other processors the same in plain Rust.

#![allow(clippy::needless_range_loop, reason = "the loops run over registers")]

use super::*;

pub(in crate::kernels) static KERNELS: Kernels =
    Kernels { gemv: [q4_gemv, q8_gemv, f16_gemv], gemm: [q4_gemm, q8_gemm, f16_gemm] };

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
gemm! { q4_gemm: 4 => q4_tile::<4>, 1 => q4_tile::<1> }
gemv! { q8_gemv: q8_tile::<1>, Q8_BYTES }
gemm! { q8_gemm: 4 => q8_tile::<4>, 1 => q8_tile::<1> }
gemv! { f16_gemv: f16_tile::<1>, F16_BYTES }
gemm! { f16_gemm: 4 => f16_tile::<4>, 1 => f16_tile::<1> }

kernels! {
    /// Four activations, four times.
    ///
    /// # Safety
    /// `p` must have 4 readable bytes.
    #[inline]
    unsafe fn quad(p: *const i8) -> int8x16_t {
        // SAFETY: the caller's pointer has 4 readable bytes.
        vreinterpretq_s8_s32(vdupq_n_s32(unsafe { p.cast::<i32>().read_unaligned() }))
    }

    /// # Safety
    /// `acc` must be readable.
    #[inline]
    unsafe fn load_sums(acc: *const Acc) -> [float32x4_t; 4] {
        let acc: *const f32 = acc.cast();
        // SAFETY: an `Acc` has 16 numbers.
        unsafe { [vld1q_f32(acc), vld1q_f32(acc.add(4)), vld1q_f32(acc.add(8)), vld1q_f32(acc.add(12))] }
    }

    /// # Safety
    /// `acc` must be writable.
    #[inline]
    unsafe fn store_sums(acc: *mut Acc, sums: [float32x4_t; 4]) {
        let acc: *mut f32 = acc.cast();
        // SAFETY: an `Acc` has 16 numbers.
        unsafe {
            for k in 0..4 {
                vst1q_f32(acc.add(4 * k), sums[k]);
            }
        }
    }

    /// For each row `acc + (scale * x_scale) * sums`, rounded as the contract says; `scales` are 16 f16.
    ///
    /// # Safety
    /// `scales` must have 32 readable bytes.
    #[inline]
    unsafe fn step(scales: *const u8, x_scale: f32, sums: [int32x4_t; 4], acc: &mut [float32x4_t; 4]) {
        // SAFETY: the caller's pointer has 32 readable bytes.
        unsafe {
            for k in 0..4 {
                let scale = vmulq_n_f32(halves(scales.add(8 * k)), x_scale);
                acc[k] = vfmaq_f32(acc[k], scale, vcvtq_f32_s32(sums[k]));
            }
        }
    }

    /// One group with `T` tokens from `from` on.
    ///
    /// # Safety
    /// `w` must have `x.blocks()` blocks, and `acc` an entry for each token.
    #[inline]
    unsafe fn q4_tile<const T: usize>(mut w: *const u8, x: Tokens<'_>, from: usize, acc: *mut Acc) {
        // SAFETY: `w` has `x.blocks()` blocks and so has every token; within them all offsets are constants
        // below a block's size. `acc` has `T` entries.
        unsafe {
            let tokens: [Ptr; T] = std::array::from_fn(|t| Ptr::new(x, from + t));
            let low = vdupq_n_u8(15);
            let mut sums = [[vdupq_n_f32(0.0); 4]; T];
            for t in 0..T {
                sums[t] = load_sums(acc.add(t));
            }
            for b in 0..x.blocks() {
                let mut s = [[vdupq_n_s32(0); 4]; T];
                for t in 0..T {
                    s[t] = [vdupq_n_s32(-8 * *tokens[t].sum.add(b)); 4];
                }
                for v in 0..4 {
                    for k in 0..4 {
                        let bytes = vld1q_u8(w.add(64 * v + 16 * k));
                        let l = vreinterpretq_s8_u8(vandq_u8(bytes, low));
                        let h = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
                        for t in 0..T {
                            let q = tokens[t].q.add(b * BLOCK + 4 * v);
                            s[t][k] = dot(s[t][k], l, quad(q));
                            s[t][k] = dot(s[t][k], h, quad(q.add(16)));
                        }
                    }
                }
                for t in 0..T {
                    step(w.add(256), *tokens[t].scale.add(b), s[t], &mut sums[t]);
                }
                w = w.add(Q4_BYTES);
            }
            for t in 0..T {
                store_sums(acc.add(t), sums[t]);
            }
        }
    }

    /// One group with `T` tokens from `from` on.
    ///
    /// # Safety
    /// `w` must have `x.blocks()` blocks, and `acc` an entry for each token.
    #[inline]
    unsafe fn q8_tile<const T: usize>(mut w: *const u8, x: Tokens<'_>, from: usize, acc: *mut Acc) {
        // SAFETY: `w` has `x.blocks()` blocks and so has every token; within them all offsets are constants
        // below a block's size. `acc` has `T` entries.
        unsafe {
            let tokens: [Ptr; T] = std::array::from_fn(|t| Ptr::new(x, from + t));
            let mut sums = [[vdupq_n_f32(0.0); 4]; T];
            for t in 0..T {
                sums[t] = load_sums(acc.add(t));
            }
            for b in 0..x.blocks() {
                let mut s = [[vdupq_n_s32(0); 4]; T];
                for v in 0..8 {
                    for k in 0..4 {
                        let bytes = vreinterpretq_s8_u8(vld1q_u8(w.add(64 * v + 16 * k)));
                        for t in 0..T {
                            s[t][k] = dot(s[t][k], bytes, quad(tokens[t].q.add(b * BLOCK + 4 * v)));
                        }
                    }
                }
                for t in 0..T {
                    step(w.add(512), *tokens[t].scale.add(b), s[t], &mut sums[t]);
                }
                w = w.add(Q8_BYTES);
            }
            for t in 0..T {
                store_sums(acc.add(t), sums[t]);
            }
        }
    }

    /// One group with `T` tokens from `from` on.
    ///
    /// # Safety
    /// `w` must have `x.blocks()` blocks, and `acc` an entry for each token; the tokens must keep
    /// their floats.
    #[inline]
    unsafe fn f16_tile<const T: usize>(w: *const u8, x: Tokens<'_>, from: usize, acc: *mut Acc) {
        // SAFETY: the group and every token have `x.blocks()` blocks; `acc` has `T` entries.
        unsafe {
            let tokens: [Ptr; T] = std::array::from_fn(|t| Ptr::new(x, from + t));
            let mut sums = [[vdupq_n_f32(0.0); 4]; T];
            for t in 0..T {
                sums[t] = load_sums(acc.add(t));
            }
            for c in 0..x.blocks() * BLOCK {
                for k in 0..4 {
                    let w = halves(w.add(32 * c + 8 * k));
                    for t in 0..T {
                        sums[t][k] = vfmaq_n_f32(sums[t][k], w, *tokens[t].x.add(c));
                    }
                }
            }
            for t in 0..T {
                store_sums(acc.add(t), sums[t]);
            }
        }
    }
}
