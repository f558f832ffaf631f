#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod benchmark;
pub mod evaluation;
pub mod manifest;
pub mod metrics;
mod names;
pub mod run;
pub mod suggest;

pub use names::{Bf16, FloatType, Form, Side, Start, StrategyName, TrainMlps, UnknownName, Weighting};
