//! `sharp export`: the compressed model as checkpoints.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use sharp_model::{
    DType, ExportOptions, ExportSummary, ModelSource, Recovery, SharingPlan, export_compact, export_dense,
    gguf::{GgufOptions, export_gguf},
    tokenizer::Tokenizer,
};
use sharp_progress::Terminal;

use crate::Global;
use crate::output::{self, Output};

/// Write the compressed model as a compact checkpoint, and as a dense one or a GGUF file for other tools.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp export --model original --plan plan.toml --recovery recovery.safetensors --out compact --dense dense"
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// The compact checkpoint: shared MLPs stored once, recovery parameters beside them.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A dense checkpoint with the effective weights, which any tool loads and which saves nothing.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["out", "gguf"])]
    dense: Option<PathBuf>,
    /// A dense GGUF file with the effective weights, for llama.cpp.
    #[arg(long, value_name = "FILE")]
    gguf: Option<PathBuf>,
    /// Type of the GGUF file's matrices: F32, F16, BF16, Q8_0, Q4_0 or Q4_1.
    #[arg(long, value_name = "DTYPE", default_value = "Q8_0")]
    gguf_dtype: DType,
    /// Type of its embedding and output head, where that is to be another.
    #[arg(long, value_name = "DTYPE")]
    gguf_embedding: Option<DType>,
    /// Type of the written weights: F32, F16 or BF16.
    #[arg(long, default_value = "F16")]
    dtype: DType,
}

/// A model as it lies, or an original with a plan and recovery parameters laid over it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SourceArgs {
    /// The model: a Hugging Face directory, dense or compact.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// A sharing plan to lay over it.
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Recovery parameters for the plan: a file, or a folder of layer files. Without them layers share directly.
    #[arg(long, value_name = "PATH", requires = "plan")]
    pub(crate) recovery: Option<PathBuf>,
}

impl SourceArgs {
    /// The resolved model.
    pub(crate) fn open(&self) -> Result<ModelSource> {
        open(&self.model, self.plan.as_deref(), self.recovery.as_deref())
    }
}

/// Opens a checkpoint directory and lays a plan and recovery parameters over it.
pub(crate) fn open(model: &Path, plan: Option<&Path>, recovery: Option<&Path>) -> Result<ModelSource> {
    overlay(&ModelSource::open(model)?, plan, recovery)
}

/// Lays a plan and recovery parameters over an open model, whose tensors it shares.
pub(crate) fn overlay(
    base: &ModelSource,
    plan: Option<&Path>,
    recovery: Option<&Path>,
) -> Result<ModelSource> {
    let Some(plan) = plan else { return Ok(base.clone()) };
    let recovery = recovery.map(Recovery::load).transpose()?;
    Ok(ModelSource::overlay(base, SharingPlan::load(plan)?, recovery.as_ref())?)
}

#[derive(Serialize)]
struct Summary {
    compact: Option<Written>,
    dense: Option<Written>,
    gguf: Option<GgufWritten>,
}

#[derive(Serialize)]
struct GgufWritten {
    path: PathBuf,
    bytes: u64,
    /// Whether the checkpoint had a tokenizer to put in.
    tokenizer: bool,
}

#[derive(Serialize)]
struct Written {
    path: PathBuf,
    bytes: u64,
    mlp_parameters: u64,
}

impl Written {
    fn new(path: &Path, summary: &ExportSummary) -> Self {
        Written { path: path.into(), bytes: summary.written.bytes, mlp_parameters: summary.mlp_parameters }
    }
}

pub(crate) fn run(args: Args, _global: &Global, output: &Output) -> Result<()> {
    let source = args.source.open()?;
    let options = ExportOptions::new(args.dtype);
    let progress = Terminal::stderr();
    let compact = match &args.out {
        Some(path) => Some(Written::new(path, &export_compact(&source, path, &options, &progress)?)),
        None => None,
    };
    let dense = match &args.dense {
        Some(path) => Some(Written::new(path, &export_dense(&source, path, &options, &progress)?)),
        None => None,
    };
    let gguf = match &args.gguf {
        Some(path) => {
            let folder = source.path();
            let tokenizer = match folder.join("tokenizer.json").is_file() {
                true => Some(Tokenizer::load(folder)?),
                false => None,
            };
            let embedding = args.gguf_embedding.unwrap_or(args.gguf_dtype);
            let options = GgufOptions { layers: args.gguf_dtype, embedding };
            let bytes = export_gguf(&source, tokenizer.as_ref(), path, options, &progress)?;
            Some(GgufWritten { path: path.clone(), bytes, tokenizer: tokenizer.is_some() })
        }
        None => None,
    };
    let summary = Summary { compact, dense, gguf };
    output.result(&summary, || {
        let line = |name: &str, written: &Written| {
            format!(
                "{name}: {} ({:.1} M MLP parameters, {})\n",
                written.path.display(),
                written.mlp_parameters as f64 / 1e6,
                output::bytes(written.bytes)
            )
        };
        let compact = summary.compact.as_ref().map(|w| line("compact", w)).unwrap_or_default();
        let dense = summary.dense.as_ref().map(|w| line("dense", w)).unwrap_or_default();
        let gguf = summary.gguf.as_ref().map(|w| {
            let without = if w.tokenizer { "" } else { ", without a tokenizer" };
            format!("gguf: {} ({}{without})\n", w.path.display(), output::bytes(w.bytes))
        });
        compact + &dense + &gguf.unwrap_or_default()
    })
}
