//! `sharp synth`: models with random weights, for tests and for measuring speed at any shape.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use sharp_infer::{Recipe, Synthetic, Team};
use sharp_model::{LayerChange, ModelConfig, Plan, Ranks, Repair, rank_for_rho};
use sharp_progress::Terminal;

use crate::Global;
use crate::output::{self, Output};

/// Make a model with random weights, of any shape.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp synth --layers 22 --hidden 2048 --intermediate 5632 --heads 32 --kv-heads 4 --vocab 32000 --share 2 --out 1b.sharp"
)]
pub(crate) struct Args {
    /// A named shape: tiny is a megabyte, for tests. Single sizes given beside it replace its own.
    #[arg(long, value_enum, default_value = "tiny")]
    preset: Preset,
    /// Layers.
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Width of the residual stream.
    #[arg(long, value_name = "N")]
    hidden: Option<usize>,
    /// Width of the MLPs.
    #[arg(long, value_name = "N")]
    intermediate: Option<usize>,
    /// Query heads.
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Key and value heads.
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Tokens of the vocabulary.
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// How many consecutive layers use one MLP; 1: each its own.
    #[arg(long, value_name = "N", default_value_t = 1)]
    share: usize,
    /// Recovery parameters of a sharing layer as a fraction of one MLP; 0: none.
    #[arg(long, default_value_t = 0.134)]
    rho: f64,
    /// The rank of the recovery parameters instead, the same for every projection.
    #[arg(long, value_name = "R", conflicts_with = "rho")]
    rank: Option<usize>,
    /// Same seed, same weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A folder for a checkpoint in float32, or a file ending in .sharp for a packed model.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// Formats of the packed model.
    #[arg(long, default_value = "q4")]
    recipe: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Preset {
    Tiny,
    #[value(name = "smollm2-135m")]
    SmolLm2,
    #[value(name = "llama-110m")]
    Llama110M,
    #[value(name = "tinyllama-1.1b")]
    TinyLlama,
    #[value(name = "llama2-7b")]
    Llama2,
}

impl Preset {
    /// Hidden size, intermediate size, layers, heads, key-value heads, vocabulary.
    fn shape(self) -> [usize; 6] {
        match self {
            Preset::Tiny => [64, 160, 6, 4, 2, 272],
            Preset::SmolLm2 => [576, 1536, 30, 9, 3, 49_152],
            Preset::Llama110M => [768, 2048, 12, 12, 12, 32_000],
            Preset::TinyLlama => [2048, 5632, 22, 32, 4, 32_000],
            Preset::Llama2 => [4096, 11_008, 32, 32, 32, 32_000],
        }
    }
}

impl Args {
    /// Whether the model is to be one packed file, by the name of the output.
    pub(crate) fn writes_a_file(&self) -> bool {
        self.out.extension().is_some_and(|extension| extension == "sharp")
    }
}

pub(crate) fn run(args: Args, global: &Global, output: &Output) -> Result<()> {
    let [hidden, intermediate, layers, heads, kv_heads, vocab] = args.preset.shape();
    let config = ModelConfig::llama(
        args.hidden.unwrap_or(hidden),
        args.intermediate.unwrap_or(intermediate),
        args.layers.unwrap_or(layers),
        args.heads.unwrap_or(heads),
        args.kv_heads.unwrap_or(kv_heads),
        args.vocab.unwrap_or(vocab),
    )?;
    let plan = plan(&config, args.share, args.rho, args.rank)?;
    let progress = Terminal::stderr();
    if args.writes_a_file() {
        let source = Synthetic::source(&config, plan.as_ref(), args.seed)?;
        let team = Team::new(global.threads())?;
        sharp_infer::quantize(&source, &Recipe::load(&args.recipe)?, &args.out, &team, &progress)?;
    } else {
        Synthetic::write(&config, plan.as_ref(), args.seed, &args.out, &progress)?;
    }
    let parameters = config.total_parameters();
    output.result(&json!({ "path": args.out, "parameters": parameters }), || {
        format!(
            "{}: {:.1} M parameters without sharing ({} in 16 bits)",
            args.out.display(),
            parameters as f64 / 1e6,
            output::bytes(2 * parameters)
        )
    })
}

/// Groups of `share` layers, each with the MLP of its first.
fn plan(config: &ModelConfig, share: usize, rho: f64, rank: Option<usize>) -> Result<Option<Plan>> {
    if share == 0 || !(0.0..1.0).contains(&rho) {
        bail!("--share is at least 1 and --rho from 0 to less than 1");
    }
    let repair = match rank.unwrap_or_else(|| if rho == 0.0 { 0 } else { rank_for_rho(config, rho) }) {
        0 => Repair::None,
        rank => Repair::low_rank(Ranks::uniform(rank)),
    };
    let changes: Vec<LayerChange> = (0..config.num_hidden_layers)
        .filter(|layer| layer % share != 0)
        .map(|layer| LayerChange::share(layer, layer - layer % share, repair).because("synthetic"))
        .collect();
    Ok((!changes.is_empty()).then(|| Plan::new("groups", changes)))
}
