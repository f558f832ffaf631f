//! Disks that are full or read-only, and two drivers at once.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::tiny::{Results, Tiny, end, errors, refused};

/// What was tried, all of it with the bytes of an undisturbed run at the end.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    /// Sizes in bytes at which a file could not grow any more, one run after the other in one folder.
    full_at: Vec<u64>,
    /// Whether a read-only folder was tried; root writes there as well.
    read_only: bool,
    /// Pairs of drivers that were started at once.
    pairs: u32,
    /// Drivers of these that were refused.
    refused: u32,
}

/// Tries all of it.
pub(super) fn torture(tiny: &Tiny, reference: &Results, folder: &Path) -> Result<Figures> {
    let full_at = full(tiny, reference, &folder.join("full"))?;
    let read_only = read_only(tiny, reference, &folder.join("read-only"))?;
    let (pairs, refused) = pairs(tiny, reference, folder)?;
    Ok(Figures { full_at, read_only, pairs, refused })
}

/// Lets the disk be full at every size of file that the run writes, from the smallest on: each run gets a
/// file further and fails with a message.
fn full(tiny: &Tiny, reference: &Results, run: &Path) -> Result<Vec<u64>> {
    let mut sizes: Vec<u64> = reference.values().map(|bytes| bytes.len() as u64 / 512).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut full_at = Vec::new();
    for blocks in sizes.into_iter().filter(|&blocks| blocks > 0) {
        let output = tiny.limited(run, blocks).output().context("starting the pipeline")?;
        if output.status.success() {
            break;
        }
        refused(&output).with_context(|| format!("with files of at most {blocks} blocks"))?;
        full_at.push(blocks * 512);
        eprintln!("full at {} bytes: refused with a message", blocks * 512);
    }
    if full_at.is_empty() {
        bail!("no write failed: this system does not limit the size of files");
    }
    end(tiny, reference, run)?;
    Ok(full_at)
}

/// Makes the folder of a half finished run read-only; false for a user who may write there all the same.
#[cfg(unix)]
fn read_only(tiny: &Tiny, reference: &Results, run: &Path) -> Result<bool> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut half = tiny.command(run);
    let output = half.args(["--until", "plan"]).output().context("starting the pipeline")?;
    if !output.status.success() {
        bail!("the pipeline fails as far as the plan:\n{}", errors(&output));
    }
    let permit = |mode| {
        fs::set_permissions(run, fs::Permissions::from_mode(mode))
            .with_context(|| format!("changing the permissions of {}", run.display()))
    };
    permit(0o555)?;
    let writes = fs::write(run.join("try"), "").is_ok();
    let output = (!writes).then(|| tiny.command(run).output()).transpose();
    permit(0o755)?;
    if writes {
        fs::remove_file(run.join("try")).context("removing a trial file")?;
        eprintln!("read-only folder: left out, this user may write there all the same");
    }
    if let Some(output) = output.context("starting the pipeline")? {
        refused(&output).context("in a read-only folder")?;
    }
    end(tiny, reference, run)?;
    Ok(!writes)
}

/// Starts two drivers at once, a few times: one works, and the other is refused or comes after it.
fn pairs(tiny: &Tiny, reference: &Results, folder: &Path) -> Result<(u32, u32)> {
    const PAIRS: u32 = 3;
    let mut told = 0;
    for pair in 0..PAIRS {
        let run = folder.join(format!("pair-{pair}"));
        let start = || tiny.command(&run).stderr(Stdio::piped()).spawn().context("starting the pipeline");
        let both = [start()?, start()?];
        let mut done = 0;
        for driver in both {
            let output = driver.wait_with_output().context("waiting for the pipeline")?;
            match output.status.success() {
                true => done += 1,
                false if errors(&output).contains("another run works in") => told += 1,
                false => bail!("beside another driver:\n{}", errors(&output)),
            }
        }
        if done == 0 {
            bail!("of two drivers none did the work");
        }
        end(tiny, reference, &run)?;
        eprintln!("two drivers at once: {} of {PAIRS}", pair + 1);
    }
    Ok((PAIRS, told))
}

impl Figures {
    /// The figures in words.
    pub(super) fn text(&self) -> String {
        let sizes: Vec<String> = self.full_at.iter().map(u64::to_string).collect();
        let read_only = if self.read_only { "refused with a message" } else { "not tried as root" };
        format!(
            "a full disk at files of {} bytes: each refused with a message, and gone on from\na read-only folder: {read_only}\n\
             two drivers at once, {} times: {} refused with a message\n",
            sizes.join(", "),
            self.pairs,
            self.refused
        )
    }
}
