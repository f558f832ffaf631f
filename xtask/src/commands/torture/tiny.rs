//! The tiny pipeline as a process, and what it leaves in its folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use sharp_pipeline::Program;
use sharp_schema::run::{UNFINISHED_PREFIX, VARYING_FILES};

use crate::{build, paths};

/// The driver as built, with the programs that it starts.
pub(super) struct Tiny {
    driver: PathBuf,
    programs: PathBuf,
    repository: PathBuf,
}

impl Tiny {
    /// Builds the programs, or finds them.
    pub(super) fn provide() -> Result<Self> {
        let programs = build::provide(&[Program::Sharp, Program::SharpTrain])?;
        let folder = programs.path(Program::Sharp)?.parent().context("a program lies in a folder")?;
        let driver = std::env::current_exe().context("finding this program")?;
        Ok(Self { driver, programs: folder.to_path_buf(), repository: paths::repository()? })
    }

    /// `cargo xtask pipeline` on the tiny configuration.
    pub(super) fn command(&self, run: &Path) -> Command {
        let mut command = Command::new(&self.driver);
        command.args(["pipeline", "--config", "configs/tiny.toml", "--out"]).arg(run);
        self.surround(&mut command);
        command
    }

    /// The same under a limit on the size of a file in blocks of 512 bytes, which stands in for a full disk.
    pub(super) fn limited(&self, run: &Path, blocks: u64) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")]);
        let whole = self.command(run);
        command.arg(whole.get_program()).args(whole.get_args());
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        command.current_dir(&self.repository).env("SHARP_BIN_DIR", &self.programs);
        command.stdin(Stdio::null()).stdout(Stdio::null());
    }

    /// Starts it in a process group of its own.
    #[cfg(unix)]
    pub(super) fn start(&self, run: &Path) -> Result<Child> {
        use std::os::unix::process::CommandExt as _;
        let mut command = self.command(run);
        command.process_group(0).stderr(Stdio::null()).spawn().context("starting the pipeline")
    }

    /// Runs it to its end, and insists on a good one.
    pub(super) fn finish(&self, run: &Path) -> Result<()> {
        let output = self.command(run).output().context("starting the pipeline")?;
        match output.status.success() {
            true => Ok(()),
            false => bail!("the pipeline does not go on in {}:\n{}", run.display(), errors(&output)),
        }
    }
}

/// Insists that a program ended with an error of its own, and not by a panic or a signal.
pub(super) fn refused(output: &Output) -> Result<()> {
    let text = errors(output);
    match output.status.code() {
        Some(1) if !text.contains("panicked") => Ok(()),
        _ => bail!("ended with {}:\n{text}", output.status),
    }
}

pub(super) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Lists every file under a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut waiting) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(place) = waiting.pop() {
        for entry in fs::read_dir(&place).with_context(|| format!("reading {}", place.display()))? {
            let path = entry?.path();
            if path.is_dir() { waiting.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}

/// Digests of what a run computed, by path.
pub(super) type Results = BTreeMap<PathBuf, Vec<u8>>;

/// Reads what a finished run computed, and insists that nothing half written is among it.
pub(super) fn results(run: &Path) -> Result<Results> {
    let mut all = Results::new();
    for path in files(run)? {
        let inside = path.strip_prefix(run).unwrap_or(&path).to_path_buf();
        let text = inside.to_string_lossy();
        if text.contains(UNFINISHED_PREFIX) || text.contains(".partial") {
            bail!("{} was left half written", path.display());
        }
        if !VARYING_FILES.iter().any(|name| path.ends_with(name)) {
            all.insert(inside, fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        }
    }
    Ok(all)
}

/// Compares what a run computed with an uninterrupted one's.
fn compare(reference: &Results, run: &Path) -> Result<()> {
    let found = results(run)?;
    let names = |results: &Results| results.keys().cloned().collect::<Vec<_>>();
    if names(&found) != names(reference) {
        bail!("{} has other files: {:?} and not {:?}", run.display(), names(&found), names(reference));
    }
    match reference.iter().find(|(path, bytes)| found[*path] != **bytes) {
        Some((path, _)) => bail!("{} differs from the uninterrupted run's", run.join(path).display()),
        None => Ok(()),
    }
}

/// Lets a run get to its end, compares it with the uninterrupted one and removes it.
pub(super) fn end(tiny: &Tiny, reference: &Results, run: &Path) -> Result<()> {
    tiny.finish(run)?;
    compare(reference, run)?;
    fs::remove_dir_all(run).with_context(|| format!("removing {}", run.display()))
}
