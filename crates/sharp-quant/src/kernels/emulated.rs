//! The kernels of processors that the tests do not run on, beside their intrinsics in plain Rust, held to the scalar
//! kernels bit for bit. Names and signatures are the vendors'.

use super::*;

/// The instructions that `avx512.rs` uses.
#[allow(non_camel_case_types, clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]
mod avx512_intrinsics {
    use half::f16;

    #[derive(Clone, Copy)]
    pub(super) struct __m512i([u8; 64]);
    #[derive(Clone, Copy)]
    pub(super) struct __m256i([u8; 32]);
    #[derive(Clone, Copy)]
    pub(super) struct __m512([f32; 16]);

    fn words(a: __m512i) -> [i32; 16] {
        std::array::from_fn(|i| i32::from_le_bytes(std::array::from_fn(|j| a.0[4 * i + j])))
    }

    fn from_words(a: [i32; 16]) -> __m512i {
        __m512i(std::array::from_fn(|i| a[i / 4].to_le_bytes()[i % 4]))
    }

    fn bytewise(a: __m512i, b: __m512i, f: fn(u8, u8) -> u8) -> __m512i {
        __m512i(std::array::from_fn(|i| f(a.0[i], b.0[i])))
    }

    pub(super) fn _mm512_set1_epi32(v: i32) -> __m512i {
        from_words([v; 16])
    }
    pub(super) fn _mm512_set1_epi8(v: i8) -> __m512i {
        __m512i([v.cast_unsigned(); 64])
    }
    pub(super) fn _mm512_set1_ps(v: f32) -> __m512 {
        __m512([v; 16])
    }
    pub(super) unsafe fn _mm512_loadu_si512(p: *const __m512i) -> __m512i {
        unsafe { p.read_unaligned() }
    }
    pub(super) unsafe fn _mm256_loadu_si256(p: *const __m256i) -> __m256i {
        unsafe { p.read_unaligned() }
    }
    pub(super) unsafe fn _mm512_loadu_ps(p: *const f32) -> __m512 {
        __m512(unsafe { p.cast::<[f32; 16]>().read_unaligned() })
    }
    pub(super) unsafe fn _mm512_storeu_ps(p: *mut f32, v: __m512) {
        unsafe { p.cast::<[f32; 16]>().write_unaligned(v.0) }
    }
    pub(super) fn _mm512_and_si512(a: __m512i, b: __m512i) -> __m512i {
        bytewise(a, b, |a, b| a & b)
    }
    pub(super) fn _mm512_xor_si512(a: __m512i, b: __m512i) -> __m512i {
        bytewise(a, b, |a, b| a ^ b)
    }
    pub(super) fn _mm512_srli_epi16<const N: u32>(a: __m512i) -> __m512i {
        let half = |i: usize| (u16::from_le_bytes([a.0[i & !1], a.0[i | 1]]) >> N).to_le_bytes()[i & 1];
        __m512i(std::array::from_fn(half))
    }
    pub(super) fn _mm512_dpbusd_epi32(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        let (acc, product) = (words(acc), |i: usize| i32::from(a.0[i]) * i32::from(b.0[i].cast_signed()));
        from_words(std::array::from_fn(|i| acc[i] + (0..4).map(|j| product(4 * i + j)).sum::<i32>()))
    }
    pub(super) fn _mm512_add_epi32(a: __m512i, b: __m512i) -> __m512i {
        let (a, b) = (words(a), words(b));
        from_words(std::array::from_fn(|i| a[i].wrapping_add(b[i])))
    }
    pub(super) fn _mm512_cvtepi32_ps(a: __m512i) -> __m512 {
        __m512(words(a).map(|v| v as f32))
    }
    pub(super) fn _mm512_cvtph_ps(a: __m256i) -> __m512 {
        __m512(std::array::from_fn(|i| f16::from_le_bytes([a.0[2 * i], a.0[2 * i + 1]]).to_f32()))
    }
    pub(super) fn _mm512_mul_ps(a: __m512, b: __m512) -> __m512 {
        __m512(std::array::from_fn(|i| a.0[i] * b.0[i]))
    }
    pub(super) fn _mm512_fmadd_ps(a: __m512, b: __m512, c: __m512) -> __m512 {
        __m512(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], c.0[i])))
    }
    pub(super) unsafe fn prefetch<const LINES: usize>(_: *const u8) {}
}

/// The instructions that `neon.rs` uses.
#[allow(non_camel_case_types, clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]
mod neon_intrinsics {
    use half::f16;

    pub(super) type uint8x16_t = [u8; 16];
    pub(super) type int8x16_t = [i8; 16];
    pub(super) type int32x4_t = [i32; 4];
    pub(super) type float32x4_t = [f32; 4];

    pub(super) fn vdupq_n_u8(v: u8) -> uint8x16_t {
        [v; 16]
    }
    pub(super) fn vdupq_n_s32(v: i32) -> int32x4_t {
        [v; 4]
    }
    pub(super) fn vdupq_n_f32(v: f32) -> float32x4_t {
        [v; 4]
    }
    pub(super) unsafe fn vld1q_u8(p: *const u8) -> uint8x16_t {
        unsafe { p.cast::<uint8x16_t>().read_unaligned() }
    }
    pub(super) unsafe fn vld1q_f32(p: *const f32) -> float32x4_t {
        unsafe { p.cast::<float32x4_t>().read_unaligned() }
    }
    pub(super) unsafe fn vst1q_f32(p: *mut f32, v: float32x4_t) {
        unsafe { p.cast::<float32x4_t>().write_unaligned(v) }
    }
    pub(super) fn vreinterpretq_s8_s32(v: int32x4_t) -> int8x16_t {
        std::array::from_fn(|i| v[i / 4].to_le_bytes()[i % 4].cast_signed())
    }
    pub(super) fn vreinterpretq_s8_u8(v: uint8x16_t) -> int8x16_t {
        v.map(u8::cast_signed)
    }
    pub(super) fn vandq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        std::array::from_fn(|i| a[i] & b[i])
    }
    pub(super) fn vshrq_n_u8<const N: i32>(a: uint8x16_t) -> uint8x16_t {
        a.map(|v| v >> N)
    }
    pub(super) fn vcvtq_f32_s32(a: int32x4_t) -> float32x4_t {
        a.map(|v| v as f32)
    }
    pub(super) fn vmulq_n_f32(a: float32x4_t, b: f32) -> float32x4_t {
        a.map(|a| a * b)
    }
    pub(super) fn vfmaq_f32(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        std::array::from_fn(|i| b[i].mul_add(c[i], a[i]))
    }
    pub(super) fn vfmaq_n_f32(a: float32x4_t, b: float32x4_t, c: f32) -> float32x4_t {
        std::array::from_fn(|i| b[i].mul_add(c, a[i]))
    }
    pub(super) fn dot(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        std::array::from_fn(|i| acc[i] + (0..4).map(|j| product(4 * i + j)).sum::<i32>())
    }
    pub(super) unsafe fn halves(p: *const u8) -> float32x4_t {
        let bytes = unsafe { p.cast::<[u8; 8]>().read_unaligned() };
        std::array::from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }
}

macro_rules! kernels {
    ($($item:item)*) => { $($item)* };
}

#[allow(clippy::needless_range_loop)] // the loops run over registers
mod avx512 {
    use super::{avx512_intrinsics::*, *};
    include!("avx512.rs");
}

#[allow(clippy::needless_range_loop)] // the loops run over registers
mod neon {
    use super::{neon_intrinsics::*, *};
    include!("neon.rs");
}

use crate::{ScaleRule, pack_f32};

fn vector(n: usize, mut state: u64) -> Vec<f32> {
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn equal_to_scalar(name: &str, kernels: &Kernels) {
    for format in PackedFormat::ALL {
        for (rows, cols) in [(1, 1), (16, 32), (77, 33), (100, 130)] {
            let data = pack_f32(format, ScaleRule::Max, rows, cols, &vector(rows * cols, 3)).unwrap();
            let matrix = PackedRef::new(format, rows, cols, &data).unwrap();
            for n in 1..30 {
                let mut acts = Activations::new(n, cols).unwrap();
                acts.quantize(&vector(n * cols, 5), n, cols).unwrap();
                let tokens = Tokens::new(&acts, 0, n);
                let start: Vec<Acc> = (0..n).map(|t| [t as f32; GROUP]).collect();
                let (mut a, mut b) = (start.clone(), start);
                kernels.gemm(matrix, matrix.groups() - 1, tokens, &mut a);
                scalar::KERNELS.gemm(matrix, matrix.groups() - 1, tokens, &mut b);
                assert_eq!(bits(&a), bits(&b), "{name} {format} {rows} x {cols}, {n} tokens");
            }
            let mut acts = Activations::new(1, cols).unwrap();
            acts.quantize(&vector(cols, 7), 1, cols).unwrap();
            for groups in 1..=matrix.groups() {
                let (mut a, mut b) = (vec![[0.5; GROUP]; groups], vec![[0.5; GROUP]; groups]);
                kernels.gemv(matrix, 0, Tokens::new(&acts, 0, 1), &mut a);
                scalar::KERNELS.gemv(matrix, 0, Tokens::new(&acts, 0, 1), &mut b);
                assert_eq!(bits(&a), bits(&b), "{name} {format} {rows} x {cols}, {groups} groups");
            }
        }
    }
}

fn bits(acc: &[Acc]) -> Vec<u32> {
    acc.iter().flatten().map(|v| v.to_bits()).collect()
}

#[test]
fn avx512_kernels_equal_the_scalar_ones() {
    equal_to_scalar("avx512vnni", &avx512::KERNELS);
}

#[test]
fn neon_kernels_equal_the_scalar_ones() {
    equal_to_scalar("neon", &neon::KERNELS);
}
