//! `sharp export`: the compressed model as checkpoints.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use sharp_eval::Results;
use sharp_model::{
    CardNotes, DType, ExportOptions, ExportSummary, ModelSource, Plan, Recovery, export_compact,
    export_dense, export_peft,
    gguf::{GgufOptions, export_gguf},
};
use sharp_progress::{Progress, Terminal};

use crate::Global;
use crate::model::ModelArg;
use crate::output::{self, Output};

/// Write the compressed model as a compact checkpoint, and as a dense one or a GGUF file for other tools.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp export --model original --plan plan.toml --recovery recovery.safetensors --out compact --dense dense"
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// The compact checkpoint: shared MLPs stored once, recovery parameters beside them.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// A dense checkpoint with the effective weights, which any tool loads and which saves nothing.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["out", "peft", "gguf"])]
    pub(crate) dense: Option<PathBuf>,
    /// A PEFT adapter of the low-rank factors, and in DIR/base the dense checkpoint it belongs on.
    #[arg(long, value_name = "DIR")]
    pub(crate) peft: Option<PathBuf>,
    /// A dense GGUF file with the effective weights, for llama.cpp.
    #[arg(long, value_name = "FILE")]
    pub(crate) gguf: Option<PathBuf>,
    /// Type of the GGUF file's matrices: F32, F16, BF16, Q8_0, Q4_0 or Q4_1.
    #[arg(long, value_name = "DTYPE", default_value = "Q8_0")]
    gguf_dtype: DType,
    /// Type of its embedding and output head, where that is to be another.
    #[arg(long, value_name = "DTYPE")]
    gguf_embedding: Option<DType>,
    /// Type of the written weights: F32, F16 or BF16.
    #[arg(long, default_value = "F16")]
    dtype: DType,
    /// Results of `sharp evaluate`, for the model card.
    #[arg(long, value_name = "FILE")]
    figures: Option<PathBuf>,
    /// What the recovery parameters were trained on, for the model card.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    data: Option<String>,
}

/// A model as it lies, or an original with a plan and recovery parameters laid over it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SourceArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// A sharing plan to lay over it.
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Recovery parameters for the plan: a file, or a folder of layer files. Without them layers share
    /// directly.
    #[arg(long, value_name = "PATH", requires = "plan")]
    pub(crate) recovery: Option<PathBuf>,
}

impl SourceArgs {
    /// The resolved model.
    pub(crate) fn open(&self) -> Result<ModelSource> {
        open(self.model.path(), self.plan.as_deref(), self.recovery.as_deref())
    }
}

/// Opens a checkpoint and lays a plan and recovery parameters over it.
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
    Ok(ModelSource::overlay(base, Plan::load(plan)?, recovery.as_ref())?)
}

#[derive(Serialize)]
struct Summary {
    compact: Option<Written>,
    dense: Option<Written>,
    peft: Option<Written>,
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

/// One export of those there are.
type Export = fn(&ModelSource, &Path, &ExportOptions, &dyn Progress) -> sharp_model::Result<ExportSummary>;

pub(crate) fn run(args: Args, _global: &Global, output: &Output) -> Result<()> {
    let source = args.source.open()?;
    let figures = args.figures.as_deref().map(figures).transpose()?;
    let card = CardNotes { data: args.data.clone(), figures };
    let options = ExportOptions { card, ..ExportOptions::new(args.dtype) };
    let progress = Terminal::stderr();
    let write = |path: &Option<PathBuf>, export: Export| -> Result<Option<Written>> {
        let Some(path) = path else { return Ok(None) };
        Ok(Some(Written::new(path, &export(&source, path, &options, &progress)?)))
    };
    let summary = Summary {
        compact: write(&args.out, |s, p, o, t| export_compact(s, p, o, t))?,
        dense: write(&args.dense, |s, p, o, t| export_dense(s, p, o, t))?,
        peft: write(&args.peft, |s, p, o, t| export_peft(s, p, o, t))?,
        gguf: args.gguf.as_deref().map(|path| write_gguf(&source, path, &args, &progress)).transpose()?,
    };
    output.result(&summary, || {
        let line = |name: &str, written: &Option<Written>| match written {
            None => String::new(),
            Some(written) => format!(
                "{name}: {} ({:.1} M MLP parameters, {})\n",
                written.path.display(),
                written.mlp_parameters as f64 / 1e6,
                output::bytes(written.bytes)
            ),
        };
        let gguf = summary.gguf.as_ref().map(|w| {
            let without = if w.tokenizer { "" } else { ", without a tokenizer" };
            format!("gguf: {} ({}{without})\n", w.path.display(), output::bytes(w.bytes))
        });
        line("compact", &summary.compact)
            + &line("dense", &summary.dense)
            + &line("adapter", &summary.peft)
            + &gguf.unwrap_or_default()
    })
}

fn write_gguf(
    source: &ModelSource,
    path: &Path,
    args: &Args,
    progress: &dyn Progress,
) -> Result<GgufWritten> {
    let tokenizer = source.tokenizer()?;
    let embedding = args.gguf_embedding.unwrap_or(args.gguf_dtype);
    let options = GgufOptions { layers: args.gguf_dtype, embedding };
    let bytes = export_gguf(source, tokenizer.as_ref(), path, options, progress)?;
    Ok(GgufWritten { path: path.into(), bytes, tokenizer: tokenizer.is_some() })
}

/// Results of `sharp evaluate` as a table in Markdown: a row for each model, a column for each text and task.
fn figures(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let results: Results = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let first = results.rows.first().with_context(|| format!("{}: no rows", path.display()))?;
    let (texts, tasks): (Vec<_>, Vec<_>) = (first.perplexity.keys().collect(), first.tasks.keys().collect());
    let mut lines = vec!["| model | M parameters in MLPs |".to_owned(), "|---|---|".to_owned()];
    lines[0].extend(texts.iter().map(|t| format!(" perplexity, {t} |")));
    lines[0].extend(tasks.iter().map(|t| format!(" accuracy, {t} |")));
    lines[1].push_str(&"---|".repeat(texts.len() + tasks.len()));
    let cell =
        |value: Option<f64>, digits: usize| value.map_or(" |".to_owned(), |v| format!(" {v:.digits$} |"));
    for row in &results.rows {
        let mut line = format!("| {} | {:.1} |", row.name, row.mlp_parameters as f64 / 1e6);
        line.extend(texts.iter().map(|t| cell(row.perplexity.get(*t).copied(), 2)));
        line.extend(tasks.iter().map(|t| cell(row.tasks.get(*t).map(|s| s.acc), 3)));
        lines.push(line);
    }
    Ok(lines.join("\n"))
}
