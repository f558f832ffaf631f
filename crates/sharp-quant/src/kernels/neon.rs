//! NEON with the dot product instructions: the kernels of `bodies/neon.rs`.

use super::{arm::halves, *};
use std::arch::{aarch64::*, asm};

macro_rules! kernels {
    ($($item:item)*) => { $(#[target_feature(enable = "neon,dotprod")] $item)* };
}

/// Computes `vdotq_s32`, which this compiler version does not have as a stable function.
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

#[allow(clippy::duplicate_mod, reason = "compiled with other instructions here")]
#[path = "bodies/neon.rs"]
mod body;
pub(super) use body::KERNELS;
