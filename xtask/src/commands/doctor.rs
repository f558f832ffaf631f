//! `cargo xtask doctor`: what this machine has, what is missing, and what to do about it.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use sharp_pipeline::provision::pins::{self, Wheel};
use sharp_pipeline::{Host, cache, provision};

use crate::libtorch;

/// Options of `doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Read and hash every cached file
    #[arg(long)]
    verify: bool,
}

/// Prints one line for each thing; fails where something that is needed is missing.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut missing = 0;
    let mut line = |good: bool, what: &str, found: &str| {
        println!("{} {what:<14} {found}", if good { "ok     " } else { "MISSING" });
        missing += usize::from(!good);
    };
    let host = Host::here();
    line(true, "machine", &format!("{}, {}, {} threads", host.system, host.cpu, host.threads));
    match sharp_host::total_memory().map(|bytes| bytes as f64 / (1u64 << 30) as f64) {
        Some(gib) => line(
            gib >= 6.0,
            "memory",
            &format!(
                "{gib:.1} GiB{}",
                if gib < 6.0 { "; the default run needs 6: try --set threads=1 or tiny.toml" } else { "" }
            ),
        ),
        None => line(true, "memory", "unknown on this system"),
    }
    for (what, command, advice) in [
        ("rust", &["rustc", "--version"][..], "install Rust 1.95 or later with rustup"),
        ("rustfmt", &["cargo", "fmt", "--version"], "rustup component add rustfmt"),
        ("clippy", &["cargo", "clippy", "--version"], "rustup component add clippy"),
    ] {
        let found = first_line(command);
        line(found.is_some(), what, found.as_deref().unwrap_or(advice));
    }
    let compiler = std::env::var("CXX").ok().into_iter().chain([
        "c++".to_owned(),
        "g++".to_owned(),
        "clang++".to_owned(),
    ]);
    let compiler = compiler.filter_map(|name| first_line(&[&name, "--version"])).next();
    line(
        compiler.is_some(),
        "c++ compiler",
        compiler.as_deref().unwrap_or("libtorch's bindings need one (Debian: apt-get install g++)"),
    );
    let pip = ["python3 -m pip", "python -m pip", "pip3", "pip"]
        .iter()
        .find_map(|way| first_line(&[&way.split(' ').collect::<Vec<_>>()[..], &["--version"]].concat()));
    line(
        pip.is_some(),
        "pip",
        pip.as_deref()
            .unwrap_or("fetches libtorch, the model and the data (Debian: apt-get install python3-pip)"),
    );
    let cache = cache()?;
    line(true, "cache", &cache.display().to_string());
    match libtorch::found() {
        Ok(Some(origin)) => line(true, "libtorch", &origin.to_string()),
        Ok(None) => line(
            true,
            "libtorch",
            &format!("not yet: cargo xtask setup fetches it ({} MB)", libtorch::TORCH.megabytes),
        ),
        Err(error) => line(false, "libtorch", &format!("{error:#}")),
    }
    for kind in [pins::Kind::Model, pins::Kind::Train, pins::Kind::Task] {
        let files: Vec<_> = pins::FILES.iter().filter(|file| file.kind == kind).collect();
        let mut there = 0;
        let mut damaged = Vec::new();
        let mut wheels: Vec<Wheel> = Vec::new();
        for file in &files {
            if !provision::is_cached(file)? {
                if !wheels.contains(&file.wheel) {
                    wheels.push(file.wheel);
                }
            } else if args.verify && provision::sha256_of(&provision::cached_path(file)?)? != file.sha256 {
                damaged.push(file.name);
            } else {
                there += 1;
            }
        }
        let what = match kind {
            pins::Kind::Model => "model",
            pins::Kind::Train => "training data",
            pins::Kind::Task => "tasks",
        };
        let megabytes: u32 = wheels.iter().map(|wheel| wheel.megabytes).sum();
        let mut text = format!("{there} of {} cached", files.len());
        if megabytes > 0 {
            text += &format!("; the rest comes when it is needed ({megabytes} MB)");
        }
        if !damaged.is_empty() {
            text += &format!("; damaged: {} (cargo xtask setup mends it)", damaged.join(", "));
        }
        line(damaged.is_empty(), what, &text);
    }
    if missing > 0 {
        bail!("{missing} of these must be put right first");
    }
    Ok(())
}

/// The first line that a program prints, if it is there and ends well.
fn first_line(command: &[&str]) -> Option<String> {
    let (program, arguments) = command.split_first()?;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}
