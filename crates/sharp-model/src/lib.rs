#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod added_tokens;
mod checkpoint;
mod config;
mod ends;
mod error;
mod export;
mod family;
mod features;
pub mod gguf;
mod json;
mod layout;
mod model;
pub mod names;
mod origin;
pub mod packed;
mod plan;
mod projection;
mod projection_source;
mod pruned;
mod recovery;
mod stored;
mod strangers;
mod tensors;
pub mod tokenizer;

pub use checkpoint::atomic::write_atomic;
pub use checkpoint::destination::{check_file, check_folder};
pub use checkpoint::hf::HfCheckpoint;
pub use checkpoint::import::{import, import_sharded};
pub use checkpoint::source::{TensorBytes, TensorInfo, TensorRef, TensorSource};
pub use checkpoint::writer::{DEFAULT_SHARD_BYTES, SafetensorsWriter, WriteSummary};
pub use config::{LayerKind, ModelConfig, Multipliers, RopeScaling, Rotary};
pub use error::{Error, Result};
pub use export::{CardNotes, ExportOptions, ExportSummary, export_compact, export_dense, export_peft};
pub use family::{Activation, Caps, FAMILIES, Family, Norms, Presence, Scale, Windows};
pub use layout::{ModelLayout, TensorSlot};
pub use model::ModelSource;
pub use origin::{CARD_FILE, Origin};
pub use plan::{Estimate, LayerChange, PLAN_VERSION, Plan, Ranks, Repair, Scales, Treatment, rank_for_rho};
pub use projection::{PerProjection, Projection};
pub use projection_source::{LoraSource, ProjectionSource};
pub use pruned::largest_neurons;
pub use recovery::{LayerRecovery, ProjectionRecovery, RECOVERY_FILE, Recovery, StoredTensor};
pub use sharp_quant::DType;
pub use stored::Stored;
pub use tensors::{Part, Role};
