//! AVX-512 with VNNI: the kernels of `bodies/avx512.rs` with the processor's own instructions.

use super::*;
use std::arch::x86_64::*;

macro_rules! kernels {
    ($($item:item)*) => { $(#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma")] $item)* };
}

/// Asks for `LINES` cache lines from `p` on, into the second-level cache.
#[inline(always)]
fn prefetch<const LINES: usize>(p: *const u8) {
    for i in 0..LINES {
        // SAFETY: a prefetch of an address that is not mapped does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.wrapping_add(64 * i).cast()) };
    }
}

#[path = "bodies/avx512.rs"]
mod body;
pub(super) use body::KERNELS;
