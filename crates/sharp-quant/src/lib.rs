#![doc = include_str!("../README.md")]

mod activations;
mod bare_loop;
mod blocks;
mod calibrated;
mod disjoint;
mod dtype;
mod error;
mod f16_bytes;
pub mod float;
mod ggml_read;
mod gram;
mod isa;
mod kernels;
mod linear;
mod math;
mod matmul;
mod packed;
mod scale_max;
mod scale_search;
mod team;
mod vectorised;

pub use activations::Activations;
pub use bare_loop::bare_loop;
pub use blocks::{ScaleRule, dequantize, quantize, quantize_weighted};
pub use calibrated::pack_calibrated;
pub use dtype::{BLOCK, DType};
pub use error::{Error, Result};
pub use gram::{Feedback, Gram};
pub use isa::Isa;
pub use linear::{Linear, LowRank};
pub use math::silu_mul;
pub use matmul::{MatOp, Scratch, gate_up_silu, matmul};
pub use packed::{
    GROUP, PackedFormat, PackedRef, pack_f32, pack_f32_into, pack_f32_parallel, pack_q4_0, pack_q8_0, unpack,
    unpack_rows,
};
pub use team::{Team, physical_cores};
