//! What every measurement needs: one process of ours or of llama.cpp, its figures, and medians.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use sharp_pipeline::CommandLine;
use sharp_pipeline::sharp::{self, Measurement};
use sharp_schema::benchmark;

/// A format that both engines have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Q4,
    Q8,
}

impl Format {
    /// Returns our recipe.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Q4 => "q4",
            Self::Q8 => "q8",
        }
    }

    /// Returns GGUF's type for our recipe's matrices.
    pub(super) fn gguf_dtype(self) -> &'static str {
        match self {
            Self::Q4 => "Q4_0",
            Self::Q8 => "Q8_0",
        }
    }
}

/// Runs one process of ours: its measurement, and its wall time in seconds.
pub(super) fn ours_once(sharp: &Path, measurement: Measurement<'_>) -> Result<(benchmark::Measurement, f64)> {
    let begun = Instant::now();
    let text = run_sharp(sharp, &sharp::benchmark(measurement))?;
    let wall = begun.elapsed().as_secs_f64();
    Ok((serde_json::from_str(&text).context("reading a measurement of sharp")?, wall))
}

/// The part that is read of a test's report by llama-bench.
#[derive(Debug, Deserialize)]
pub(super) struct PeerTest {
    /// Mean tokens a second.
    pub(super) avg_ts: f64,
    /// Which build it is.
    pub(super) build_number: Option<u64>,
}

/// Runs one process of llama-bench: the one test it ran, and its wall time in seconds.
pub(super) fn peer_once(
    peer: &Path,
    model: &Path,
    threads: usize,
    (prompt, decode): (usize, usize),
    more: &[&str],
) -> Result<(PeerTest, f64)> {
    let mut command = Command::new(peer);
    command.args(["-o", "json", "-r", "1", "-t", &threads.to_string()]).args(more);
    command.args(["-p", &prompt.to_string(), "-n", &decode.to_string()]);
    let begun = Instant::now();
    let text = finish(command.arg("-m").arg(model))?;
    let wall = begun.elapsed().as_secs_f64();
    let all: Vec<PeerTest> = serde_json::from_str(&text).context("reading a measurement of llama-bench")?;
    let [test] = <[PeerTest; 1]>::try_from(all)
        .map_err(|all| anyhow!("llama-bench reported {} tests instead of one", all.len()))?;
    Ok((test, wall))
}

/// Runs a command of `sharp` to its end and returns what it wrote to standard output.
pub(super) fn run_sharp(sharp: &Path, line: &CommandLine) -> Result<String> {
    finish(Command::new(sharp).args(&line.arguments))
}

/// Runs a program to its end and returns what it wrote to standard output.
pub(super) fn finish(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.output().with_context(|| format!("starting {program}"))?;
    if !done.status.success() {
        bail!("{program} failed ({}): {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    String::from_utf8(done.stdout).with_context(|| format!("the output of {program}"))
}

/// Computes the median; of an even number the mean of the middle two, of nothing not a number.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(median(vec![3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(vec![3.0, 1.0, 9.0, 5.0]), 4.0);
        assert!(median(Vec::new()).is_nan());
    }
}
