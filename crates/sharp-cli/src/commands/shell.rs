//! `sharp completions` and `sharp man`: what a shell and `man` want to know about this program.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap_complete::Shell;
use serde_json::json;

use crate::output::Output;

/// Print a script that completes this program's commands and options.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp completions bash > ~/.local/share/bash-completion/completions/sharp"
)]
pub(crate) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn completions(args: &Completions, mut program: clap::Command) -> Result<()> {
    // Into memory first: the generator takes a reader that goes away for a bug.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "sharp", &mut script);
    let mut out = io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(())
}

/// Write manual pages: sharp.1, and sharp-COMMAND.1 for each command.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sharp man --out ~/.local/share/man/man1 && man sharp-serve")]
pub(crate) struct Man {
    /// Folder to write to; made if it is not there.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
}

pub(crate) fn man(args: &Man, program: clap::Command, output: &Output) -> Result<()> {
    std::fs::create_dir_all(&args.out).with_context(|| format!("making {}", args.out.display()))?;
    clap_mangen::generate_to(program, &args.out)
        .with_context(|| format!("writing manual pages to {}", args.out.display()))?;
    output.result(&json!({ "out": args.out }), || format!("manual pages in {}", args.out.display()))
}
