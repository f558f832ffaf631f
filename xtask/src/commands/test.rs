//! `cargo xtask test`: every check, the cheapest first. Continuous integration runs exactly this.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sharp_pipeline::{Error, Outcome, Program, StepStatus, stop_requested};

use crate::build::{self, cargo};
use crate::commands::{fuzz, interop, setup};
use crate::observer::catch_signals;
use crate::paths;

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
    /// No comment line is longer than a line of code may be.
    Comments,
    /// Licences and duplicates of dependencies, where cargo-deny is installed.
    Deny,
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
    /// Every fuzz target for two seconds.
    Fuzz,
    /// The quick scripts of tests/interop: the openai package, the gguf package, a terminal, Chromium where
    /// it is installed.
    Interop,
}

/// Runs the checks in order and stops at the first that fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    use Check::{Clippy, Comments, Deny, Doc, Fmt, Fuzz, Interop, Pipeline, Setup, Tests};
    catch_signals()?;
    let mut times = Vec::new();
    let mut left_out: Vec<String> = Vec::new();
    for check in [Fmt, Comments, Deny, Setup, Clippy, Doc, Tests, Pipeline, Fuzz, Interop] {
        if !args.only.is_empty() && !args.only.contains(&check) {
            continue;
        }
        let started = Instant::now();
        eprintln!("\n== {check:?}");
        // One profile for everything: what clippy, rustdoc and the tests share is compiled once.
        match check {
            Fmt => call(cargo()?.args(["fmt", "--all", "--check"]))?,
            Comments => comments(&paths::repository()?)?,
            Deny => left_out.extend(deny()?),
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
            Fuzz => fuzz::briefly()?,
            Interop => left_out.extend(interop::quick(&build::everything()?.join(Program::Sharp.name()))?),
        }
        times.push(format!("{check:?} {:.0} s", started.elapsed().as_secs_f64()));
    }
    eprintln!("\nall checks passed: {}", times.join(", "));
    if !left_out.is_empty() {
        eprintln!("left out, since this machine lacks what they need (said above): {}", left_out.join(", "));
    }
    Ok(())
}

/// Checks the dependencies by deny.toml; gives the name of the check where cargo-deny is not installed.
fn deny() -> Result<Option<String>> {
    let asked = cargo()?.args(["deny", "--version"]).stdin(Stdio::null()).output();
    if !asked.is_ok_and(|output| output.status.success()) {
        eprintln!("cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(Some("deny".to_owned()));
    }
    // The advisories need the network, so they are left to CI.
    let arguments = ["deny", "--offline", "--log-level", "error", "check", "licenses", "bans", "sources"];
    call(cargo()?.args(arguments))?;
    Ok(None)
}

/// The number of columns that rustfmt.toml gives a line.
const WIDTH: usize = 110;

/// Refuses comment lines that are longer than a line of code may be.
fn comments(root: &Path) -> Result<()> {
    let mut long = Vec::new();
    let mut waiting: Vec<_> = ["crates", "xtask", "tests", "fuzz"].map(|folder| root.join(folder)).into();
    while let Some(place) = waiting.pop() {
        for entry in std::fs::read_dir(&place).with_context(|| format!("reading {}", place.display()))? {
            let path = entry.with_context(|| format!("reading {}", place.display()))?.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text =
                    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
                let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                long.extend(long_comments(&text).into_iter().map(|line| format!("{shown}:{line}")));
            }
        }
    }
    long.sort();
    if !long.is_empty() {
        bail!("{} comment lines are longer than {WIDTH} columns:\n  {}", long.len(), long.join("\n  "));
    }
    Ok(())
}

/// Lists the numbers of the comment lines that are too long. A line that is one word, such as an address,
/// cannot be wrapped.
fn long_comments(text: &str) -> Vec<usize> {
    let too_long = |line: &str| {
        let comment = line.trim_start();
        comment.starts_with("//") && line.chars().count() > WIDTH && comment.split_whitespace().count() > 2
    };
    text.lines().enumerate().filter(|(_, line)| too_long(line)).map(|(index, _)| index + 1).collect()
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

/// Holds the part that is read of what a pipeline prints with `--json`.
#[derive(Debug, serde::Deserialize)]
struct Summary {
    steps: Vec<Outcome>,
}

/// Runs the tiny pipeline from nothing, and once more. By the driver as just built: that build may
/// have put a new file where this process was started from.
fn tiny_twice(programs: &Path) -> Result<()> {
    let folder = paths::repository()?.join("runs").join("tiny-check");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    let pipeline = || -> Result<Command> {
        let mut command = Command::new(programs.join("xtask"));
        command.args(["pipeline", "--config", "configs/tiny.toml", "--json", "--out"]).arg(&folder);
        command.current_dir(paths::repository()?).env("SHARP_BIN_DIR", programs);
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
    let Summary { steps } =
        serde_json::from_slice(&second.stdout).context("the second run's --json output")?;
    let ran = steps.iter().filter(|step| step.status != StepStatus::Skipped);
    let ran: Vec<&str> = ran.map(|step| step.folder.as_str()).collect();
    if steps.is_empty() || !ran.is_empty() {
        bail!("the second run of the tiny pipeline should do nothing, and ran {}", ran.join(", "));
    }
    eprintln!("second run: all {} steps skipped", steps.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_comment_lines_are_found() {
        let words = "word ".repeat(22);
        let text = format!(
            "/// {words}\n    // {words} more\nlet x = \"{words} {words}\";\n// https://{}\n",
            "x".repeat(120)
        );
        assert_eq!(long_comments(&text), [1, 2]);
        assert_eq!(long_comments(&format!("//{}", " a".repeat(54))), [0usize; 0]);
        let folder = tempfile::tempdir().unwrap();
        for name in ["crates/one/src", "xtask", "tests", "fuzz"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        comments(folder.path()).unwrap();
        std::fs::write(folder.path().join("crates/one/src/lib.rs"), &text).unwrap();
        let error = comments(folder.path()).unwrap_err().to_string();
        assert!(error.contains("2 comment lines") && error.contains("crates/one/src/lib.rs:2"), "{error}");
    }
}
