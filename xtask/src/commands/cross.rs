//! `cargo xtask cross`: the kernels of another processor family, built here and run under emulation.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sharp_pipeline::{Error, stop_requested};

use crate::build::cargo;
use crate::observer::catch_signals;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";

/// Options of `cross`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Crates whose tests run
    #[arg(long, value_name = "CRATE", value_delimiter = ',', default_value = "sharp-quant")]
    package: Vec<String>,
    /// Processors to be, by qemu's names: the first has all instructions that the kernels know, the second
    /// NEON alone
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "max,cortex-a53")]
    cpu: Vec<String>,
    /// Build the tests and run nothing
    #[arg(long)]
    no_run: bool,
}

/// Builds the tests for 64-bit ARM and runs them once for each processor.
pub(crate) fn run(args: &Args) -> Result<()> {
    catch_signals()?;
    let tools = Tools::find(!args.no_run, &on_path, &has_target)?;
    for cpu in &args.cpu {
        eprintln!("\n== {} as {cpu}", args.package.join(", "));
        let mut command = cargo()?;
        command.args(["test", "--release", "--target", TARGET, "--target-dir", "target/cross"]);
        // No documentation tests: they would be built one by one.
        command.args(["--lib", "--tests"]).args(args.package.iter().flat_map(|name| ["--package", name]));
        if args.no_run {
            command.arg("--no-run");
        }
        tools.lend(&mut command, cpu);
        let status = command.stdin(Stdio::null()).status().context("starting cargo")?;
        if stop_requested() {
            return Err(Error::Stopped.into());
        }
        if !status.success() {
            bail!("the tests for {TARGET} failed as {cpu} ({status})");
        }
        if args.no_run {
            break;
        }
    }
    Ok(())
}

/// What builds and runs programs of the target.
#[derive(Debug, PartialEq, Eq)]
struct Tools {
    /// A compiler with the target's standard library, where that is not the one cargo would take.
    rustc: Option<PathBuf>,
    emulator: Option<PathBuf>,
}

impl Tools {
    /// Finds the tools.
    ///
    /// # Errors
    /// One that says everything that is missing and what installs it.
    fn find(
        emulate: bool,
        program: &dyn Fn(&str) -> Option<PathBuf>,
        has_target: &dyn Fn(&Path) -> bool,
    ) -> Result<Self> {
        let mut missing = Vec::new();
        // A distribution's compiler may have the target where rustup's has not.
        let usual = PathBuf::from(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let distribution = PathBuf::from("/usr/bin/rustc");
        let rustc = if has_target(&usual) {
            None
        } else if has_target(&distribution) {
            Some(distribution)
        } else {
            missing.push(format!(
                "Rust's standard library for it: `rustup target add {TARGET}` (or Debian's rustc-web with \
                 libstd-rust-web-dev:arm64)"
            ));
            None
        };
        if program(LINKER).is_none() {
            missing.push(format!("{LINKER}: `apt-get install gcc-aarch64-linux-gnu`"));
        }
        let emulator = program("qemu-aarch64").or_else(|| program("qemu-aarch64-static"));
        if emulate && emulator.is_none() {
            missing.push("qemu-aarch64: `apt-get install qemu-user`".to_owned());
        }
        if !missing.is_empty() {
            bail!("building and running tests for {TARGET} needs\n  {}", missing.join("\n  "));
        }
        Ok(Self { rustc, emulator })
    }

    fn lend(&self, command: &mut Command, cpu: &str) {
        let variable =
            |what: &str| format!("CARGO_TARGET_{}_{what}", TARGET.to_uppercase().replace('-', "_"));
        command.env(variable("LINKER"), LINKER).env(format!("CC_{TARGET}"), LINKER);
        // Linked statically: the C library of the cross compiler and one that is installed for the target
        // need not be the same, and a program that loads one with the other's loader can hang.
        command.env(variable("RUSTFLAGS"), "-C target-feature=+crt-static");
        if let Some(emulator) = &self.emulator {
            command.env(variable("RUNNER"), format!("{} -cpu {cpu}", emulator.display()));
        }
        if let Some(rustc) = &self.rustc {
            command.env("RUSTC", rustc);
        }
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn has_target(rustc: &Path) -> bool {
    let asked = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    asked.is_ok_and(|out| {
        let folder = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
        out.status.success() && std::fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_missing_is_said_with_what_installs_it() {
        let nothing = |_: &str| None;
        let error = Tools::find(true, &nothing, &|_| false).unwrap_err().to_string();
        for word in ["rustup target add", "gcc-aarch64-linux-gnu", "qemu-user"] {
            assert!(error.contains(word), "{error}");
        }
        let error = Tools::find(false, &nothing, &|_| true).unwrap_err().to_string();
        assert!(!error.contains("rustup") && !error.contains("qemu"), "{error}");
    }

    #[test]
    fn a_distribution_s_compiler_serves_where_the_usual_one_lacks_the_target() {
        let there = |name: &str| Some(Path::new("/bin").join(name));
        let usual = Tools::find(true, &there, &|_| true).unwrap();
        assert_eq!(usual, Tools { rustc: None, emulator: Some("/bin/qemu-aarch64".into()) });
        let other = Tools::find(true, &there, &|rustc| rustc.starts_with("/usr/bin")).unwrap();
        assert_eq!(other.rustc, Some("/usr/bin/rustc".into()));
    }
}
