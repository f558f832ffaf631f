//! `sharp-train`: warms up and fine-tunes recovery parameters.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    if let Some(code) = with_environment() {
        return code;
    }
    let args = cli::Args::parse();
    let level = match args.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match cli::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr)]
            {
                eprintln!("error: {error:#}");
            }
            ExitCode::from(1)
        }
    }
}

/// Environment that must be in place before libtorch and libc start, as (name, value).
///
/// A waiting OpenMP thread must not spin on a core that another process needs. Freed activations stay in the
/// process, where every thread can reuse them, instead of going back to the system to be zeroed page by page
/// again.
#[cfg(unix)]
const ENVIRONMENT: [(&str, &str); 5] = [
    ("OMP_WAIT_POLICY", "passive"),
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
    ("MALLOC_TOP_PAD_", "67108864"),
];

/// Restarts this program with the environment that libtorch and libc read before `main`, unless it is set
/// already.
#[cfg(unix)]
fn with_environment() -> Option<ExitCode> {
    use std::os::unix::process::CommandExt;
    const MARK: &str = "SHARP_TRAIN_STARTED";
    if std::env::var_os(MARK).is_some() {
        return None;
    }
    let program = std::env::current_exe().ok()?;
    let mut command = std::process::Command::new(program);
    command.args(std::env::args_os().skip(1)).env(MARK, "1");
    for (name, value) in ENVIRONMENT {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    // Only comes back if it failed; the program then runs as it is, only slower.
    let _ = command.exec();
    None
}

#[cfg(not(unix))]
fn with_environment() -> Option<ExitCode> {
    None
}
