//! `cargo xtask generate`: text from the compressed model of a run.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result, bail};
use sharp_pipeline::{Program, sharp};
use sharp_schema::run::{COMPRESSED_MODEL, QUANTIZE};

use super::run::RunArgs;
use crate::{build, paths};

/// Options of `generate`; what follows `--` goes to `sharp generate` as it is.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// The text to go on from, or the question to answer
    #[arg(long, default_value = "Once upon a time")]
    prompt: String,
    /// Further options of `sharp generate`, after --
    #[arg(last = true, value_name = "OPTIONS")]
    more: Vec<OsString>,
}

/// Builds `sharp` and hands over to it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let run = args.run.resolve()?;
    let model = run.path(QUANTIZE).join(COMPRESSED_MODEL);
    if !model.is_file() {
        bail!(
            "{} is not made yet: run `cargo xtask pipeline {}` first",
            paths::shown(&model),
            args.run.for_shell()
        );
    }
    let programs = build::provide(&[Program::Sharp])?;
    let line = sharp::generate(&model, &args.prompt);
    let status = Command::new(programs.path(line.program)?)
        .args(line.arguments)
        .args(&args.more)
        .status()
        .context("starting sharp")?;
    if !status.success() {
        bail!("sharp generate failed ({status})");
    }
    Ok(())
}
