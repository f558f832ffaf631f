//! `sharp import`: any checkpoint we read, as a plain Hugging Face directory.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use sharp_model::DType;
use sharp_progress::Terminal;

use crate::Global;
use crate::output::{self, Output};

/// Turn a checkpoint into a plain Hugging Face directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sharp import SmolLM2-135M-Instruct.Q4_1.gguf --out original")]
pub(crate) struct Args {
    /// A Hugging Face directory or a GGUF file.
    pub(crate) source: PathBuf,
    /// The directory to write.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Type of the written weights: F32, F16 or BF16.
    #[arg(long, default_value = "F32")]
    dtype: DType,
}

#[derive(Serialize)]
struct Summary {
    architecture: String,
    num_hidden_layers: usize,
    parameters: u64,
    mlp_parameters: u64,
    bytes: u64,
}

pub(crate) fn run(args: Args, _global: &Global, output: &Output) -> Result<()> {
    sharp_model::import(&args.source, &args.out, args.dtype, &Terminal::stderr())?;
    let model = sharp_model::ModelSource::open(&args.out)?;
    let summary = Summary {
        architecture: model.config().architecture().to_owned(),
        num_hidden_layers: model.config().num_hidden_layers,
        parameters: model.config().total_parameters(),
        mlp_parameters: model.mlp_parameters(),
        bytes: model.stored_bytes()?,
    };
    output.result(&summary, || {
        format!(
            "{}: {} layers, {:.1} M parameters, {:.1} M of them in MLPs, {}",
            summary.architecture,
            summary.num_hidden_layers,
            summary.parameters as f64 / 1e6,
            summary.mlp_parameters as f64 / 1e6,
            output::bytes(summary.bytes)
        )
    })
}
