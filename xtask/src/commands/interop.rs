//! `cargo xtask interop`: the project's files and server against the real programs they are made for. Every script of
//! `tests/interop` is one check.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::Programs;
use crate::stages::Program;
use crate::{child, paths};

/// Options of `interop`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these scripts, by name without `.py`; all by default
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// The Python that runs them and makes their virtual environments
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// Say what there is, and run nothing
    #[arg(long)]
    list: bool,
}

/// A script's exit code where something that it needs cannot be had on this machine.
const LEFT_OUT: i32 = 77;

/// How a script ended.
enum Outcome {
    Passed,
    LeftOut,
    Failed(String),
}

/// Runs the scripts one after another, all of them whatever happens, and fails if one did.
pub(crate) fn run(args: &Args) -> Result<()> {
    child::catch_signals()?;
    let folder = paths::repository()?.join("tests").join("interop");
    let scripts = scripts(&folder, &args.only)?;
    if args.list {
        for script in &scripts {
            println!("{}", name(script));
        }
        return Ok(());
    }
    let programs = Programs::provide(&[Program::Sharp])?;
    let sharp = programs.path(Program::Sharp)?;
    let mut lines = Vec::new();
    let mut failed = 0;
    for script in &scripts {
        eprintln!("\n== {}", name(script));
        let begun = Instant::now();
        let outcome = one(&args.python, script, sharp)?;
        lines.push(line(&name(script), &outcome, begun.elapsed()));
        failed += usize::from(matches!(outcome, Outcome::Failed(_)));
    }
    eprintln!();
    for line in lines {
        println!("{line}");
    }
    if failed > 0 {
        bail!("{failed} of {} scripts failed", scripts.len());
    }
    Ok(())
}

fn name(script: &Path) -> String {
    script.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The scripts of `folder` in order; names that begin with `_` are modules that scripts share.
fn scripts(folder: &Path, only: &[String]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        if path.extension().is_some_and(|ending| ending == "py") && !name(&path).starts_with('_') {
            all.push(path);
        }
    }
    all.sort();
    if all.is_empty() {
        bail!("{} holds no scripts", folder.display());
    }
    if let Some(missing) = only.iter().find(|wanted| all.iter().all(|path| name(path) != **wanted)) {
        let known: Vec<String> = all.iter().map(|path| name(path)).collect();
        bail!("there is no script {missing}; there are {}", known.join(", "));
    }
    all.retain(|path| only.is_empty() || only.contains(&name(path)));
    Ok(all)
}

fn one(python: &Path, script: &Path, sharp: &Path) -> Result<Outcome> {
    let status = Command::new(python)
        .arg(script)
        .env("SHARP_BIN", sharp)
        .current_dir(paths::repository()?)
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .with_context(|| format!("starting {}", python.display()))?;
    if child::stop_requested() {
        return Err(child::Stopped.into());
    }
    Ok(match status.code() {
        Some(0) => Outcome::Passed,
        Some(LEFT_OUT) => Outcome::LeftOut,
        _ => Outcome::Failed(status.to_string()),
    })
}

fn line(name: &str, outcome: &Outcome, time: Duration) -> String {
    let what = match outcome {
        Outcome::Passed => "passed".to_owned(),
        Outcome::LeftOut => "left out (see above)".to_owned(),
        Outcome::Failed(status) => format!("FAILED ({status})"),
    };
    format!("{name:<24} {:>6.0} s  {what}", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_found_and_judged_by_their_exit_code() {
        let folder = tempfile::tempdir().unwrap();
        for (name, code) in [("b_bad", 3), ("a_good", 0), ("c_absent", 77), ("_shared", 1)] {
            // For a shell as "python": what counts is the exit code and the variable.
            let text = format!("test \"$SHARP_BIN\" = /bin/sharp || exit 9\nexit {code}\n");
            std::fs::write(folder.path().join(format!("{name}.py")), text).unwrap();
        }
        std::fs::write(folder.path().join("notes.txt"), "").unwrap();
        let found = scripts(folder.path(), &[]).unwrap();
        assert_eq!(found.iter().map(|p| name(p)).collect::<Vec<_>>(), ["a_good", "b_bad", "c_absent"]);
        let outcomes: Vec<Outcome> = found
            .iter()
            .map(|script| one(Path::new("sh"), script, Path::new("/bin/sharp")).unwrap())
            .collect();
        assert!(matches!(&outcomes[..], [Outcome::Passed, Outcome::Failed(_), Outcome::LeftOut]));
        assert_eq!(scripts(folder.path(), &["b_bad".into()]).unwrap().len(), 1);
        assert!(scripts(folder.path(), &["z".into()]).unwrap_err().to_string().contains("a_good, b_bad"));
    }
}
