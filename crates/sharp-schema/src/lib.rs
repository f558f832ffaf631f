#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod names;
pub mod run;
pub mod suggest;

pub use names::{Bf16, FloatType, Form, Start, StrategyName, TrainMlps, UnknownName, Weighting};
