//! The configuration of a run: TOML by stage, every key checked before anything starts.
//!
//! A file may begin with `extends = "other.toml"` and then says only what differs. Over the files lie the
//! values of `--set section.key=value`. What no layer says has the default of its section.

mod checked;
mod data;
mod keys;
mod layers;
mod load;
mod old_keys;
mod sections;
#[cfg(test)]
mod tests;
mod values;

pub use checked::Config;
pub(crate) use data::{ModelSource, Text, resolve_data, task_parts};
#[cfg(test)]
pub(crate) use keys::keys;
pub(crate) use keys::{check_keys, dotted_keys};
pub(crate) use layers::{assignments, lay_over, read_layers};
pub use sections::{
    Analyze, Benchmark, Data, Evaluate, Export, Finetune, Import, Plan, Quantize, Report, Training, Warmup,
};
pub use values::{Device, Recipe, Row};
