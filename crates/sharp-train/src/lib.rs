#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adamw;
mod attention;
mod block;
mod device;
mod error;
pub mod finetune;
pub mod forms;
mod head;
mod linear;
mod llama;
mod metrics;
mod mlp;
mod norm;
mod params;
mod pool;
mod rope;
mod schedule;
mod start;
mod target;
mod tensors;
#[cfg(test)]
mod testing;
pub mod warmup;
mod weights;

pub use adamw::{AdamW, AdamWConfig, clip};
pub use device::{Compute, ENVIRONMENT, Precision, cpu_has_bf16};
pub use error::{Error, Result};
pub use head::{Loss, LossSums};
pub use llama::Llama;
pub use params::{Group, Layout, ParamId, ParamSpec, Params};
pub use schedule::Schedule;
pub use start::{Start, assign};
