//! NEON of processors without the dot product instructions: the kernels of `bodies/neon.rs`.

use super::{arm::halves, *};
use std::arch::aarch64::*;

macro_rules! kernels {
    ($($item:item)*) => { $(#[target_feature(enable = "neon")] $item)* };
}

/// Computes what `sdot` does. Two products of bytes fit 16 bits, since no activation is -128.
#[inline]
#[target_feature(enable = "neon")]
fn dot(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(a, b)))
}

#[allow(clippy::duplicate_mod, reason = "compiled with other instructions here")]
#[path = "bodies/neon.rs"]
mod body;
pub(super) use body::KERNELS;
