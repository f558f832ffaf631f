#![doc = include_str!("../README.md")]

mod activations;
mod blocks;
mod calibrated;
mod dtype;
mod error;
pub mod float;
mod gram;
mod isa;
mod kernels;
mod math;
mod matmul;
mod packed;
mod raw;
mod read_only;
mod search;
mod team;
mod walk;

pub use activations::Activations;
pub use blocks::{BLOCK, ScaleRule, dequantize, quantize, quantize_weighted};
pub use calibrated::pack_calibrated;
pub use dtype::DType;
pub use error::{QuantError, Result};
pub use gram::{Feedback, Gram};
pub use isa::Isa;
pub use math::silu_mul;
pub use matmul::{Linear, LowRank, MatOp, Scratch, gate_up_silu, matmul};
pub use packed::{
    GROUP, PackedFormat, PackedRef, pack_f32, pack_f32_into, pack_f32_parallel, pack_q4_0, pack_q8_0, unpack,
    unpack_rows,
};
pub use team::{Team, physical_cores};
pub use walk::walk;
