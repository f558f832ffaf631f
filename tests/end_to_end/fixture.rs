//! Builds the programs once, runs the tiny pipeline once, and hands out copies of its folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use sharp_schema::run::VARYING_FILES;

/// The repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// cargo as a person would start it: without what `cargo test` set for this process, which would make build
/// scripts run again.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(repository()).stdin(Stdio::null());
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO_CRATE_NAME"
        {
            command.env_remove(name);
        }
    }
    command
}

/// The folder with `sharp`, `sharp-train` and `xtask`; `None` where libtorch is not there and nobody insists.
fn programs() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            if let Some(folder) = std::env::var_os("SHARP_BIN_DIR") {
                return Some(folder.into());
            }
            let told = repository().join(".cargo/libtorch.local.toml").is_file()
                || std::env::var_os("LIBTORCH").is_some()
                || std::env::var_os("LIBTORCH_USE_PYTORCH").is_some();
            if !told {
                assert!(
                    std::env::var_os("SHARP_REQUIRE_MATERIALS").is_none(),
                    "libtorch is needed here: run `cargo xtask setup`"
                );
                eprintln!("left out: sharp-train needs libtorch (`cargo xtask setup` fetches it)");
                return None;
            }
            let output = cargo()
                .args(["build", "--release", "--message-format=json-render-diagnostics"])
                .args(["--package", "sharp-cli", "--package", "sharp-train", "--package", "xtask"])
                .stderr(Stdio::inherit())
                .output()
                .unwrap();
            assert!(output.status.success(), "the programs do not build");
            let text = String::from_utf8(output.stdout).unwrap();
            let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut built = messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
            Some(
                built
                    .find(|path| path.file_stem().is_some_and(|name| name == "sharp"))
                    .unwrap()
                    .parent()?
                    .into(),
            )
        })
        .as_deref()
}

/// `cargo xtask` as built, with the programs at hand; `None` where they cannot be built here.
pub(crate) fn xtask() -> Option<Command> {
    let folder = programs()?;
    let mut command = Command::new(folder.join("xtask"));
    command.env("SHARP_BIN_DIR", folder).current_dir(repository()).stdin(Stdio::null());
    Some(command)
}

/// `sharp` as built.
pub(crate) fn sharp() -> Option<Command> {
    program("sharp")
}

/// `sharp` or `sharp-train` as built.
pub(crate) fn program(name: &str) -> Option<Command> {
    let mut command = Command::new(programs()?.join(name));
    command.current_dir(repository()).stdin(Stdio::null());
    Some(command)
}

/// `cargo xtask pipeline` on the tiny configuration.
pub(crate) fn pipeline(run: &Path, arguments: &[&str]) -> Option<Command> {
    let mut command = xtask()?;
    command.args(["pipeline", "--config", "configs/tiny.toml", "--out"]).arg(run).args(arguments);
    Some(command)
}

/// Runs it and insists on success.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs it and insists on failure with status 1 or 2 (no panic, no signal); gives its error messages.
pub(crate) fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{command:?} ended with {}:\n{errors}",
        output.status
    );
    assert!(!errors.contains("panicked"), "{errors}");
    errors
}

/// The steps of a pipeline's `--json` output as (folder, status, reason).
pub(crate) fn steps(output: &Output) -> Vec<(String, String, String)> {
    let summary: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error} in {}", String::from_utf8_lossy(&output.stdout)));
    let text = |step: &Value, key: &str| step[key].as_str().unwrap().to_owned();
    let steps = summary["steps"].as_array().unwrap();
    steps.iter().map(|step| (text(step, "folder"), text(step, "status"), text(step, "reason"))).collect()
}

/// The status and reason of one step.
pub(crate) fn step<'a>(steps: &'a [(String, String, String)], folder: &str) -> (&'a str, &'a str) {
    let found = steps
        .iter()
        .find(|(name, _, _)| name == folder)
        .unwrap_or_else(|| panic!("no {folder} in {steps:?}"));
    (&found.1, &found.2)
}

/// A finished run of the tiny pipeline, made once and only read; `None` where it cannot be made here.
pub(crate) fn finished() -> Option<&'static Path> {
    static RUN: OnceLock<Option<PathBuf>> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny-finished");
        if run.exists() {
            fs::remove_dir_all(&run).unwrap();
        }
        succeed(&mut pipeline(&run, &[])?);
        Some(run)
    })
    .as_deref()
}

/// A copy of the finished run that a test may spoil.
pub(crate) fn copy_of_finished() -> Option<tempfile::TempDir> {
    let from = finished()?;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for path in files(from) {
        let to = folder.path().join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&path, to).unwrap();
    }
    Some(folder)
}

/// Every file under a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(place) = waiting.pop() {
        for entry in fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { waiting.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// What a run computed, file by file: everything but records of time, memory and paths.
pub(crate) fn results(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files(run)
        .into_iter()
        .filter(|path| !VARYING_FILES.iter().any(|name| path.ends_with(name)))
        .map(|path| (path.strip_prefix(run).unwrap().to_path_buf(), fs::read(&path).unwrap()))
        .collect()
}

/// Compares what two runs computed, and names the first file that differs.
pub(crate) fn assert_same_results(left: &Path, right: &Path) {
    let (a, b) = (results(left), results(right));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (path, bytes) in &a {
        assert!(
            b[path] == *bytes,
            "{} differs between {} and {}",
            path.display(),
            left.display(),
            right.display()
        );
    }
}
