//! Float arithmetic of the forward pass: dense products, attention, norms, rotary embedding.
//!
//! Everything is written once, as loops over arrays of 16 lanes with fused multiply-adds, and compiled for
//! each instruction set. Sums run over the 16 lanes in a fixed order, whatever the width of the registers, so
//! results have the same bits on every instruction set, for any number of threads, and for a token alone as
//! for one among many (within the same kind of product: [`dense_matmul`] says which).

pub(crate) mod attention;
mod dense;
mod element;
mod kv_cache;
mod vector;

pub use attention::{Queries, Scores, attention};
pub(crate) use dense::tile;
pub use dense::{DenseOp, DenseRef, dense_matmul};
pub use kv_cache::KvCache;
pub use vector::{add_assign, dot, exp_sum, log_sum_exp, max, rms_norm, rope, scale};

/// Floats handled as one vector in source; two AVX2 registers, one of AVX-512, four of NEON.
pub(crate) const LANES: usize = 16;
/// One vector.
pub(crate) type Lane = [f32; LANES];
