//! What the NEON kernels have in common besides `bodies/neon.rs`.

use std::arch::{aarch64::*, asm};

/// Converts four f16 to f32.
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
