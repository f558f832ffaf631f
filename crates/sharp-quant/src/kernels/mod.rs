//! The kernels: one file for each instruction set, all with the structure and the bits of [`scalar`].
//!
//! Bodies that are compiled more than once, with a processor's instructions and with emulated ones, are in
//! `bodies/`.
//!
//! The contract, for row `r` and token `t`, starting from the `acc` given:
//!
//! - `q4x16`, `q8x16`: for each block of 32 columns in ascending order, `s` = the exact integer sum of `q_w *
//!   q_x`, then `acc = fma(scale_w * scale_x, s as f32, acc)`. `s` fits 24 bits, so its conversion is exact.
//! - `f16x16`: for each column in ascending order, `acc = fma(w, x, acc)`.
//!
//! So a result depends neither on the instruction set, nor on the number of threads, nor on how tokens are
//! batched.

/// Declares a kernel for one token: `$tile`, a function of one group and one token, for each group of 16
/// rows.
///
/// The file that uses it declares `kernels!`, which gives functions the features of an instruction set.
macro_rules! gemv {
    ($name:ident: $tile:expr, $block_bytes:ident) => {
        kernels! {
            /// # Safety
            /// The processor must have these kernels' instruction set; `w` must hold `acc.len()` groups of
            /// `x.blocks()` blocks. Tokens must keep their floats where the format is `f16x16`.
            unsafe fn $name(w: &[u8], x: Tokens<'_>, acc: &mut [Acc]) {
                for (i, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: each group has `x.blocks()` blocks, as many as the token.
                    unsafe { $tile(w.as_ptr().add(i * x.blocks() * $block_bytes), x, 0, acc) };
                }
            }
        }
    };
}

/// Declares a kernel for many tokens: the first `$tile` while there are `$width` tokens, then the next.
///
/// The last width must be 1. As with [`gemv!`], the file declares `kernels!`.
macro_rules! gemm {
    ($name:ident: $($width:literal => $tile:expr),+) => {
        kernels! {
            /// # Safety
            /// The processor must have these kernels' instruction set; `w` must hold one group of
            /// `x.blocks()` blocks, and `acc` an entry for each token of `x`. Tokens must keep their floats
            /// where the format is `f16x16`.
            unsafe fn $name(w: &[u8], x: Tokens<'_>, acc: &mut [Acc]) {
                let (n, to) = (acc.len(), acc.as_mut_ptr());
                let mut t = 0;
                $(
                    while n - t >= $width {
                        // SAFETY: the group has `x.blocks()` blocks, and tokens and entries of `acc` reach to
                        // `t + $width`.
                        unsafe { $tile(w.as_ptr(), x, t, to.add(t)) };
                        t += $width;
                    }
                )+
            }
        }
    };
}

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod emulated;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_i8mm;
#[cfg(target_arch = "aarch64")]
mod neon_plain;
mod scalar;

use crate::{
    activations::{Activations, Token},
    dtype::BLOCK,
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
/// A `gemv` multiplies `acc.len()` groups with one token; a `gemm` one group with `acc.len()` tokens. Both
/// add to `acc`.
///
/// # Safety
/// The processor must have the kernel's instruction set, the lengths must agree, and for `f16x16` the tokens
/// must keep their floats; [`Kernels`] sees to all three.
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
        // SAFETY: the instruction set exists here because an `Isa` of it does; `data` has `acc.len()` groups
        // of `x.blocks()` blocks, and the tokens hold what the format reads.
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
