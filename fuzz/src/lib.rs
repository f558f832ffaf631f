#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod check;
mod seeds;
mod target;
mod targets;

pub use check::{Fault, Workbench};
pub use seeds::seeds;
pub use target::{Place, Target};
pub use targets::TARGETS;
