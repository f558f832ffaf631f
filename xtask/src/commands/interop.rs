//! `cargo xtask interop`: the project's files and server against the real programs they are made for. Every
//! script of `tests/interop` is one check; those that are quick belong to `cargo xtask test` as well.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sharp_pipeline::{Error, Program, cache, stop_requested};

use crate::observer::catch_signals;
use crate::{build, paths};

/// Options of `interop`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these scripts, by name without `.py`; all by default
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Only the scripts that `cargo xtask test` runs: a few packages to install, and then seconds
    #[arg(long, conflicts_with = "only")]
    quick: bool,
    /// The Python that runs them and makes their virtual environments
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// Say what there is, and run nothing
    #[arg(long)]
    list: bool,
}

/// A script's exit code where something that it needs cannot be had on this machine.
const LEFT_OUT: i32 = 77;
/// The line of a script that belongs to `cargo xtask test`.
const QUICK: &str = "# Quick: `cargo xtask test` runs it.";

/// How a script ended.
enum Outcome {
    Passed,
    LeftOut,
    Failed(String),
}

/// Runs the scripts one after another, all of them whatever happens, and fails if one did.
pub(crate) fn run(args: &Args) -> Result<()> {
    catch_signals()?;
    let scripts = scripts(&folder()?, &args.only, args.quick)?;
    if args.list {
        for script in &scripts {
            println!("{}", name(script));
        }
        return Ok(());
    }
    let programs = build::provide(&[Program::Sharp])?;
    all(&args.python, &scripts, programs.path(Program::Sharp)?)?;
    Ok(())
}

/// Runs the quick scripts with the program `sharp`; gives the names of those that were left out.
pub(crate) fn quick(sharp: &Path) -> Result<Vec<String>> {
    all(Path::new("python3"), &scripts(&folder()?, &[], true)?, sharp)
}

fn folder() -> Result<PathBuf> {
    Ok(paths::repository()?.join("tests").join("interop"))
}

/// Runs the scripts and says how each ended; gives the names of those that were left out, and fails if one
/// failed.
fn all(python: &Path, scripts: &[PathBuf], sharp: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut left_out = Vec::new();
    let mut failed = 0;
    for script in scripts {
        eprintln!("\n== {}", name(script));
        let begun = Instant::now();
        let outcome = one(python, script, sharp)?;
        lines.push(line(&name(script), &outcome, begun.elapsed()));
        match outcome {
            Outcome::Passed => {}
            Outcome::LeftOut => left_out.push(name(script)),
            Outcome::Failed(_) => failed += 1,
        }
    }
    eprintln!();
    for line in lines {
        println!("{line}");
    }
    if failed > 0 {
        bail!("{failed} of {} scripts failed", scripts.len());
    }
    Ok(left_out)
}

fn name(script: &Path) -> String {
    script.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Lists the scripts of `folder` in order; names that begin with `_` are modules that scripts share.
fn scripts(folder: &Path, only: &[String], quick: bool) -> Result<Vec<PathBuf>> {
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
    if quick {
        let mut marked = Vec::new();
        for path in all {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            if text.lines().any(|line| line == QUICK) {
                marked.push(path);
            }
        }
        return Ok(marked);
    }
    Ok(all)
}

fn one(python: &Path, script: &Path, sharp: &Path) -> Result<Outcome> {
    let mut command = Command::new(python);
    build::as_from_outside(&mut command);
    let status = command
        .arg(script)
        .env("SHARP_BIN", sharp)
        .env("SHARP_CACHE", cache()?)
        .current_dir(paths::repository()?)
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .with_context(|| format!("starting {} (--python names another Python)", python.display()))?;
    if stop_requested() {
        return Err(Error::Stopped.into());
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
            let mark = if name == "b_bad" { QUICK } else { "" };
            let text = format!("{mark}\ntest \"$SHARP_BIN\" = /bin/sharp || exit 9\nexit {code}\n");
            std::fs::write(folder.path().join(format!("{name}.py")), text).unwrap();
        }
        std::fs::write(folder.path().join("notes.txt"), "").unwrap();
        let found = scripts(folder.path(), &[], false).unwrap();
        assert_eq!(found.iter().map(|p| name(p)).collect::<Vec<_>>(), ["a_good", "b_bad", "c_absent"]);
        let outcomes: Vec<Outcome> = found
            .iter()
            .map(|script| one(Path::new("sh"), script, Path::new("/bin/sharp")).unwrap())
            .collect();
        assert!(matches!(&outcomes[..], [Outcome::Passed, Outcome::Failed(_), Outcome::LeftOut]));
        assert_eq!(scripts(folder.path(), &["c_absent".into()], false).unwrap().len(), 1);
        assert!(
            scripts(folder.path(), &["z".into()], false).unwrap_err().to_string().contains("a_good, b_bad")
        );
        let quick = scripts(folder.path(), &[], true).unwrap();
        assert_eq!(quick.iter().map(|p| name(p)).collect::<Vec<_>>(), ["b_bad"]);
        // One that fails fails the whole, and only after all have run; one that is left out is named.
        let sharp = Path::new("/bin/sharp");
        assert!(all(Path::new("sh"), &found, sharp).unwrap_err().to_string().contains("1 of 3"));
        assert_eq!(all(Path::new("sh"), &[found[0].clone(), found[2].clone()], sharp).unwrap(), ["c_absent"]);
    }
}
