#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod activations;
mod adamw;
mod attention;
mod block;
mod device;
mod digests;
mod error;
pub mod finetune;
mod fingerprint;
pub mod forms;
mod gradient_order;
mod gradients;
mod head;
mod job;
mod linear;
mod llama;
mod metrics;
mod mlp;
mod mlp_train;
mod norm;
mod params;
mod pool;
mod rope;
mod schedule;
mod start;
mod tensors;
#[cfg(test)]
mod testing;
mod trainable;
mod trained_layer;
pub mod warmup;
mod weights;

pub use device::{Compute, Precision};
pub use error::{Error, Result};
pub use head::Loss;
pub use job::Job;
pub use llama::Llama;
pub use sharp_schema::{Start, TrainMlps, Weighting};
pub use trainable::check_trainable;
