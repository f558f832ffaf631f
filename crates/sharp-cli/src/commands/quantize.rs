//! `sharp quantize`: one file that the engine maps and runs as it lies.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;
use sharp_data::DataSpec;
use sharp_infer::{QuantReport, Recipe, Team};
use sharp_model::packed::PackedFile;
use sharp_model::{Recovery, write_atomic};
use sharp_progress::Terminal;

use crate::Global;
use crate::commands::export::SourceArgs;
use crate::data::PartArgs;
use crate::output::{self, Output};

/// Write one file that the engine maps and runs as it lies.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp quantize --model original --out model.sharp --recipe q4\n  sharp quantize --model original --out model.sharp --calibrate prose.txt"
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// The file to write.
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run")]
    pub(crate) out: Option<PathBuf>,
    /// q4, q8, f16, or a TOML file that says what each kind of matrix becomes.
    #[arg(long, default_value = "q4")]
    recipe: String,
    /// Round the layers' matrices against what this text makes of their inputs: PATH, PATH#VIEW or
    /// PATH#VIEW:LIMIT, as for `sharp analyze --data`. Better at the same size, and slower. A GGUF
    /// file's blocks are then in memory in float32: of a large model import it in 16 bits first.
    #[arg(long, value_name = "SPEC")]
    calibrate: Option<DataSpec>,
    /// How much of that text, in tokens.
    #[arg(long, value_name = "N", default_value_t = 4096, requires = "calibrate")]
    calibration_tokens: usize,
    /// Tokens of a sequence of it.
    #[arg(long, value_name = "N", default_value_t = 512, requires = "calibrate")]
    seq_len: usize,
    #[command(flatten)]
    part: PartArgs,
    /// A runtime file of the same model and plan: take its matrices as they lie there, and round (to its
    /// formats) only those that `--recovery` brings. For what `sharp-train finetune --runtime FILE` made
    /// of it.
    #[arg(long, value_name = "FILE", requires = "recovery", conflicts_with_all = ["calibrate", "recipe", "dry_run"])]
    onto: Option<PathBuf>,
    /// Also write what became of each tensor, with its error, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Say how large the file's weights would be and write nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: Args, global: &Global, output: &Output) -> Result<()> {
    let source = args.source.open()?;
    let recipe = Recipe::load(&args.recipe)?;
    let (Some(out), false) = (&args.out, args.dry_run) else {
        let bytes = sharp_infer::quantized_bytes(&source, &recipe)?;
        let before = source.stored_bytes()?;
        return output.result(&json!({ "weight_bytes": bytes, "source_bytes": before }), || {
            format!("{} of weights, from {}", output::bytes(bytes), output::bytes(before))
        });
    };
    let team = Arc::new(Team::new(global.threads())?);
    let progress = Terminal::stderr();
    let report = match (&args.onto, &args.calibrate) {
        (Some(onto), _) => {
            let path = args.source.recovery.as_deref().context("--onto goes with --recovery")?;
            let anew = Recovery::load(path)?.tensors()?.iter().map(|t| t.name().to_owned()).collect();
            sharp_infer::quantize_onto(&source, &PackedFile::open(onto)?, &anew, out, &team, &progress)?
        }
        (None, None) => sharp_infer::quantize(&source, &recipe, out, &team, &progress)?,
        (None, Some(spec)) => {
            let sequences =
                args.part.sequences(spec, source.path(), args.seq_len, args.calibration_tokens)?;
            sharp_infer::quantize_calibrated(&source, &recipe, &sequences, out, &team, &progress)?
        }
    };
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&report)?;
        write_atomic(path, |w| writeln!(w, "{text}"))?;
    }
    output.result(&report, || describe(&report))
}

fn describe(report: &QuantReport) -> String {
    let worst = report.tensors.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
    let worst = worst.map_or_else(String::new, |tensor| {
        format!("; largest relative error {:.4} in {}", tensor.relative_error, tensor.name)
    });
    format!(
        "{} in the file, {} of weights, from {}{worst}",
        output::bytes(report.file_bytes),
        output::bytes(report.weight_bytes),
        output::bytes(report.source_bytes)
    )
}
