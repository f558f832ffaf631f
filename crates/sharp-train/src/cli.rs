//! The command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use sharp_data::{Chat, DataSpec, Document, PackOptions, TokenBlocks, pack, read, split};
use sharp_model::packed::PackedFile;
use sharp_model::tokenizer::Tokenizer;
use sharp_model::{ModelSource, Plan, Recovery};
use sharp_progress::Terminal;
use sharp_train::finetune::{FinetuneOptions, TrainMlps, check_memory, finetune, least_memory};
use sharp_train::warmup::{WarmupOptions, Weighting, warmup};
use sharp_train::{Compute, Loss, Start};

/// Warms up and fine-tunes the recovery parameters of a sharing plan.
#[derive(Debug, Parser)]
#[command(
    name = "sharp-train",
    version,
    after_help = "Examples:\n  sharp-train warmup --model smollm2 --plan plan.toml --data text.jsonl --start whitened --out warm\n  \
                  sharp-train finetune --model smollm2 --plan plan.toml --recovery warm --data text.jsonl --out tuned"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Say more on standard error (twice: everything).
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Print the result as JSON on standard output.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fit each target alone to what the original's MLP does (Single Layer Warmup).
    Warmup(Box<WarmupArgs>),
    /// Train all recovery parameters together (Supervised Fine-Tuning).
    Finetune(Box<FinetuneArgs>),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Bf16 {
    /// Where the processor multiplies bf16 in hardware.
    Auto,
    /// Always.
    On,
    /// Never: float32.
    Off,
}

/// What both trainings take.
#[derive(Debug, clap::Args)]
struct Shared {
    /// The original: a Hugging Face directory.
    #[arg(long)]
    model: PathBuf,
    /// The sharing plan.
    #[arg(long)]
    plan: PathBuf,
    /// Data: a file, `file#view` or `file#view:limit`; may be given several times.
    #[arg(long, required = true)]
    data: Vec<DataSpec>,
    /// Folder to write to; what is done there already is not done again.
    #[arg(long)]
    out: PathBuf,
    /// Tokens in a row.
    #[arg(long, default_value_t = 512)]
    seq_len: usize,
    /// Fraction of the documents that training never sees.
    #[arg(long, default_value_t = 0.05)]
    held_out: f64,
    /// Tokens of the held-out side to measure on.
    #[arg(long, default_value_t = 4096)]
    held_out_tokens: usize,
    /// Seed of the split, the order of the data and the first values.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seed of the split alone, where it is to stay as another run's.
    #[arg(long)]
    split_seed: Option<u64>,
    /// Worker threads; 0 is one for each core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Multiply in bf16, with float32 masters.
    #[arg(long, value_enum, default_value = "auto")]
    bf16: Bf16,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
}

#[derive(Debug, clap::Args)]
struct WarmupArgs {
    #[command(flatten)]
    shared: Shared,
    /// Tokens of activations that each target is fitted on.
    #[arg(long, default_value_t = 40_960)]
    tokens: usize,
    /// Steps a layer at most; 0 keeps the start as it is.
    #[arg(long, default_value_t = 400)]
    steps: u64,
    /// Tokens in a step.
    #[arg(long, default_value_t = 1024)]
    batch_tokens: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Decoupled weight decay of the factors.
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Where the parameters begin: zero (the paper's) or whitened (closed form).
    #[arg(long, default_value = "zero")]
    start: Start,
    /// How each token's squared error counts: none (the paper's), residual or output.
    #[arg(long, default_value = "residual")]
    weighting: Weighting,
    /// Steps between measurements of the held-out error.
    #[arg(long, default_value_t = 25)]
    eval_every: u64,
    /// Measurements without a new best after which a layer is done.
    #[arg(long, default_value_t = 6)]
    patience: u64,
    /// MiB of activations above which they go to files in the output folder.
    #[arg(long, default_value_t = 1024)]
    memory_mib: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LossName {
    /// Cross entropy of the counted tokens.
    Completion,
    /// KL to the original's distribution.
    Distill,
    /// Both, `--distill` being the original's share (a half unless given).
    Mixed,
}

#[derive(Debug, clap::Args)]
struct FinetuneArgs {
    #[command(flatten)]
    shared: Shared,
    /// Recovery parameters to begin with: a warm-up's folder or a file. Without them: the paper's zero start.
    #[arg(long)]
    recovery: Option<PathBuf>,
    /// A runtime file (`sharp quantize`) of this model, plan and recovery, whose rounding is to be repaired: everything frozen is as it lies
    /// there, and what is trained is rounded alike. `sharp quantize --onto` puts the result into it.
    #[arg(long, value_name = "FILE", requires = "recovery")]
    runtime: Option<PathBuf>,
    /// Training tokens to prepare; 0 is as many as the steps take, so that none comes twice.
    #[arg(long, default_value_t = 0)]
    tokens: usize,
    /// Steps.
    #[arg(long, default_value_t = 200)]
    steps: u64,
    /// Tokens in a step.
    #[arg(long, default_value_t = 2048)]
    batch_tokens: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Steps over which the rate rises; a twentieth of all unless given.
    #[arg(long)]
    lr_warmup: Option<u64>,
    /// Decoupled weight decay of matrices.
    #[arg(long, default_value_t = 0.01)]
    weight_decay: f64,
    /// Largest norm of the gradient; 0 leaves it alone.
    #[arg(long, default_value_t = 1.0)]
    clip: f64,
    /// What is minimised; unless given, what `--distill` says.
    #[arg(long, value_enum)]
    loss: Option<LossName>,
    /// Weight of the original's whole distribution: 0 is the data alone, 1 the original alone.
    #[arg(long)]
    distill: Option<f64>,
    /// Temperature of the distillation.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Train the RMS norms too.
    #[arg(long)]
    train_norms: bool,
    /// Train stored MLPs too: none (the paper's), shared or all.
    #[arg(long, default_value = "none")]
    train_mlps: TrainMlps,
    /// Memory that may be taken, in MiB; what the machine has unless given
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u64>,
    /// Only say whether there is memory enough, and train nothing
    #[arg(long)]
    check: bool,
    /// Steps between checkpoints; 0 writes none.
    #[arg(long, default_value_t = 50)]
    save_every: u64,
    /// Steps between measurements on held-out data; 0 only at the beginning and the end.
    #[arg(long, default_value_t = 20)]
    eval_every: u64,
}

/// Everything that both trainings read.
struct Prepared {
    source: ModelSource,
    plan: Plan,
    train: TokenBlocks,
    held_out: TokenBlocks,
    compute: Compute,
}

/// Runs what was asked for.
pub(crate) fn run(args: &Args) -> Result<()> {
    let progress = Terminal::stderr();
    match &args.command {
        Command::Warmup(a) => {
            let ready = prepare(&a.shared, a.tokens)?;
            let mut options = WarmupOptions::default();
            options.start = a.start;
            options.steps = a.steps;
            options.batch_tokens = a.batch_tokens;
            options.lr = a.lr;
            options.weight_decay = a.weight_decay;
            options.weighting = a.weighting;
            options.eval_every = a.eval_every;
            options.patience = a.patience;
            options.seed = a.shared.seed;
            options.memory_bytes = a.memory_mib.saturating_mul(1 << 20);
            let Prepared { source, plan, train, held_out, compute } = &ready;
            let summary = warmup(source, plan, train, held_out, &a.shared.out, compute, &options, &progress)?;
            report(args.json, &summary, || {
                let mut text = String::new();
                for l in &summary.layers {
                    text += &format!(
                        "layer {:>3}: error {:.4} -> {:.4} in {} steps, {:.1} s\n",
                        l.layer, l.start_error, l.error, l.steps, l.seconds
                    );
                }
                text
            })
        }
        Command::Finetune(a) => {
            let options = finetune_options(a)?;
            if a.check {
                return check(args, a, &options);
            }
            let rows = (a.batch_tokens / a.shared.seq_len.max(1)).max(1);
            let wanted = match a.tokens {
                0 => usize::try_from(a.steps)?.saturating_mul(rows * a.shared.seq_len).max(a.shared.seq_len),
                tokens => tokens,
            };
            let ready = prepare(&a.shared, wanted)?;
            let recovery = match &a.recovery {
                Some(path) => Some(Recovery::load(path).with_context(|| format!("{}", path.display()))?),
                None => None,
            };
            let runtime = a.runtime.as_ref().map(PackedFile::open).transpose()?;
            let Prepared { source, plan, train, held_out, compute } = &ready;
            let summary = finetune(
                source,
                plan,
                recovery.as_ref(),
                runtime.as_ref(),
                train,
                held_out,
                &a.shared.out,
                compute,
                &options,
                &progress,
            )?;
            report(args.json, &summary, || {
                format!(
                    "held-out perplexity {:.2} -> {:.2} in {} steps, {:.0} tokens/s\n",
                    summary.start_perplexity, summary.perplexity, summary.steps, summary.tokens_per_second
                )
            })
        }
    }
}

fn finetune_options(a: &FinetuneArgs) -> Result<FinetuneOptions> {
    let mut options = FinetuneOptions::default();
    options.loss = loss(a)?;
    options.steps = a.steps;
    options.batch_tokens = a.batch_tokens;
    options.lr = a.lr;
    options.lr_warmup = a.lr_warmup;
    options.weight_decay = a.weight_decay;
    options.clip = a.clip;
    options.train_norms = a.train_norms;
    options.train_mlps = a.train_mlps;
    options.memory_bytes = a.memory_mib.map(|mib| mib.saturating_mul(1 << 20));
    options.save_every = a.save_every;
    options.eval_every = a.eval_every;
    options.seed = a.shared.seed;
    Ok(options)
}

/// Says what memory it takes at least, or fails where there is less.
fn check(args: &Args, a: &FinetuneArgs, options: &FinetuneOptions) -> Result<()> {
    let source = ModelSource::open(&a.shared.model)?;
    let plan = Plan::load(&a.shared.plan)?;
    plan.validate(source.config())?;
    let compute = compute(&a.shared)?;
    check_memory(&source, &plan, &compute, options)?;
    let bytes = least_memory(&source, &plan, &compute, options);
    report(args.json, &serde_json::json!({"least_memory_bytes": bytes}), || {
        format!("fine-tuning takes at least {:.1} GiB of memory\n", bytes as f64 / (1u64 << 30) as f64)
    })
}

fn loss(a: &FinetuneArgs) -> Result<Loss> {
    let temperature = a.temperature;
    let share = match (a.loss, a.distill) {
        (Some(LossName::Completion), None) | (None, None) => 0.0,
        (Some(LossName::Distill), None) => 1.0,
        (Some(LossName::Mixed), None) => 0.5,
        (Some(LossName::Completion | LossName::Distill), Some(_)) => {
            bail!("--distill goes with --loss mixed, or stands alone")
        }
        (Some(LossName::Mixed) | None, Some(share)) => share,
    };
    ensure!((0.0..=1.0).contains(&share), "--distill {share} is not between 0 and 1");
    Ok(match share {
        0.0 => Loss::Completion,
        1.0 => Loss::Distill { temperature },
        _ => Loss::Mixed { weight: 1.0 - share, temperature },
    })
}

fn prepare(shared: &Shared, tokens: usize) -> Result<Prepared> {
    let source = ModelSource::open(&shared.model)?;
    let plan = Plan::load(&shared.plan)?;
    plan.validate(source.config())?;
    let tokenizer = Tokenizer::load(&shared.model)?;
    let chat = Chat::from_tokenizer(&tokenizer)?;
    let mut docs: Vec<Document> = Vec::new();
    for spec in &shared.data {
        docs.extend(read(spec, chat.as_ref())?);
    }
    let split_seed = shared.split_seed.unwrap_or(shared.seed);
    let sides = split(docs, shared.held_out, split_seed)?;
    let ends = (tokenizer.bos_id(), tokenizer.eos_ids().first().copied());
    let options = PackOptions::new(shared.seq_len)
        .with_ends(ends.0, ends.1)
        .with_budget(Some(tokens))
        .shuffled(shared.seed);
    let train = pack(&sides.train, &tokenizer, &options).context("the training side of the data")?;
    ensure!(!sides.held_out.is_empty(), "nothing is held out: raise --held-out, or give more documents");
    let held = PackOptions::new(shared.seq_len)
        .with_ends(ends.0, ends.1)
        .with_budget(Some(shared.held_out_tokens))
        .shuffled(split_seed)
        .padded();
    let held_out = pack(&sides.held_out, &tokenizer, &held).context("the held-out side of the data")?;
    let compute = compute(shared)?;
    tracing::info!(?compute, rows = train.rows(), held_out = held_out.rows(), "prepared");
    Ok(Prepared { source, plan, train, held_out, compute })
}

fn compute(shared: &Shared) -> Result<Compute> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if shared.threads == 0 { cores } else { shared.threads };
    let precision = match shared.bf16 {
        Bf16::Auto => "auto",
        Bf16::On => "bf16",
        Bf16::Off => "f32",
    };
    Ok(Compute::from_names(&shared.device, precision, threads)?)
}

#[allow(clippy::print_stdout)]
fn report(json: bool, summary: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<()> {
    match json {
        true => println!("{}", serde_json::to_string_pretty(summary)?),
        false => print!("{}", text()),
    }
    Ok(())
}
