//! The driver: `cargo xtask pipeline` takes a checkpoint to a report. It provisions, orders
//! the stages, skips what is done and starts programs. The pipeline itself is the crate sharp-pipeline.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program talks to its user")]

mod build;
mod commands;
mod libtorch;
mod observer;
mod paths;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use commands::run::{PipelineArgs, StageArgs};
use commands::{benchmark, doctor, fuzz, generate, interop, run, setup, test};
use sharp_pipeline::{Error, Stage};

/// Compress a language model with SHARP: from a checkpoint to a report.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every stage that is not up to date: from a checkpoint to a report
    Pipeline(PipelineArgs),
    /// Bring the checkpoint into one form
    Import(StageArgs),
    /// Measure how alike the layers are
    Analyze(StageArgs),
    /// Choose what each layer of the compressed model runs with
    Plan(StageArgs),
    /// Fit the parameters of each changed layer alone (SLW)
    Warmup(StageArgs),
    /// Train the parameters of all changed layers together (SFT)
    Finetune(StageArgs),
    /// Write the compressed checkpoint
    Export(StageArgs),
    /// Write the files that the engine runs
    Quantize(StageArgs),
    /// Measure perplexity and task accuracy
    Evaluate(StageArgs),
    /// Measure speed and memory; with --peer, beside llama.cpp
    Benchmark(benchmark::Args),
    /// Write the page for a person
    Report(StageArgs),
    /// Fetch libtorch, models and data into the cache and check them
    Setup(setup::Args),
    /// Run a grid of configurations and lay their results side by side
    Study(commands::study::Args),
    /// Generate text with the compressed model of a run
    Generate(generate::Args),
    /// Run every check that continuous integration runs
    Test(test::Args),
    /// Run the scripts that hold files and server against the real programs they are made for
    Interop(interop::Args),
    /// Feed the parsers with damaged and hostile inputs
    Fuzz(fuzz::Args),
    /// Run the kernels' tests for 64-bit ARM, under emulation
    Cross(commands::cross::Args),
    /// Put the product under what it has to stand: kills at random moments, full disks, a loaded server
    Torture(commands::torture::Args),
    /// Say what this machine has and what is missing
    Doctor(doctor::Args),
}

/// The commands by what a person wants to do.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Compress and compare", &["pipeline", "study", "generate"]),
    (
        "One stage, and what it needs",
        &[
            "import",
            "analyze",
            "plan",
            "warmup",
            "finetune",
            "export",
            "quantize",
            "evaluate",
            "benchmark",
            "report",
        ],
    ),
    ("This machine", &["setup", "doctor"]),
    ("Work on SHARP itself", &["test", "interop", "fuzz", "cross", "torture"]),
];

/// Makes the command line, its commands listed by [`GROUPS`].
fn grouped() -> clap::Command {
    let command = Cli::command();
    let mut list = String::new();
    for (title, names) in GROUPS {
        list.push_str(&format!("{title}:\n"));
        for name in names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            list.push_str(&format!("  {name:<10} {}\n", about.map(ToString::to_string).unwrap_or_default()));
        }
        list.push('\n');
    }
    let template =
        format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}\n");
    command.help_template(template)
}

fn main() -> ExitCode {
    build::remember_environment();
    let cli = Cli::from_arg_matches(&grouped().get_matches()).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        Command::Pipeline(args) => run::pipeline(&args),
        Command::Import(args) => run::stage(Stage::Import, &args),
        Command::Analyze(args) => run::stage(Stage::Analyze, &args),
        Command::Plan(args) => run::stage(Stage::Plan, &args),
        Command::Warmup(args) => run::stage(Stage::Warmup, &args),
        Command::Finetune(args) => run::stage(Stage::Finetune, &args),
        Command::Export(args) => run::stage(Stage::Export, &args),
        Command::Quantize(args) => run::stage(Stage::Quantize, &args),
        Command::Evaluate(args) => run::stage(Stage::Evaluate, &args),
        Command::Benchmark(args) => benchmark::run(&args),
        Command::Report(args) => run::stage(Stage::Report, &args),
        Command::Setup(args) => setup::run(&args),
        Command::Study(args) => commands::study::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Interop(args) => interop::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Cross(args) => commands::cross::run(&args),
        Command::Torture(args) => commands::torture::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if matches!(error.downcast_ref(), Some(Error::Stopped)) { 130 } else { 1 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert_eq!(grouped.iter().filter(|other| **other == name).count(), 1, "{name}");
            assert!(command.get_about().is_some(), "{name}");
        }
        assert_eq!(grouped.len(), Cli::command().get_subcommands().count());
        let help = super::grouped().render_help().to_string();
        assert!(help.contains("This machine:\n  setup      Fetch libtorch"), "{help}");
        super::grouped().debug_assert();
    }
}
