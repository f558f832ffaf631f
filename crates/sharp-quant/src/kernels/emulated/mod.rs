//! The kernels of processors that the tests do not run on, beside their intrinsics in plain Rust, held to the
//! scalar kernels bit for bit. Names and signatures are the vendors'.

use super::*;
use crate::{ScaleRule, pack_f32};

mod avx512;
mod neon;

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
