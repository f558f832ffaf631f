#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod commands;
mod data;
mod help;
mod hub;
mod machine;
mod model;
mod output;
mod report;
mod sampling;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::commands::{
    analyze, benchmark, chat, doctor, evaluate, export, generate, import, inspect, plan, quantize,
    report as report_page, serve, shell, synth,
};
use crate::output::Output;

/// Compress Llama-family models by pruning or sharing their MLPs, and run them fast on a CPU.
#[derive(Debug, Parser)]
#[command(
    name = "sharp",
    version,
    about,
    after_help = "Example:\n  sharp quantize --model model.gguf --out model.sharp\n  \
                  sharp generate --model model.sharp --prompt \"Once upon a time\"\n\n\
                  A model is a model.sharp file, a Hugging Face directory (dense or compact) or a GGUF file. \
                  A checkpoint is one of the last two. Built with the feature `hub`, both may also be a name of the \
                  Hugging Face Hub: org/name, org/name@revision or org/name/file.gguf.\n\n\
                  The engine runs the Q4_0, Q8_0 and float matrices of a GGUF file unchanged and rounds other blocks \
                  to 8 bits. analyze, quantize and export read its values unchanged."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Print the result as one JSON object on standard output.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Threads to compute with; all cores by default.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Say more on standard error (-v: what is done, -vv: details).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

impl Global {
    /// Threads to use: as asked, or one for each core.
    pub(crate) fn threads(&self) -> usize {
        self.threads
            .map(usize::from)
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn a checkpoint (Hugging Face directory or GGUF file) into a plain Hugging Face directory.
    Import(import::Args),
    /// Measure how similar the layers are to each other.
    Analyze(analyze::Args),
    /// Choose what each layer has in place of its MLP.
    Plan(plan::Args),
    /// Write the compressed model as a compact checkpoint, and as a dense one for other tools.
    Export(export::Args),
    /// Quantise a model into one file that the engine maps and runs.
    Quantize(quantize::Args),
    /// Measure perplexity, distance from the first model, and multiple-choice accuracy.
    #[command(visible_alias = "eval")]
    Evaluate(evaluate::Args),
    /// Measure load, prefill and decode speed, memory, and the fraction of the machine's limit.
    #[command(visible_alias = "bench")]
    Benchmark(benchmark::Args),
    /// Generate text.
    Generate(generate::Args),
    /// Talk with a model in the terminal.
    Chat(chat::Args),
    /// Answer requests over HTTP as OpenAI's API does, with a chat page.
    Serve(serve::Args),
    /// List the contents of a model: tensors, plan, parameters, bytes.
    Inspect(inspect::Args),
    /// Write the report page of a run.
    Report(report_page::Args),
    /// Make a model with random weights, of any shape.
    Synth(synth::Args),
    /// Show what this machine offers: CPU features, threads, memory bandwidth.
    Doctor(doctor::Args),
    /// Print a script that completes this program's commands in a shell.
    Completions(shell::Completions),
    /// Write manual pages.
    Man(shell::Man),
}

impl Command {
    /// The models that the command takes.
    fn models(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Import(args) => vec![&mut args.source],
            Self::Analyze(args) => vec![args.model.path_mut()],
            Self::Plan(args) => vec![args.model.path_mut()],
            Self::Export(args) => vec![args.source.model.path_mut()],
            Self::Quantize(args) => vec![args.source.model.path_mut()],
            Self::Evaluate(args) => args.model.iter_mut().map(|named| &mut named.value).collect(),
            Self::Benchmark(args) => args.model.iter_mut().collect(),
            Self::Generate(args) => vec![args.model.path_mut()],
            Self::Chat(args) => vec![args.model.path_mut()],
            Self::Serve(args) => vec![args.model.path_mut()],
            Self::Inspect(args) => vec![args.model.path_mut()],
            Self::Report(_) | Self::Synth(_) | Self::Doctor(_) | Self::Completions(_) | Self::Man(_) => {
                Vec::new()
            }
        }
    }
}

impl Command {
    /// Checks the places that the command is to write, before it does the work.
    fn check_outputs(&self) -> anyhow::Result<()> {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        match self {
            Self::Import(args) => folders.push(&args.out),
            Self::Analyze(args) => folders.push(&args.out),
            Self::Plan(args) => files.extend(&args.out),
            Self::Export(args) => {
                folders.extend([&args.out, &args.dense, &args.peft].into_iter().flatten());
                files.extend(&args.gguf);
            }
            Self::Quantize(args) => files.extend([&args.out, &args.report].into_iter().flatten()),
            Self::Evaluate(args) => files.extend(&args.out),
            Self::Benchmark(args) => files.extend(&args.out),
            Self::Report(args) => files.extend(&args.out),
            Self::Synth(args) if args.writes_a_file() => files.push(&args.out),
            Self::Synth(args) => folders.push(&args.out),
            Self::Man(args) => folders.push(&args.out),
            Self::Generate(_)
            | Self::Chat(_)
            | Self::Serve(_)
            | Self::Inspect(_)
            | Self::Doctor(_)
            | Self::Completions(_) => {}
        }
        files.into_iter().try_for_each(|path| sharp_model::check_file(path))?;
        folders.into_iter().try_for_each(|path| sharp_model::check_folder(path))?;
        Ok(())
    }
}

fn main() -> ExitCode {
    let matches = help::grouped(Cli::command()).get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let level = match cli.global.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("SHARP_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();

    let output = Output::new(cli.global.json);
    let global = &cli.global;
    let outputs = cli.command.check_outputs();
    if let Err(error) = outputs.and_then(|()| cli.command.models().into_iter().try_for_each(hub::resolve)) {
        output.error(&error);
        return ExitCode::FAILURE;
    }
    let result = match cli.command {
        Command::Import(args) => import::run(args, global, &output),
        Command::Analyze(args) => analyze::run(args, global, &output),
        Command::Plan(args) => plan::run(args, global, &output),
        Command::Export(args) => export::run(args, global, &output),
        Command::Quantize(args) => quantize::run(args, global, &output),
        Command::Evaluate(args) => evaluate::run(args, global, &output),
        Command::Benchmark(args) => benchmark::run(args, global, &output),
        Command::Generate(args) => generate::run(args, global, &output),
        Command::Chat(args) => chat::run(args, global, &output),
        Command::Serve(args) => serve::run(args, global, &output),
        Command::Inspect(args) => inspect::run(args, global, &output),
        Command::Report(args) => report_page::run(args, global, &output),
        Command::Synth(args) => synth::run(args, global, &output),
        Command::Doctor(args) => doctor::run(args, global, &output),
        Command::Completions(args) => shell::completions(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command(), &output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::FAILURE
        }
    }
}
