//! `sharp doctor`: what this machine offers.

use anyhow::{Context, Result};
use serde::Serialize;
use sharp_quant::Isa;

use crate::Global;
use crate::machine;
use crate::output::Output;

/// Say what this machine offers: kernels, threads, memory bandwidth.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sharp doctor --json")]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Findings {
    version: &'static str,
    architecture: &'static str,
    kernels_in_use: &'static str,
    kernels_available: Vec<&'static str>,
    threads: usize,
    memory_bandwidth_bytes_per_second: f64,
}

pub(crate) fn run(_args: Args, global: &Global, output: &Output) -> Result<()> {
    let findings = Findings {
        version: env!("CARGO_PKG_VERSION"),
        architecture: std::env::consts::ARCH,
        kernels_in_use: Isa::from_env()?.name(),
        kernels_available: Isa::available().into_iter().map(Isa::name).collect(),
        threads: global.threads(),
        memory_bandwidth_bytes_per_second: machine::memory_bandwidth(global.threads())
            .context("measuring the memory")?,
    };
    output.result(&findings, || {
        format!(
            "sharp {} on {}\nkernels   {} (available: {})\nthreads   {}\nmemory    {:.1} GB/s read by {} threads\n",
            findings.version,
            findings.architecture,
            findings.kernels_in_use,
            findings.kernels_available.join(", "),
            findings.threads,
            findings.memory_bandwidth_bytes_per_second / 1e9,
            findings.threads,
        )
    })
}
