//! `sharp report`: writes the report page of a run.

use std::path::{Path, PathBuf};

use anyhow::Result;
use sharp_schema::run as files;

use crate::Global;
use crate::commands::evaluate::Named;
use crate::commands::generate;
use crate::hub;
use crate::output::Output;
use crate::report::{Sample, write_report};

/// Write the report page of a run, as HTML and as Markdown.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sharp report --run runs/smollm2-135m")]
pub(crate) struct Args {
    /// The folder of the run.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// The page to write, with a Markdown copy beside it; report.html in the run folder by default.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Another run to compare this one with, NAME=DIR or DIR; may be given more than once.
    #[arg(long, value_name = "RUN")]
    beside: Vec<Named<PathBuf>>,
    /// Text for the models to go on from, shown in the report; may be given more than once.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Vec<String>,
    /// Tokens of each sample.
    #[arg(long, value_name = "N", default_value_t = 64)]
    sample_tokens: usize,
}

/// The packed files of a run whose text is shown, by the name of their row.
const SAMPLED: [(&str, &str); 2] =
    [("original_q4", files::ORIGINAL_MODEL), ("slw_sft_q4", files::COMPRESSED_MODEL)];

pub(crate) fn run(args: Args, global: &Global, output: &Output) -> Result<()> {
    let mut samples = Vec::new();
    for (row, file) in SAMPLED {
        let path = args.run.join(files::QUANTIZE).join(file);
        if path.exists() && !args.prompt.is_empty() {
            samples.extend(write_samples(row, &path, &args, global)?);
        }
    }
    let beside: Vec<(String, PathBuf)> = args
        .beside
        .iter()
        .map(|run| (run.name.clone().unwrap_or_else(|| hub::name(&run.value)), run.value.clone()))
        .collect();
    let written = write_report(&args.run, args.out.as_deref(), &samples, &beside)?;
    output.result(&written, || {
        let mut text = format!("{}\n{}\n", written.html.display(), written.markdown.display());
        for stage in &written.missing {
            text.push_str(&format!("missing: {stage}\n"));
        }
        text
    })
}

fn write_samples(row: &str, path: &Path, args: &Args, global: &Global) -> Result<Vec<Sample>> {
    let runner = generate::Runner::open(path, global.threads())?;
    let mut samples = Vec::new();
    for prompt in &args.prompt {
        let written = runner.greedy(prompt, args.sample_tokens)?;
        samples.push(Sample {
            model: row.to_owned(),
            prompt: prompt.clone(),
            text: written.text,
            tokens_per_second: Some(written.decode_tokens_per_second),
        });
    }
    Ok(samples)
}
