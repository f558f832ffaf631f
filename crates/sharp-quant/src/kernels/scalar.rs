//! The portable kernels: the reference that every other instruction set must equal bit for bit.

use super::{Acc, F16_BYTES, Kernels, Q4_BYTES, Q8_BYTES, Tokens};
use crate::{activations::Token, dtype::BLOCK, packed::GROUP};
use half::f16;

pub(super) static KERNELS: Kernels = Kernels {
    gemv: [gemv::<Q4_BYTES>, gemv::<Q8_BYTES>, gemv::<F16_BYTES>],
    gemm: [gemm::<Q4_BYTES>, gemm::<Q8_BYTES>, gemm::<F16_BYTES>],
};

/// # Safety
/// None: it is `unsafe` only to have the type of a kernel.
unsafe fn gemv<const BYTES: usize>(w: &[u8], x: Tokens<'_>, acc: &mut [Acc]) {
    for (w, acc) in w.chunks_exact(x.blocks() * BYTES).zip(acc) {
        group::<BYTES>(w, x.get(0), acc);
    }
}

/// # Safety
/// None: it is `unsafe` only to have the type of a kernel.
unsafe fn gemm<const BYTES: usize>(w: &[u8], x: Tokens<'_>, acc: &mut [Acc]) {
    for (t, acc) in acc.iter_mut().enumerate() {
        group::<BYTES>(w, x.get(t), acc);
    }
}

/// One group of rows with one token.
fn group<const BYTES: usize>(w: &[u8], x: Token<'_>, acc: &mut Acc) {
    for (b, w) in w.as_chunks::<BYTES>().0.iter().enumerate() {
        let from = b * BLOCK;
        match BYTES {
            Q4_BYTES => {
                let sums = nibble_sums(&w[..256], &x.q[from..from + BLOCK]);
                add(&w[256..], x.scale[b], &sums, acc);
            }
            Q8_BYTES => {
                let sums = byte_sums(&w[..512], &x.q[from..from + BLOCK]);
                add(&w[512..], x.scale[b], &sums, acc);
            }
            _ => {
                for (w, &x) in w.as_chunks::<{ 2 * GROUP }>().0.iter().zip(&x.x[from..from + BLOCK]) {
                    for (acc, w) in acc.iter_mut().zip(w.as_chunks::<2>().0) {
                        *acc = f16::from_le_bytes(*w).to_f32().mul_add(x, *acc);
                    }
                }
            }
        }
    }
}

fn nibble_sums(w: &[u8], x: &[i8]) -> [i32; GROUP] {
    let mut sums = [0; GROUP];
    for (v, w) in w.as_chunks::<64>().0.iter().enumerate() {
        for (sum, w) in sums.iter_mut().zip(w.as_chunks::<4>().0) {
            for (i, &w) in w.iter().enumerate() {
                let (low, high) = (i32::from(w & 15) - 8, i32::from(w >> 4) - 8);
                *sum += low * i32::from(x[4 * v + i]) + high * i32::from(x[16 + 4 * v + i]);
            }
        }
    }
    sums
}

fn byte_sums(w: &[u8], x: &[i8]) -> [i32; GROUP] {
    let mut sums = [0; GROUP];
    for (w, x) in w.as_chunks::<64>().0.iter().zip(x.as_chunks::<4>().0) {
        for (sum, w) in sums.iter_mut().zip(w.as_chunks::<4>().0) {
            for (&w, &x) in w.iter().zip(x) {
                *sum += i32::from(w.cast_signed()) * i32::from(x);
            }
        }
    }
    sums
}

/// `scales` are 16 f16.
fn add(scales: &[u8], x_scale: f32, sums: &[i32; GROUP], acc: &mut Acc) {
    for ((acc, sum), scale) in acc.iter_mut().zip(sums).zip(scales.as_chunks::<2>().0) {
        *acc = (f16::from_le_bytes(*scale).to_f32() * x_scale).mul_add(*sum as f32, *acc);
    }
}
