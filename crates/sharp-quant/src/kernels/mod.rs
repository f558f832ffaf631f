//! The kernels: one file for each instruction set, all with the structure and the bits of [`scalar`].
//!
//! The contract, for row `r` and token `t`, starting from the `acc` given:
//!
//! - `q4x16`, `q8x16`: for each block of 32 columns in ascending order, `s` = the exact integer sum of `q_w * q_x`, then
//!   `acc = fma(scale_w * scale_x, s as f32, acc)`. `s` fits 24 bits, so its conversion is exact.
//! - `f16x16`: for each column in ascending order, `acc = fma(w, x, acc)`.
//!
//! So a result depends neither on the instruction set, nor on the number of threads, nor on how tokens are batched.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(test)]
mod emulated;
mod scalar;

/// See `avx512.rs`.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop)] // the loops run over registers
mod avx512 {
    use super::*;
    use std::arch::x86_64::*;

    macro_rules! kernels {
        ($($item:item)*) => { $(#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma")] $item)* };
    }

    unsafe fn prefetch<const LINES: usize>(p: *const u8) {
        for i in 0..LINES {
            // SAFETY: a prefetch of an address that is not mapped does nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.wrapping_add(64 * i).cast()) };
        }
    }

    include!("avx512.rs");
}

/// What the NEON kernels have in common besides `neon.rs`.
#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::{aarch64::*, asm};

    /// Four f16 as f32.
    ///
    /// # Safety
    /// `p` must have 8 readable bytes.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn halves(p: *const u8) -> float32x4_t {
        // SAFETY: the caller's pointer has 8 readable bytes.
        let bytes = unsafe { vld1_u8(p) };
        let wide;
        // SAFETY: an instruction of registers only, which every processor with NEON of 64 bits has.
        unsafe {
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) bytes,
                options(pure, nomem, nostack, preserves_flags));
        }
        wide
    }
}

/// See `neon.rs`: with the dot product instructions.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::needless_range_loop)] // the loops run over registers
mod neon {
    use super::{arm::halves, *};
    use std::arch::{aarch64::*, asm};

    macro_rules! kernels {
        ($($item:item)*) => { $(#[target_feature(enable = "neon,dotprod")] $item)* };
    }

    /// `vdotq_s32`, which this compiler version does not have as a stable function.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn dot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: an instruction of registers only, which the features above include.
        unsafe {
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }

    include!("neon.rs");
}

/// See `neon.rs`: for processors without the dot product instructions.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::needless_range_loop)] // the loops run over registers
mod neon_plain {
    use super::{arm::halves, *};
    use std::arch::aarch64::*;

    macro_rules! kernels {
        ($($item:item)*) => { $(#[target_feature(enable = "neon")] $item)* };
    }

    /// What `sdot` computes. Two products of bytes fit 16 bits, since no activation is -128.
    #[inline]
    #[target_feature(enable = "neon")]
    fn dot(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
        vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(a, b)))
    }

    include!("neon.rs");
}

/// See `neon_i8mm.rs`.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::needless_range_loop)] // the loops run over registers
mod neon_i8mm {
    use super::{arm::halves, *};
    use std::arch::{aarch64::*, asm};

    macro_rules! kernels {
        ($($item:item)*) => { $(#[target_feature(enable = "neon,dotprod,i8mm")] $item)* };
    }

    /// `vmmlaq_s32`, which this compiler version does not have as a stable function.
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

    include!("neon_i8mm.rs");
}

use crate::{
    activations::{Activations, Token},
    blocks::BLOCK,
    isa::{Isa, Kind},
    packed::{GROUP, PackedFormat, PackedRef},
};

/// Sums of one group of rows (for one token), or of one token (for one group).
pub(crate) type Acc = [f32; GROUP];

/// Tokens `from..from + n` of some activations.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    acts: &'a Activations,
    from: usize,
    n: usize,
}

impl<'a> Tokens<'a> {
    /// Panics if the tokens are not held.
    pub(crate) fn new(acts: &'a Activations, from: usize, n: usize) -> Self {
        assert!(n > 0 && from + n <= acts.tokens(), "tokens outside the activations");
        Tokens { acts, from, n }
    }

    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// The tokens from the `t`-th of these on.
    #[cfg(target_arch = "aarch64")]
    fn after(self, t: usize) -> Self {
        Tokens::new(self.acts, self.from + t, self.n - t)
    }

    /// Panics if a matrix of this format would read floats that are not kept.
    fn assert_holds(&self, format: PackedFormat) {
        assert!(format != PackedFormat::F16 || self.acts.has_floats(), "floats that are not kept");
    }

    #[inline]
    pub(crate) fn blocks(&self) -> usize {
        self.acts.blocks()
    }

    #[inline]
    pub(crate) fn get(&self, t: usize) -> Token<'a> {
        self.acts.token(self.from + t)
    }
}

/// Signature of every kernel. `w` holds whole groups of 16 rows, each as many blocks wide as the tokens are.
///
/// A `gemv` multiplies `acc.len()` groups with one token; a `gemm` one group with `acc.len()` tokens. Both add to `acc`.
///
/// # Safety
/// The processor must have the kernel's instruction set, and the lengths must agree; [`Kernels`] sees to both.
type Kernel = unsafe fn(w: &[u8], x: Tokens<'_>, acc: &mut [Acc]);

/// The kernels of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    gemv: [Kernel; 3],
    gemm: [Kernel; 3],
}

impl Kernels {
    pub(crate) fn of(isa: Isa) -> &'static Kernels {
        match isa.kind() {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => &avx2::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => &avx512::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => &neon::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Kind::NeonI8mm => &neon_i8mm::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Kind::NeonPlain => &neon_plain::KERNELS,
            _ => &scalar::KERNELS,
        }
    }

    /// Adds the products of groups `from..from + acc.len()` with one token.
    pub(crate) fn gemv(&self, w: PackedRef<'_>, from: usize, x: Tokens<'_>, acc: &mut [Acc]) {
        assert!(x.len() == 1 && x.blocks() == w.blocks(), "gemv of another shape");
        x.assert_holds(w.format());
        let data = w.group_data(from, from + acc.len());
        // SAFETY: the instruction set exists here because an `Isa` of it does; `data` has `acc.len()` groups of
        // `x.blocks()` blocks.
        unsafe { self.gemv[index(w.format())](data, x, acc) }
    }

    /// Adds the products of group `group` with `acc.len()` tokens.
    pub(crate) fn gemm(&self, w: PackedRef<'_>, group: usize, x: Tokens<'_>, acc: &mut [Acc]) {
        assert!(x.len() == acc.len() && x.blocks() == w.blocks(), "gemm of another shape");
        x.assert_holds(w.format());
        let data = w.group_data(group, group + 1);
        // SAFETY: as above; `data` has one group, and `x` as many tokens as `acc`.
        unsafe { self.gemm[index(w.format())](data, x, acc) }
    }
}

fn index(format: PackedFormat) -> usize {
    match format {
        PackedFormat::Q4 => 0,
        PackedFormat::Q8 => 1,
        PackedFormat::F16 => 2,
    }
}

const Q4_BYTES: usize = PackedFormat::Q4.block_bytes();
const Q8_BYTES: usize = PackedFormat::Q8.block_bytes();
const F16_BYTES: usize = PackedFormat::F16.block_bytes();
const _: () = assert!(BLOCK == 32 && GROUP == 16);
