//! The instructions that `bodies/neon.rs` uses, in plain Rust.

#![allow(non_camel_case_types, clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]

use super::*;
use half::f16;

type uint8x16_t = [u8; 16];
type int8x16_t = [i8; 16];
type int32x4_t = [i32; 4];
type float32x4_t = [f32; 4];

fn vdupq_n_u8(v: u8) -> uint8x16_t {
    [v; 16]
}
fn vdupq_n_s32(v: i32) -> int32x4_t {
    [v; 4]
}
fn vdupq_n_f32(v: f32) -> float32x4_t {
    [v; 4]
}
unsafe fn vld1q_u8(p: *const u8) -> uint8x16_t {
    unsafe { p.cast::<uint8x16_t>().read_unaligned() }
}
unsafe fn vld1q_f32(p: *const f32) -> float32x4_t {
    unsafe { p.cast::<float32x4_t>().read_unaligned() }
}
unsafe fn vst1q_f32(p: *mut f32, v: float32x4_t) {
    unsafe { p.cast::<float32x4_t>().write_unaligned(v) }
}
fn vreinterpretq_s8_s32(v: int32x4_t) -> int8x16_t {
    std::array::from_fn(|i| v[i / 4].to_le_bytes()[i % 4].cast_signed())
}
fn vreinterpretq_s8_u8(v: uint8x16_t) -> int8x16_t {
    v.map(u8::cast_signed)
}
fn vandq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    std::array::from_fn(|i| a[i] & b[i])
}
fn vshrq_n_u8<const N: i32>(a: uint8x16_t) -> uint8x16_t {
    a.map(|v| v >> N)
}
fn vcvtq_f32_s32(a: int32x4_t) -> float32x4_t {
    a.map(|v| v as f32)
}
fn vmulq_n_f32(a: float32x4_t, b: f32) -> float32x4_t {
    a.map(|a| a * b)
}
fn vfmaq_f32(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    std::array::from_fn(|i| b[i].mul_add(c[i], a[i]))
}
fn vfmaq_n_f32(a: float32x4_t, b: float32x4_t, c: f32) -> float32x4_t {
    std::array::from_fn(|i| b[i].mul_add(c, a[i]))
}
fn dot(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
    std::array::from_fn(|i| acc[i] + (0..4).map(|j| product(4 * i + j)).sum::<i32>())
}
unsafe fn halves(p: *const u8) -> float32x4_t {
    let bytes = unsafe { p.cast::<[u8; 8]>().read_unaligned() };
    std::array::from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
}

macro_rules! kernels {
    ($($item:item)*) => { $($item)* };
}

#[allow(clippy::duplicate_mod, reason = "compiled with other instructions here")]
#[path = "../bodies/neon.rs"]
mod body;
pub(super) use body::KERNELS;
