//! `cargo xtask fuzz`: feeds the parsers of untrusted input with damaged and hostile inputs.
//!
//! The inputs are made by libFuzzer in the program of `fuzz/`, a process for each target. What fails is
//! kept in `fuzz/regressions`, where the tests of that crate find it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sharp_pipeline::{Error, stop_requested};

use crate::build;
use crate::observer::catch_signals;
use crate::paths;

/// Options of `fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long each target is tried, in seconds
    #[arg(long, value_name = "N", default_value_t = 20)]
    seconds: u64,
    /// Only these targets; all by default
    #[arg(long, value_delimiter = ',', value_name = "TARGET")]
    only: Vec<String>,
    /// Begins libFuzzer's random numbers; the same seed makes other inputs on a faster machine
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u32,
    /// Write the inputs that take new edges of the code to fuzz/corpus, the smallest for each
    #[arg(long)]
    keep: bool,
    /// Say which targets there are, and run nothing
    #[arg(long)]
    list: bool,
}

/// Memory that a target's process may have, in MB.
const MEMORY: u32 = 2048;
/// Seconds that an input may take on the clock. The program itself counts the processor's time and allows
/// one; on the clock, a busy machine may take many times that.
const HANGS_AFTER: u32 = 60;

/// A target, as the program lists it.
struct Target {
    name: String,
    longest: String,
}

/// Runs the targets until all are done or a person stops them.
pub(crate) fn run(args: &Args) -> Result<()> {
    catch_signals()?;
    fuzz(args)
}

/// Runs the targets one after another and stops at the end if one of them failed.
fn fuzz(args: &Args) -> Result<()> {
    let root = paths::repository()?;
    let program = build::fuzzer(&root)?;
    let mut targets = targets(&program)?;
    if let Some(unknown) = args.only.iter().find(|name| targets.iter().all(|target| target.name != **name)) {
        let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        bail!("there is no target {unknown:?}; there are {}", names.join(", "));
    }
    if args.list {
        targets.iter().for_each(|target| println!("{}", target.name));
        return Ok(());
    }
    targets.retain(|target| args.only.is_empty() || args.only.contains(&target.name));
    let mut failed = Vec::new();
    let mut inputs = 0;
    for target in &targets {
        let work = Work::new(&root, &target.name)?;
        let outcome = work.fuzz(&program, target, args)?;
        if stop_requested() {
            return Err(Error::Stopped.into());
        }
        inputs += outcome.inputs;
        println!("{:<20} {:>12} inputs  {:>7} edges", target.name, outcome.inputs, outcome.edges);
        match outcome.fault {
            Some(fault) => failed.push(format!("{}: {fault}", target.name)),
            None if args.keep => work.keep(&program, target)?,
            None => {}
        }
    }
    println!("{:<20} {inputs:>12} inputs", "together");
    if !failed.is_empty() {
        bail!(
            "{} of {} targets failed; the inputs are kept and are tests from now on \
             (`cargo test --release -p sharp-fuzz`):\n  {}",
            failed.len(),
            targets.len(),
            failed.join("\n  ")
        );
    }
    Ok(())
}

/// Tries every target for two seconds.
pub(crate) fn briefly() -> Result<()> {
    fuzz(&Args { seconds: 2, only: Vec::new(), seed: 1, keep: false, list: false })
}

/// Asks the program for its targets.
fn targets(program: &Path) -> Result<Vec<Target>> {
    let output =
        Command::new(program).env_remove("SHARP_FUZZ_TARGET").output().context("starting the fuzzer")?;
    if !output.status.success() {
        bail!("the fuzzer could not list its targets ({})", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = |line: &str| {
        let (name, longest) = line.split_once(' ')?;
        Some(Target { name: name.to_owned(), longest: longest.to_owned() })
    };
    Ok(text.lines().filter_map(line).collect())
}

/// What a run of a target came to.
struct Outcome {
    inputs: u64,
    edges: u64,
    fault: Option<String>,
}

/// The folders of one target.
struct Work {
    /// Seeds, and the last input.
    folder: PathBuf,
    /// Inputs found so far, not part of the repository.
    found: PathBuf,
    /// Inputs that are part of the repository.
    corpus: PathBuf,
    regressions: PathBuf,
    /// What mutations may put in.
    words: PathBuf,
}

impl Work {
    fn new(root: &Path, target: &str) -> Result<Self> {
        let folder = root.join("target/fuzz").join(target);
        let fuzz = root.join("fuzz");
        let work = Self {
            found: folder.join("found"),
            folder,
            corpus: fuzz.join("corpus").join(target),
            regressions: fuzz.join("regressions").join(target),
            words: fuzz.join("words").join(format!("{target}.dict")),
        };
        for folder in [&work.folder.join("seeds"), &work.folder.join("file"), &work.found] {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        Ok(work)
    }

    /// Prepares a command with everything that runs of this target have in common.
    fn command(&self, program: &Path, target: &Target) -> Command {
        let mut command = Command::new(program);
        command.env("SHARP_FUZZ_TARGET", &target.name).env("SHARP_FUZZ_FOLDER", &self.folder);
        command.arg(format!("-max_len={}", target.longest)).arg(format!("-rss_limit_mb={MEMORY}"));
        command.arg(format!("-timeout={HANGS_AFTER}")).arg("-print_final_stats=1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Fuzzes the target.
    fn fuzz(&self, program: &Path, target: &Target, args: &Args) -> Result<Outcome> {
        let before = self.kept_faults();
        // libFuzzer writes what fails there, and wants the folder to be.
        let artifacts = self.folder.join("faults");
        let _ = fs::remove_dir_all(&artifacts);
        fs::create_dir_all(&artifacts).with_context(|| format!("making {}", artifacts.display()))?;
        let mut command = self.command(program, target);
        command.arg(format!("-max_total_time={}", args.seconds)).arg(format!("-seed={}", args.seed));
        if self.words.is_file() {
            command.arg(format!("-dict={}", self.words.display()));
        }
        command.arg(format!("-artifact_prefix={}/", artifacts.display())).arg(&self.found);
        command.arg(self.folder.join("seeds"));
        for folder in [&self.corpus, &self.regressions] {
            if folder.is_dir() {
                command.arg(folder);
            }
        }
        let mut child = command.spawn().context("starting the fuzzer")?;
        let errors = child.stderr.take().context("the fuzzer's messages")?;
        let mut outcome = Outcome { inputs: 0, edges: 0, fault: None };
        let mut said = None;
        for line in BufReader::new(errors).split(b'\n') {
            let line = line.context("reading the fuzzer's messages")?;
            let line = String::from_utf8_lossy(&line);
            read_line(&line, &mut outcome);
            if said.is_none() && (line.starts_with(&format!("{}: ", target.name)) || line.contains("ERROR:"))
            {
                said = Some(line.into_owned());
            }
        }
        let status = child.wait().context("waiting for the fuzzer")?;
        if !status.success() && !stop_requested() {
            self.save_faults(&artifacts)?;
            let new: Vec<String> = self.kept_faults().difference(&before).cloned().collect();
            let said = said.unwrap_or_else(|| format!("the process ended ({status})"));
            outcome.fault = Some(format!("{said} ({})", new.join(", ")));
        }
        Ok(outcome)
    }

    /// Puts the inputs that failed among the regressions. Where the process ended without writing any, as a
    /// stack that overflows makes it, it is the last input.
    fn save_faults(&self, artifacts: &Path) -> Result<()> {
        let list = |folder: &Path| -> Result<Vec<PathBuf>> {
            let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
            Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect())
        };
        fs::create_dir_all(&self.regressions)
            .with_context(|| format!("making {}", self.regressions.display()))?;
        let mut faults = list(artifacts)?;
        let mut prefix = "";
        if faults.is_empty() {
            faults = list(&self.folder.join("file"))?;
            prefix = "ended-";
        }
        for fault in faults {
            let name = fault.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let to = self.regressions.join(format!("{prefix}{name}"));
            fs::copy(&fault, &to).with_context(|| format!("writing {}", to.display()))?;
        }
        Ok(())
    }

    /// Lists the inputs that are kept because they failed once.
    fn kept_faults(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(&self.regressions).into_iter().flatten().flatten();
        entries.map(|entry| paths::shown(&entry.path())).collect()
    }

    /// Writes the smallest inputs that together take all edges to the corpus in the repository.
    fn keep(&self, program: &Path, target: &Target) -> Result<()> {
        let old = self.folder.join("old");
        let _ = fs::remove_dir_all(&old);
        if self.corpus.is_dir() {
            fs::rename(&self.corpus, &old).with_context(|| format!("moving {}", self.corpus.display()))?;
        }
        fs::create_dir_all(&self.corpus).with_context(|| format!("making {}", self.corpus.display()))?;
        let mut command = self.command(program, target);
        // Seeds come first: what they take need not be kept.
        command.arg("-merge=1").arg(&self.corpus).arg(&self.found);
        if old.is_dir() {
            command.arg(&old);
        }
        let output = command.output().context("starting the fuzzer")?;
        if !output.status.success() {
            bail!("the inputs of {} could not be merged ({})", target.name, output.status);
        }
        Ok(())
    }
}

/// Takes the figures out of a line of libFuzzer's: `stat::number_of_executed_units: 123`, and `cov: 45` of
/// its progress.
fn read_line(line: &str, outcome: &mut Outcome) {
    if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
        outcome.inputs = number.trim().parse().unwrap_or(0);
    }
    let mut words = line.split_whitespace();
    if words.by_ref().any(|word| word == "cov:")
        && let Some(edges) = words.next().and_then(|word| word.parse().ok())
    {
        outcome.edges = edges;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_lines() {
        let mut outcome = Outcome { inputs: 0, edges: 0, fault: None };
        for line in [
            "#2048\tpulse  cov: 1201 ft: 3 corp: 7/1Kb lim: 4 exec/s: 1024 rss: 40Mb",
            "stat::number_of_executed_units: 31337",
            "stat::peak_rss_mb:              44",
        ] {
            read_line(line, &mut outcome);
        }
        assert_eq!((outcome.inputs, outcome.edges), (31337, 1201));
    }

    #[test]
    fn an_input_that_ended_the_process_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let work = Work::new(folder.path(), "gguf").unwrap();
        let artifacts = folder.path().join("faults");
        fs::create_dir(&artifacts).unwrap();
        fs::write(work.folder.join("file/model.gguf"), "last").unwrap();
        work.save_faults(&artifacts).unwrap();
        assert_eq!(fs::read(work.regressions.join("ended-model.gguf")).unwrap(), b"last");
        fs::write(artifacts.join("crash-1"), "written").unwrap();
        work.save_faults(&artifacts).unwrap();
        assert_eq!(fs::read(work.regressions.join("crash-1")).unwrap(), b"written");
        assert_eq!(work.kept_faults().len(), 2);
    }
}
