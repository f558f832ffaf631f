//! The command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use sharp_data::{Chat, DataSpec, Document, PackOptions, Text, TokenBlocks, pack, read, read_texts, split};
use sharp_model::packed::PackedFile;
use sharp_model::tokenizer::Tokenizer;
use sharp_model::{ModelSource, Plan, Recovery, check_folder};
use sharp_progress::Terminal;
use sharp_schema::Bf16;
use sharp_schema::evaluation::{Request, TextRequest};
use sharp_train::finetune::{
    FinetuneOptions, Pace, Reuse, StartFrom, check_memory, estimate_pace, finetune, memory_needed,
    memory_needed_onto,
};
use sharp_train::warmup::{WarmupOptions, warmup};
use sharp_train::{Compute, Job, Loss, Start, TrainMlps, Weighting, check_trainable};

/// Bytes of a mebibyte.
const MIB: u64 = 1 << 20;

/// Warms up and fine-tunes the recovery parameters of a plan.
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

/// What both trainings take.
#[derive(Debug, clap::Args)]
struct CommonArgs {
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
    /// Fraction of the documents that training never sees; as many again are for validation.
    #[arg(long, default_value_t = 0.05)]
    held_out: f64,
    /// Tokens of the validation side, which the best step and state are chosen by.
    #[arg(long, default_value_t = 4096)]
    validation_tokens: usize,
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
    #[arg(long, value_enum, default_value_t)]
    bf16: Bf16,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
}

#[derive(Debug, clap::Args)]
struct WarmupArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Tokens of activations that each target is fitted on.
    #[arg(long, default_value_t = 40_960)]
    tokens: usize,
    /// Steps a layer at most; 0 keeps the start as it is.
    #[arg(long, default_value_t = WarmupOptions::default().steps)]
    steps: u64,
    /// Tokens in a step.
    #[arg(long, default_value_t = WarmupOptions::default().batch_tokens)]
    batch_tokens: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = WarmupOptions::default().lr)]
    lr: f64,
    /// Decoupled weight decay of the factors.
    #[arg(long, default_value_t = WarmupOptions::default().weight_decay)]
    weight_decay: f64,
    /// Where the parameters begin: at the paper's zero start, or at a closed-form fit.
    #[arg(long, value_enum, default_value_t = WarmupOptions::default().start)]
    start: Start,
    /// What each token's squared error is divided by: nothing (the paper's), the residual stream or the
    /// MLP's output.
    #[arg(long, value_enum, default_value_t = WarmupOptions::default().weighting)]
    weighting: Weighting,
    /// Steps between measurements of the validation error.
    #[arg(long, default_value_t = WarmupOptions::default().eval_every)]
    eval_every: u64,
    /// Measurements without a new best after which a layer is done.
    #[arg(long, default_value_t = WarmupOptions::default().patience)]
    patience: u64,
    /// MiB of activations above which they go to files in the output folder.
    #[arg(long, default_value_t = WarmupOptions::default().memory_bytes / MIB)]
    memory_mib: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LossName {
    /// Cross entropy of the counted tokens.
    Completion,
    /// KL to the original's distribution.
    Distill,
    /// Both, `--distill` being the original's weight (a half unless given).
    Mixed,
}

#[derive(Debug, clap::Args)]
struct FinetuneArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Recovery parameters to begin with: a warm-up's folder or a file. Without them: the paper's zero
    /// start.
    #[arg(long)]
    recovery: Option<PathBuf>,
    /// A runtime file (`sharp quantize`) of this model, plan and recovery, whose rounding is to be repaired:
    /// everything frozen is as it lies there, and what is trained is rounded alike. `sharp quantize --onto`
    /// puts the result into it.
    #[arg(long, value_name = "FILE", requires = "recovery")]
    runtime: Option<PathBuf>,
    /// Training tokens to prepare; 0 is as many as the steps take, so that none comes twice.
    #[arg(long, default_value_t = 0)]
    tokens: usize,
    /// Steps.
    #[arg(long, default_value_t = FinetuneOptions::default().steps)]
    steps: u64,
    /// Tokens in a step.
    #[arg(long, default_value_t = FinetuneOptions::default().batch_tokens)]
    batch_tokens: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = FinetuneOptions::default().lr)]
    lr: f64,
    /// Steps over which the rate rises; a twentieth of all unless given.
    #[arg(long)]
    lr_warmup: Option<u64>,
    /// The last step's rate as a fraction of the highest.
    #[arg(long, default_value_t = FinetuneOptions::default().lr_floor)]
    lr_floor: f64,
    /// Decoupled weight decay of matrices.
    #[arg(long, default_value_t = FinetuneOptions::default().weight_decay)]
    weight_decay: f64,
    /// Largest norm of the gradient; 0 leaves it alone.
    #[arg(long, default_value_t = FinetuneOptions::default().clip)]
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
    /// Train stored MLPs too; none is the paper's choice.
    #[arg(long, value_enum, default_value_t = FinetuneOptions::default().train_mlps)]
    train_mlps: TrainMlps,
    /// Neighbouring pruned layers that run the neurons of all of them, each with gains of its own. The
    /// result is measured and not written.
    #[arg(long, value_name = "LAYERS")]
    pool: Option<usize>,
    /// Layers that run twice in a row, the second time with norms and gates of their own. The result is
    /// measured and not written.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    run_twice: Vec<usize>,
    /// Texts to measure the result on: a `rows.toml` as `sharp evaluate` reads it, its rows left out.
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// Memory that may be taken, in MiB; what the machine has unless given.
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u64>,
    /// Train nothing; say what memory and time it takes on this machine, and fail where it cannot be done.
    #[arg(long)]
    check: bool,
    /// With `--check`: leave out the time, for which a layer and the head are run.
    #[arg(long, requires = "check")]
    untimed: bool,
    /// Steps between checkpoints; 0 writes none.
    #[arg(long, default_value_t = FinetuneOptions::default().save_every)]
    save_every: u64,
    /// Steps between measurements on validation data; 0 only at the beginning and the end.
    #[arg(long, default_value_t = FinetuneOptions::default().eval_every)]
    eval_every: u64,
    /// Stop after this many steps, leaving the last checkpoint to go on from.
    #[arg(long, value_name = "STEPS")]
    stop_after: Option<u64>,
}

/// Everything that both trainings read.
struct Prepared {
    source: ModelSource,
    plan: Plan,
    train: TokenBlocks,
    validation: TokenBlocks,
    compute: Compute,
    progress: Terminal,
}

impl Prepared {
    fn job<'a>(&'a self, out: &'a Path) -> Job<'a> {
        Job {
            source: &self.source,
            plan: &self.plan,
            train: &self.train,
            validation: &self.validation,
            out,
            compute: self.compute,
            progress: &self.progress,
        }
    }
}

/// Runs what was asked for.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Warmup(a) => run_warmup(a, args.json),
        Command::Finetune(a) if a.check => check(a, args.json),
        Command::Finetune(a) => run_finetune(a, args.json),
    }
}

fn run_warmup(a: &WarmupArgs, json: bool) -> Result<()> {
    let options = WarmupOptions {
        start: a.start,
        steps: a.steps,
        batch_tokens: a.batch_tokens,
        lr: a.lr,
        weight_decay: a.weight_decay,
        weighting: a.weighting,
        eval_every: a.eval_every,
        patience: a.patience,
        seed: a.common.seed,
        memory_bytes: a.memory_mib.saturating_mul(MIB),
    };
    let ready = prepare(&a.common, a.tokens)?;
    let summary = warmup(&ready.job(&a.common.out), &options)?;
    report(json, &summary, || {
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

fn run_finetune(a: &FinetuneArgs, json: bool) -> Result<()> {
    let mut options = finetune_options(a)?;
    let rows = (a.batch_tokens / a.common.seq_len.max(1)).max(1);
    let wanted = match a.tokens {
        0 => usize::try_from(a.steps)?.saturating_mul(rows * a.common.seq_len).max(a.common.seq_len),
        tokens => tokens,
    };
    let ready = prepare(&a.common, wanted)?;
    if let Some(path) = &a.texts {
        options.texts = texts(path, &a.common.model)?;
    }
    let recovery = match &a.recovery {
        Some(path) => Some(Recovery::load(path).with_context(|| format!("{}", path.display()))?),
        None => None,
    };
    let runtime = a.runtime.as_ref().map(PackedFile::open).transpose()?;
    let from = match (&recovery, &runtime) {
        (None, None) => StartFrom::Zero,
        (Some(recovery), None) => StartFrom::Recovery(recovery),
        (Some(recovery), Some(file)) => StartFrom::RuntimeFile { recovery, file },
        (None, Some(_)) => bail!("--runtime needs --recovery"),
    };
    let summary = finetune(&ready.job(&a.common.out), from, &options)?;
    report(json, &summary, || {
        format!(
            "validation perplexity {:.2} -> {:.2} in {} steps{}, {:.0} tokens/s\n",
            summary.start_perplexity,
            summary.perplexity,
            summary.steps,
            match summary.kept_step {
                kept if kept == summary.steps => String::new(),
                0 => ": no step made it better, and what it began with is kept".into(),
                kept => format!(": the state after step {kept} was the best, and is kept"),
            },
            summary.tokens_per_second
        )
    })
}

fn finetune_options(a: &FinetuneArgs) -> Result<FinetuneOptions> {
    let reuse = Reuse { pool: a.pool, twice: a.run_twice.iter().copied().collect() };
    Ok(FinetuneOptions {
        reuse,
        texts: Vec::new(),
        loss: loss(a)?,
        steps: a.steps,
        batch_tokens: a.batch_tokens,
        lr: a.lr,
        lr_warmup: a.lr_warmup,
        lr_floor: a.lr_floor,
        weight_decay: a.weight_decay,
        clip: a.clip,
        train_norms: a.train_norms,
        train_mlps: a.train_mlps,
        save_every: a.save_every,
        eval_every: a.eval_every,
        seed: a.common.seed,
        memory_bytes: a.memory_mib.map(|mib| mib.saturating_mul(MIB)),
        stop_after: a.stop_after,
    })
}

/// What `--check` reports.
#[derive(serde::Serialize)]
struct Forecast {
    /// Bytes of anonymous memory at the peak.
    memory_bytes: u64,
    #[serde(flatten)]
    pace: Option<Pace>,
}

/// Reports the memory and the time that fine-tuning takes; fails where there is less memory.
fn check(a: &FinetuneArgs, json: bool) -> Result<()> {
    let options = &finetune_options(a)?;
    let (source, plan) = open(&a.common)?;
    let compute = compute(&a.common)?;
    let seq_len = a.common.seq_len;
    let needed = if a.runtime.is_some() { memory_needed_onto } else { memory_needed };
    let memory_bytes = needed(&source, &plan, seq_len, &compute, options);
    check_memory(memory_bytes, &compute, options)?;
    let validation = a.common.validation_tokens.div_ceil(seq_len.max(1));
    let timed = || estimate_pace(&source, &plan, (seq_len, validation), &compute, options);
    let pace = (!a.untimed).then(timed).transpose()?;
    report(json, &Forecast { memory_bytes, pace }, || {
        let gib = memory_bytes as f64 / (1u64 << 30) as f64;
        let steps = format!("{} steps of {} tokens", a.steps, a.batch_tokens);
        match pace {
            None => format!("fine-tuning: {steps}; {gib:.1} GiB of memory\n"),
            Some(Pace { tokens_per_second, seconds }) => format!(
                "fine-tuning: {steps}, about {} at {tokens_per_second:.0} tokens/s on this machine; {gib:.1} GiB of memory\n",
                duration(seconds)
            ),
        }
    })
}

/// Writes a time as roughly as an estimate is.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 90.0 * 60.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

fn loss(a: &FinetuneArgs) -> Result<Loss> {
    let temperature = a.temperature;
    let distill = match (a.loss, a.distill) {
        (Some(LossName::Completion), None) | (None, None) => 0.0,
        (Some(LossName::Distill), None) => 1.0,
        (Some(LossName::Mixed), None) => 0.5,
        (Some(LossName::Completion | LossName::Distill), Some(_)) => {
            bail!("--distill goes with --loss mixed, or stands alone")
        }
        (Some(LossName::Mixed) | None, Some(distill)) => distill,
    };
    ensure!((0.0..=1.0).contains(&distill), "--distill {distill} is not between 0 and 1");
    Ok(match distill {
        0.0 => Loss::Completion,
        1.0 => Loss::Distill { temperature },
        _ => Loss::Mixed { weight: 1.0 - distill, temperature },
    })
}

/// Opens the original and the plan, and refuses what cannot be trained before anything large is read.
fn open(common: &CommonArgs) -> Result<(ModelSource, Plan)> {
    let source = ModelSource::open(&common.model)?;
    check_trainable(source.config(), common.seq_len)
        .with_context(|| format!("{}", common.model.display()))?;
    let plan = Plan::load(&common.plan)?;
    plan.validate(source.config())?;
    Ok((source, plan))
}

fn prepare(common: &CommonArgs, tokens: usize) -> Result<Prepared> {
    check_folder(&common.out)?;
    let (source, plan) = open(common)?;
    let tokenizer = Tokenizer::load(&common.model)?;
    let chat = Chat::from_tokenizer(&tokenizer);
    let mut docs: Vec<Document> = Vec::new();
    for spec in &common.data {
        docs.extend(read(spec, chat.as_ref())?);
    }
    let split_seed = common.split_seed.unwrap_or(common.seed);
    let sides = split(docs, common.held_out, split_seed)?;
    let rows = PackOptions::of(&tokenizer, common.seq_len)?;
    let options = rows.clone().with_budget(Some(tokens)).shuffled(common.seed);
    let train = pack(&sides.train, &tokenizer, &options).context("the training side of the data")?;
    ensure!(
        !sides.validation.is_empty(),
        "no document is left for validation: raise --held-out, or give three documents or more"
    );
    let held = rows.with_budget(Some(common.validation_tokens)).shuffled(split_seed).padded();
    let validation = pack(&sides.validation, &tokenizer, &held).context("the validation side of the data")?;
    let compute = compute(common)?;
    tracing::info!(?compute, rows = train.rows(), validation = validation.rows(), "prepared");
    Ok(Prepared { source, plan, train, validation, compute, progress: Terminal::stderr() })
}

/// Reads the texts that a file of [`Request`] names, in rows as `sharp evaluate` cuts them into windows.
fn texts(path: &Path, model: &Path) -> Result<Vec<(String, TokenBlocks)>> {
    let place = || format!("{}", path.display());
    let text = std::fs::read_to_string(path).with_context(place)?;
    let request: Request<DataSpec> = toml::from_str(&text).with_context(place)?;
    let tokenizer = Tokenizer::load(model)?;
    let chat = Chat::from_tokenizer(&tokenizer);
    let rows = |text: &TextRequest<DataSpec>| -> Result<_> {
        let documents = read_texts(&text.data, chat.as_ref(), text.split, request.held_out, request.seed)?;
        let whole = Text::new(&text.name, &tokenizer, &documents, text.tokens)?;
        let rows = whole.rows(request.window, request.stride)?;
        Ok((whole.name, rows))
    };
    request.texts.iter().map(|text| rows(text).with_context(|| format!("the text {:?}", text.name))).collect()
}

fn compute(common: &CommonArgs) -> Result<Compute> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if common.threads == 0 { cores } else { common.threads };
    let precision = match common.bf16 {
        Bf16::Auto => "auto",
        Bf16::On => "bf16",
        Bf16::Off => "f32",
    };
    Ok(Compute::from_names(&common.device, precision, threads)?)
}

#[allow(clippy::print_stdout)]
fn report(json: bool, summary: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<()> {
    match json {
        true => println!("{}", serde_json::to_string_pretty(summary)?),
        false => print!("{}", text()),
    }
    Ok(())
}
