//! Builds the programs, or takes those that somebody else has built.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use sharp_pipeline::{Error, Program, ProgramPaths, Programs};

use crate::{libtorch, paths};

/// Builds the programs with cargo; or, where `SHARP_BIN_DIR` is set, finds them in that folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cargo;

impl Programs for Cargo {
    fn provide(&self, wanted: &[Program]) -> sharp_pipeline::Result<ProgramPaths> {
        provide(wanted).map_err(Error::programs)
    }
}

/// Builds or finds programs for the driver's own use.
pub(crate) fn provide(wanted: &[Program]) -> Result<ProgramPaths> {
    if wanted.contains(&Program::SharpTrain) {
        libtorch::provide()?;
    }
    if let Some(folder) = std::env::var_os("SHARP_BIN_DIR").filter(|value| !value.is_empty()) {
        return ProgramPaths::in_folder(Path::new(&folder), wanted).context("SHARP_BIN_DIR");
    }
    if wanted.is_empty() {
        return Ok(ProgramPaths::default());
    }
    // Always the same set where that is possible: with another set some dependencies have other features, and
    // would be compiled again.
    let mut together = wanted.to_vec();
    if !together.contains(&Program::SharpTrain) && libtorch::found().is_ok_and(|found| found.is_some()) {
        together.push(Program::SharpTrain);
    }
    let built = build(together.iter().flat_map(|program| ["--package", package(*program)]))?;
    let path = |program: &Program| {
        let path = built
            .get(program.name())
            .with_context(|| format!("cargo built no program named {}", program.name()))?;
        Ok((*program, path.clone()))
    };
    wanted.iter().map(path).collect()
}

/// Returns the package that builds a program.
fn package(program: Program) -> &'static str {
    match program {
        Program::Sharp => "sharp-cli",
        Program::SharpTrain => "sharp-train",
    }
}

/// Builds all programs and all tests in one go and gives the folder of the programs. In one go, because
/// features that only tests ask for would otherwise have libtorch's bindings and others compiled a second
/// time.
pub(crate) fn everything() -> Result<PathBuf> {
    let found = build(["--workspace", "--bins", "--tests"])?;
    let program = found.get(Program::Sharp.name()).context("cargo built no program named sharp")?;
    Ok(program.parent().context("a program lies in a folder")?.to_path_buf())
}

/// Builds the fuzzer with the workspace's crates instrumented, and gives its program.
///
/// Cargo keeps crates that were compiled with a wrapper apart, so neither build undoes the other. Only the
/// program has one place for both: it is moved away.
pub(crate) fn fuzzer(root: &Path) -> Result<PathBuf> {
    let mut command = cargo()?;
    command.env("RUSTC_WORKSPACE_WRAPPER", root.join("fuzz/instrument.sh"));
    let built = build_with(command, ["--package", "sharp-fuzz"])?;
    let built = built.get("sharp-fuzz").context("cargo built no program named sharp-fuzz")?;
    let folder = root.join("target/fuzz");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let program = folder.join("sharp-fuzz");
    // A file that runs cannot be written over, but replaced.
    let _ = std::fs::remove_file(&program);
    std::fs::copy(built, &program).with_context(|| format!("writing {}", program.display()))?;
    Ok(program)
}

/// Runs `cargo build` and gives the programs that it made, by name.
fn build<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<BTreeMap<String, PathBuf>> {
    build_with(cargo()?, arguments)
}

fn build_with<'a>(
    mut cargo: Command,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeMap<String, PathBuf>> {
    let output = cargo
        .args(["build", "--release", "--message-format=json-render-diagnostics"])
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!("cargo could not build the programs; its message is above");
    }
    let mut found = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let text = |path: &str| message.pointer(path).and_then(serde_json::Value::as_str);
        // A program's own unit tests are an executable of the same name.
        if message.pointer("/profile/test").and_then(serde_json::Value::as_bool) == Some(true) {
            continue;
        }
        if let (Some(executable), Some(name)) = (text("/executable"), text("/target/name")) {
            found.insert(name.to_owned(), PathBuf::from(executable));
        }
    }
    Ok(found)
}

/// True where LIBTORCH came from the file that setup writes, by way of the cargo that started this process.
static PASSED_ON: OnceLock<bool> = OnceLock::new();

/// Looks at the environment before anything changes the file that cargo took a part of it from.
pub(crate) fn remember_environment() {
    PASSED_ON.get_or_init(|| libtorch::told_by_cargo().unwrap_or(false));
}

/// Makes a cargo command in the repository with the environment that a person's own cargo command would have.
/// What `cargo run` set for this process is taken out: build scripts would run again because of it,
/// libtorch's bindings among them, and an address of libtorch from before a `setup` would hide the new one.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::repository()?);
    as_from_outside(&mut command);
    Ok(command)
}

/// Takes out of a command's environment what `cargo run` set for this process.
pub(crate) fn as_from_outside(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO_CRATE_NAME"
        {
            command.env_remove(&name);
        }
    }
    if PASSED_ON.get().copied().unwrap_or(false) {
        command.env_remove("LIBTORCH").env_remove("LIBTORCH_USE_PYTORCH");
    }
}
