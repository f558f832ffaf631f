#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod atomic;
pub mod config;
pub mod error;
pub mod export;
pub mod family;
mod fused;
pub mod gguf;
pub mod hf;
pub mod import;
pub mod layout;
mod mmap;
pub mod model;
pub mod names;
pub mod packed;
pub mod plan;
mod projection;
mod projection_source;
pub mod pruned;
pub mod recovery;
pub mod shape;
pub mod source;
pub mod stored;
pub mod tensors;
pub mod tokenizer;
pub mod writer;

pub use atomic::write_atomic;
pub use config::{ModelConfig, RopeScaling};
pub use error::{Error, Result};
pub use export::{CardNotes, ExportOptions, ExportSummary, export_compact, export_dense, export_peft};
pub use family::Family;
pub use hf::HfCheckpoint;
pub use layout::{ModelLayout, TensorSlot};
pub use model::ModelSource;
pub use plan::{Estimate, LayerChange, Plan, Ranks, Repair, Scales, Treatment};
pub use projection::{PerProjection, Projection};
pub use projection_source::{LoraSource, ProjectionSource};
pub use recovery::{LayerRecovery, ProjectionRecovery, Recovery};
pub use sharp_quant::DType;
pub use source::{TensorBytes, TensorInfo, TensorRef, TensorSource};
pub use stored::Stored;
pub use tensors::{Part, Role};
pub use writer::{SafetensorsWriter, WriteSummary};
