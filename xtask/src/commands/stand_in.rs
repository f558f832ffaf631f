//! A program for tests that stands in for sharp or llama-bench.

use std::path::Path;
use std::process::Command;

/// Writes an executable shell script. A child process writes it: a file that this process has open for
/// writing may be inherited by what another test is just starting, and cannot run until that has begun.
pub(super) fn write(path: &Path, script: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"printf %s "$1" > "$0" && chmod +x "$0""#]).arg(path).arg(script);
    assert!(shell.status().unwrap().success());
}
