//! The instructions that `bodies/avx512.rs` uses, in plain Rust.

#![allow(non_camel_case_types, clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]

use super::*;
use half::f16;

#[derive(Clone, Copy)]
struct __m512i([u8; 64]);
#[derive(Clone, Copy)]
struct __m256i([u8; 32]);
#[derive(Clone, Copy)]
struct __m512([f32; 16]);

fn words(a: __m512i) -> [i32; 16] {
    std::array::from_fn(|i| i32::from_le_bytes(std::array::from_fn(|j| a.0[4 * i + j])))
}

fn from_words(a: [i32; 16]) -> __m512i {
    __m512i(std::array::from_fn(|i| a[i / 4].to_le_bytes()[i % 4]))
}

fn bytewise(a: __m512i, b: __m512i, f: fn(u8, u8) -> u8) -> __m512i {
    __m512i(std::array::from_fn(|i| f(a.0[i], b.0[i])))
}

fn _mm512_set1_epi32(v: i32) -> __m512i {
    from_words([v; 16])
}
fn _mm512_set1_epi8(v: i8) -> __m512i {
    __m512i([v.cast_unsigned(); 64])
}
fn _mm512_set1_ps(v: f32) -> __m512 {
    __m512([v; 16])
}
unsafe fn _mm512_loadu_si512(p: *const __m512i) -> __m512i {
    unsafe { p.read_unaligned() }
}
unsafe fn _mm256_loadu_si256(p: *const __m256i) -> __m256i {
    unsafe { p.read_unaligned() }
}
unsafe fn _mm512_loadu_ps(p: *const f32) -> __m512 {
    __m512(unsafe { p.cast::<[f32; 16]>().read_unaligned() })
}
unsafe fn _mm512_storeu_ps(p: *mut f32, v: __m512) {
    unsafe { p.cast::<[f32; 16]>().write_unaligned(v.0) }
}
fn _mm512_and_si512(a: __m512i, b: __m512i) -> __m512i {
    bytewise(a, b, |a, b| a & b)
}
fn _mm512_xor_si512(a: __m512i, b: __m512i) -> __m512i {
    bytewise(a, b, |a, b| a ^ b)
}
fn _mm512_srli_epi16<const N: u32>(a: __m512i) -> __m512i {
    let half = |i: usize| (u16::from_le_bytes([a.0[i & !1], a.0[i | 1]]) >> N).to_le_bytes()[i & 1];
    __m512i(std::array::from_fn(half))
}
fn _mm512_dpbusd_epi32(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    let (acc, product) = (words(acc), |i: usize| i32::from(a.0[i]) * i32::from(b.0[i].cast_signed()));
    from_words(std::array::from_fn(|i| acc[i] + (0..4).map(|j| product(4 * i + j)).sum::<i32>()))
}
fn _mm512_add_epi32(a: __m512i, b: __m512i) -> __m512i {
    let (a, b) = (words(a), words(b));
    from_words(std::array::from_fn(|i| a[i].wrapping_add(b[i])))
}
fn _mm512_cvtepi32_ps(a: __m512i) -> __m512 {
    __m512(words(a).map(|v| v as f32))
}
fn _mm512_cvtph_ps(a: __m256i) -> __m512 {
    __m512(std::array::from_fn(|i| f16::from_le_bytes([a.0[2 * i], a.0[2 * i + 1]]).to_f32()))
}
fn _mm512_mul_ps(a: __m512, b: __m512) -> __m512 {
    __m512(std::array::from_fn(|i| a.0[i] * b.0[i]))
}
fn _mm512_fmadd_ps(a: __m512, b: __m512, c: __m512) -> __m512 {
    __m512(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], c.0[i])))
}
unsafe fn prefetch<const LINES: usize>(_: *const u8) {}

macro_rules! kernels {
    ($($item:item)*) => { $($item)* };
}

#[allow(clippy::duplicate_mod, reason = "compiled with other instructions here")]
#[path = "../bodies/avx512.rs"]
mod body;
pub(super) use body::KERNELS;
