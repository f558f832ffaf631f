//! `cargo xtask torture`: what the product has to stand, for longer than a test may take.

mod client;
mod disk;
mod exchange;
mod kills;
mod server;
mod tiny;

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::paths;

/// Options of `torture`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kill the tiny pipeline so many times at random moments; then fill its disk, forbid it to write, and
    /// start it twice at once
    #[arg(long, value_name = "N", required_unless_present = "server")]
    kills: Option<u32>,
    /// Seed of the moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Put a server under clients that stream, read slowly, leave, and send what nobody should
    #[arg(long, conflicts_with = "kills")]
    server: bool,
    #[command(flatten)]
    load: server::Load,
    /// Print the figures as one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--kills` found.
#[derive(Debug, Serialize)]
struct Figures {
    /// Seconds of an uninterrupted run.
    run_seconds: f64,
    kills: kills::Figures,
    disk: disk::Figures,
}

/// Runs what was asked for; fails where something did not hold.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Some(kills) = args.kills else { return serve(args) };
    let figures = pipeline(kills, args.seed)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&figures).context("the figures as JSON")?),
        false => print!("{}{}", figures.kills.text(), figures.disk.text()),
    }
    Ok(())
}

fn serve(args: &Args) -> Result<()> {
    let figures = server::torture(&server::program()?, &args.load)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&figures).context("the figures as JSON")?),
        false => print!("{}", figures.text()),
    }
    figures.check(&args.load)
}

fn pipeline(kills: u32, seed: u64) -> Result<Figures> {
    let tiny = tiny::Tiny::provide()?;
    let folder = paths::repository()?.join("runs").join(format!("torture-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let begun = Instant::now();
    let whole = folder.join("uninterrupted");
    tiny.finish(&whole)?;
    let took = begun.elapsed();
    let run_seconds = took.as_secs_f64();
    eprintln!("an uninterrupted run: {run_seconds:.1} s");
    let reference = tiny::results(&whole)?;
    let kills = kills::torture(&tiny, &reference, took, &folder, (kills, seed))?;
    let disk = disk::torture(&tiny, &reference, &folder)?;
    // Kept where something failed, to be looked at.
    fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    Ok(Figures { run_seconds, kills, disk })
}
