//! Float arithmetic of the forward pass: dense products, attention, norms, rotary embedding.
//!
//! Everything is written once, as loops over arrays of 16 lanes with fused multiply-adds, and compiled for each
//! instruction set. Sums run over the 16 lanes in a fixed order, whatever the width of the registers, so results have
//! the same bits on every instruction set, for any number of threads, and for a token alone as for one among many
//! (within the same kind of product: [`dense_matmul`] says which).

pub(crate) mod attention;
mod dense;
mod element;
mod vector;

pub use attention::{KvCache, Scores, attention};
pub(crate) use dense::tile;
pub use dense::{DenseOp, DenseRef, dense_matmul};
pub use vector::{add_assign, dot, exp_sum, log_sum_exp, max, rms_norm, rope, scale};

/// Floats handled as one vector in source; two AVX2 registers, one of AVX-512, four of NEON.
pub(crate) const LANES: usize = 16;
/// One vector.
pub(crate) type Lane = [f32; LANES];

/// Declares `$name` as a safe function that runs `$body` compiled for the given instruction set. The body's first generic
/// argument says whether F16C instructions may be used, the rest are those given in brackets.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident / $body:ident [$($generic:ident : $bound:path),*]
     ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        $(#[$doc])*
        $vis fn $name<$($generic: $bound),*>(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn wide<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    $body::<true, $($generic),*>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
                fn wider<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    $body::<true, $($generic),*>($($arg),*)
                }
                match isa.kind() {
                    // SAFETY: an `Isa` of this kind exists only where the processor has AVX-512 F, BW and VL.
                    $crate::isa::Kind::Avx512Vnni => return unsafe { wider::<$($generic),*>($($arg),*) },
                    // SAFETY: an `Isa` of this kind exists only where the processor has AVX2, FMA and F16C.
                    $crate::isa::Kind::Avx2 => return unsafe { wide::<$($generic),*>($($arg),*) },
                    _ => {}
                }
            }
            let _ = isa;
            $body::<false, $($generic),*>($($arg),*)
        }
    };
}
pub(crate) use vectorised;
