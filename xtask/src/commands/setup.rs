//! `cargo xtask setup`: everything from outside, fetched once and checked.

use anyhow::Result;
use sharp_pipeline::provision;
use sharp_pipeline::provision::pins::{self, Kind, PinnedFile};

use crate::libtorch;
use crate::observer::stderr;

/// Options of `setup`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Only libtorch
    #[arg(long, conflicts_with = "materials")]
    libtorch: bool,
    /// Only the model and the data
    #[arg(long)]
    materials: bool,
}

/// Fetches what is missing and verifies the hashes of what is there.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.materials {
        eprintln!("{}", libtorch::provide()?);
    }
    if !args.libtorch {
        let all: Vec<&PinnedFile> = pins::FILES.iter().collect();
        provision::files(&all, true, &stderr)?;
        let count = |kind| all.iter().filter(|file| file.kind == kind).count();
        eprintln!(
            "{} model, {} training splits, {} evaluation splits, hashes right",
            count(Kind::Model),
            count(Kind::Train),
            count(Kind::Task)
        );
    }
    Ok(())
}
