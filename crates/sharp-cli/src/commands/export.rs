//! `sharp export`: the compressed model as checkpoints.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use sharp_model::{
    DType, ExportOptions, ExportSummary, ModelSource, Recovery, SharingPlan, export_compact, export_dense,
};
use sharp_progress::Terminal;

use crate::Global;
use crate::output::{self, Output};

/// Write the compressed model as a compact checkpoint, and as a dense one for other tools.
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
    #[arg(long, value_name = "DIR", required_unless_present = "out")]
    dense: Option<PathBuf>,
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
    let summary = Summary { compact, dense };
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
        compact + &summary.dense.as_ref().map(|w| line("dense", w)).unwrap_or_default()
    })
}
