//! `cargo xtask test`: every check, the cheapest first. Continuous integration runs exactly this.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sharp_pipeline::{Error, Program, stop_requested};

use crate::build::{self, cargo};
use crate::commands::{interop, setup};
use crate::observer::catch_signals;

/// Options of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these checks; all by default
    #[arg(long, value_delimiter = ',', value_name = "CHECK")]
    only: Vec<Check>,
}

/// One of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Check {
    /// rustfmt.
    Fmt,
    /// Fetch and verify what the tests need.
    Setup,
    /// Clippy, warnings refused.
    Clippy,
    /// rustdoc, warnings refused.
    Doc,
    /// All tests of all crates, in release, doctests too.
    Tests,
    /// The tiny pipeline twice: the second run does nothing.
    Pipeline,
    /// The quick scripts of tests/interop: the openai package, the gguf package, a terminal, Chromium where it is installed.
    Interop,
}

/// Runs the checks in order and stops at the first that fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    use Check::{Clippy, Doc, Fmt, Interop, Pipeline, Setup, Tests};
    catch_signals()?;
    let mut times = Vec::new();
    let mut left_out = Vec::new();
    for check in [Fmt, Setup, Clippy, Doc, Tests, Pipeline, Interop] {
        if !args.only.is_empty() && !args.only.contains(&check) {
            continue;
        }
        let started = Instant::now();
        eprintln!("\n== {check:?}");
        // One profile for everything: what clippy, rustdoc and the tests share is compiled once.
        match check {
            Fmt => call(cargo()?.args(["fmt", "--all", "--check"]))?,
            Setup => setup::run(&setup::Args::default())?,
            Clippy => call(cargo()?.args([
                "clippy",
                "--release",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]))?,
            Doc => call(
                cargo()?
                    .args(["doc", "--release", "--workspace", "--no-deps"])
                    .env("RUSTDOCFLAGS", "-D warnings"),
            )?,
            Tests => {
                let programs = build::everything()?;
                let mut command = cargo()?;
                command.args(["test", "--release", "--workspace"]);
                call(command.env("SHARP_REQUIRE_MATERIALS", "1").env("SHARP_BIN_DIR", programs))?;
            }
            Pipeline => tiny_twice(&build::everything()?)?,
            Interop => left_out = interop::quick(&build::everything()?.join(Program::Sharp.name()))?,
        }
        times.push(format!("{check:?} {:.0} s", started.elapsed().as_secs_f64()));
    }
    eprintln!("\nall checks passed: {}", times.join(", "));
    if !left_out.is_empty() {
        eprintln!("left out, since this machine lacks what they need (said above): {}", left_out.join(", "));
    }
    Ok(())
}

fn call(command: &mut Command) -> Result<()> {
    let shown = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("starting {shown}"))?;
    if stop_requested() {
        return Err(Error::Stopped.into());
    }
    if !status.success() {
        bail!("this check failed ({status}): {shown}");
    }
    Ok(())
}

/// The whole way on the tiny model, from nothing, and once more. By the driver as just built: that build may have put a new file where
/// this process was started from.
fn tiny_twice(programs: &Path) -> Result<()> {
    let folder = crate::paths::repository()?.join("runs").join("tiny-check");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    let pipeline = || -> Result<Command> {
        let mut command = Command::new(programs.join("xtask"));
        command.args(["pipeline", "--config", "configs/tiny.toml", "--json", "--out"]).arg(&folder);
        command.current_dir(crate::paths::repository()?).env("SHARP_BIN_DIR", programs);
        Ok(command)
    };
    call(pipeline()?.stdout(Stdio::null()))?;
    let second = pipeline()?
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting the second run")?;
    if !second.status.success() {
        bail!("the second run of the tiny pipeline failed ({})", second.status);
    }
    let summary: serde_json::Value =
        serde_json::from_slice(&second.stdout).context("the second run's --json output")?;
    let steps =
        summary.get("steps").and_then(serde_json::Value::as_array).context("the second run has no steps")?;
    let ran: Vec<String> = steps
        .iter()
        .filter(|step| step.get("status").and_then(serde_json::Value::as_str) != Some("skipped"))
        .map(|step| step.get("folder").map(ToString::to_string).unwrap_or_default())
        .collect();
    if steps.is_empty() || !ran.is_empty() {
        bail!("the second run of the tiny pipeline should do nothing, and ran {}", ran.join(", "));
    }
    eprintln!("second run: all {} steps skipped", steps.len());
    Ok(())
}
