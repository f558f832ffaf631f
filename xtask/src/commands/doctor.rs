//! `cargo xtask doctor`: what this machine has, what is missing, and what to do about it.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use sharp_pipeline::provision::pins::{self, Kind, Wheel};
use sharp_pipeline::{cache, provision, this_machine};

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
    let mut findings = Findings::default();
    findings.machine();
    findings.tools();
    findings.libtorch()?;
    for kind in [Kind::Model, Kind::Train, Kind::Task] {
        findings.downloads(kind, args.verify)?;
    }
    if findings.missing > 0 {
        bail!("{} of these must be put right first", findings.missing);
    }
    Ok(())
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings {
    missing: usize,
}

impl Findings {
    /// Prints one line.
    fn line(&mut self, good: bool, what: &str, found: &str) {
        println!("{} {what:<14} {found}", if good { "ok     " } else { "MISSING" });
        self.missing += usize::from(!good);
    }

    /// Looks at the processor and the memory.
    fn machine(&mut self) {
        let host = this_machine();
        self.line(true, "machine", &format!("{}, {}, {} threads", host.system, host.cpu, host.threads));
        match sharp_host::total_memory().map(|bytes| bytes as f64 / (1u64 << 30) as f64) {
            Some(gib) => self.line(
                gib >= 6.0,
                "memory",
                &format!(
                    "{gib:.1} GiB{}",
                    if gib < 6.0 {
                        "; the default run needs 6: try --set threads=1 or configs/tiny.toml"
                    } else {
                        ""
                    }
                ),
            ),
            None => self.line(true, "memory", "unknown on this system"),
        }
    }

    /// Looks for the programs that building and fetching need.
    fn tools(&mut self) {
        for (what, command, advice) in [
            ("rust", &["rustc", "--version"][..], "install Rust 1.95 or later with rustup"),
            ("rustfmt", &["cargo", "fmt", "--version"], "rustup component add rustfmt"),
            ("clippy", &["cargo", "clippy", "--version"], "rustup component add clippy"),
        ] {
            let found = first_line(command);
            self.line(found.is_some(), what, found.as_deref().unwrap_or(advice));
        }
        let compiler = std::env::var("CXX").ok().into_iter().chain([
            "c++".to_owned(),
            "g++".to_owned(),
            "clang++".to_owned(),
        ]);
        let compiler = compiler.filter_map(|name| first_line(&[&name, "--version"])).next();
        self.line(
            compiler.is_some(),
            "c++ compiler",
            compiler.as_deref().unwrap_or("libtorch's bindings need one (Debian: apt-get install g++)"),
        );
        let pip = ["python3 -m pip", "python -m pip", "pip3", "pip"]
            .iter()
            .find_map(|way| first_line(&[&way.split(' ').collect::<Vec<_>>()[..], &["--version"]].concat()));
        self.line(
            pip.is_some(),
            "pip",
            pip.as_deref()
                .unwrap_or("fetches libtorch, the model and the data (Debian: apt-get install python3-pip)"),
        );
    }

    /// Looks for the cache and for libtorch.
    fn libtorch(&mut self) -> Result<()> {
        let cache = cache()?;
        self.line(true, "cache", &cache.display().to_string());
        match libtorch::found() {
            Ok(Some(origin)) => self.line(true, "libtorch", &origin.to_string()),
            Ok(None) => self.line(
                true,
                "libtorch",
                &format!("not yet: cargo xtask setup fetches it ({} MB)", libtorch::TORCH.megabytes),
            ),
            Err(error) => self.line(false, "libtorch", &format!("{error:#}")),
        }
        Ok(())
    }

    /// Looks for the pinned files of one kind.
    fn downloads(&mut self, kind: Kind, verify: bool) -> Result<()> {
        let files: Vec<_> = pins::FILES.iter().filter(|file| file.kind == kind).collect();
        let mut there = 0;
        let mut damaged = Vec::new();
        let mut wheels: Vec<Wheel> = Vec::new();
        for file in &files {
            if !provision::is_cached(file)? {
                if !wheels.contains(&file.wheel) {
                    wheels.push(file.wheel);
                }
            } else if verify && provision::sha256_of(&provision::cached_path(file)?)? != file.sha256 {
                damaged.push(file.name);
            } else {
                there += 1;
            }
        }
        let what = match kind {
            Kind::Model => "model",
            Kind::Train => "training data",
            Kind::Task => "tasks",
        };
        let megabytes: u32 = wheels.iter().map(|wheel| wheel.megabytes).sum();
        let mut text = format!("{there} of {} cached", files.len());
        if megabytes > 0 {
            text += &format!("; the rest comes when it is needed ({megabytes} MB)");
        }
        if !damaged.is_empty() {
            text += &format!("; damaged: {} (cargo xtask setup mends it)", damaged.join(", "));
        }
        self.line(damaged.is_empty(), what, &text);
        Ok(())
    }
}

/// Returns the first line that a program prints, if it is there and ends well.
fn first_line(command: &[&str]) -> Option<String> {
    let (program, arguments) = command.split_first()?;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}
