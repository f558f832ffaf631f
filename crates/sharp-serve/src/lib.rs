#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod api;
mod connections;
mod engine;
mod error;
mod job;
mod memory;
mod metrics;
mod options;
mod pool;
mod queue;
mod sequence;
mod server;

pub use error::{Error, Result};
pub use options::ServeOptions;
pub use server::Server;
