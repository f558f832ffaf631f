#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod batch;
mod calibrate;
mod elementwise;
mod error;
mod forward;
mod generate;
mod kv_target;
mod linear;
mod load;
mod model;
mod pack;
mod passes;
mod products;
mod quantize;
mod recipe;
mod sampler;
mod session;
mod shared_prefix;
mod synth;
mod tensor_cache;
mod workspace;

pub use batch::Batch;
pub use error::{Error, Result};
pub use forward::{LayerView, Observer, Segment};
pub use generate::{Finish, GenerateOptions, Generation, StopStrings, generate};
pub use linear::{DenseWeight, Linear, PackedWeight, Weight};
pub use model::{Attention, Layer, Load, Mlp, Model, Options, WeightBytes};
pub use quantize::{
    QuantReport, TensorReport, quantize, quantize_calibrated, quantize_onto, quantized_bytes,
};
pub use recipe::Recipe;
pub use sampler::{Sampler, SamplerOptions};
pub use session::Session;
pub use synth::{Synthetic, synth_tokenizer};

// What callers need to build a model's options and read its errors.
pub use sharp_quant::{DType, Isa, PackedFormat, Team};
