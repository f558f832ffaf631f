//! `sharp analyze`: how alike the layers are.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;
use sharp_infer::{Model, Options};
use sharp_model::{ModelSource, Stored, write_atomic};
use sharp_progress::Terminal;

use crate::Global;
use crate::data::DataArgs;
use crate::model::ModelArg;
use crate::output::Output;

/// Measure how alike the layers are.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp analyze --model original --data prose.txt --out analysis --delta-nll 2048"
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    #[command(flatten)]
    data: DataArgs,
    /// The folder for similarity.json and similarity.html.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How much text, in tokens.
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    tokens: usize,
    /// Tokens of a sequence.
    #[arg(long, value_name = "N", default_value_t = 512)]
    seq_len: usize,
    /// The greatest distance between the layers of a pair.
    #[arg(long, value_name = "N", default_value_t = 2)]
    window: usize,
    /// Also measure the model's own loss with each pair shared, on this many of the tokens.
    #[arg(long, value_name = "TOKENS")]
    delta_nll: Option<usize>,
}

pub(crate) fn run(args: Args, global: &Global, output: &Output) -> Result<()> {
    let options = Options { threads: global.threads(), ..Options::default() };
    let model = match Stored::at(args.model.path())? {
        // To run it, its blocks would be rounded to what the kernels take.
        Stored::Gguf(file) => Model::from_source(&ModelSource::open(file)?, &options)?,
        _ => Model::open(args.model.path(), &options)?,
    };
    let DataArgs { data, part } = &args.data;
    let sequences = part.sequences(data, args.model.path(), args.seq_len, args.tokens)?;
    let options = sharp_similarity::Options {
        window: args.window,
        delta_nll_tokens: args.delta_nll.unwrap_or(0),
        ..Default::default()
    };
    let report = sharp_similarity::analyze(&model, &sequences, &options, &Terminal::stderr())?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("making the folder {}", args.out.display()))?;
    let (data, page) = (args.out.join("similarity.json"), args.out.join("similarity.html"));
    let text = report.to_json()?;
    write_atomic(&data, |w| w.write_all(text.as_bytes()))?;
    write_atomic(&page, |w| w.write_all(sharp_similarity::html_page(&report).as_bytes()))?;
    output.result(
        &json!({ "report": data, "page": page, "tokens": report.tokens, "pairs": report.pairs.len() }),
        || {
            format!(
                "{} pairs of layers on {} tokens: {}, {}",
                report.pairs.len(),
                report.tokens,
                data.display(),
                page.display()
            )
        },
    )
}
