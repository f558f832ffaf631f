//! Benchmark: speed and memory of the packed files.

use sharp_schema::run::{BENCH_FILE, BENCHMARK, COMPRESSED_MODEL, ORIGINAL_MODEL, QUANTIZE};

use super::command_line::CommandLine;
use super::settings::Settings;
use super::stage::Stage;
use super::step::{Input, Step, in_folder};
use crate::run_folder::Run;

pub(super) fn step(run: &Run) -> Step {
    let benchmark = &run.config.benchmark;
    let line = CommandLine::sharp("benchmark")
        .flag("--model", in_folder(run, QUANTIZE, ORIGINAL_MODEL))
        .flag("--model", in_folder(run, QUANTIZE, COMPRESSED_MODEL))
        .value("--prompt-tokens", benchmark.prompt_tokens)
        .value("--decode-tokens", benchmark.decode_tokens)
        .value("--repeats", benchmark.repeats)
        .flag("--out", in_folder(run, BENCHMARK, BENCH_FILE));
    // The one stage whose outputs depend on the number of threads.
    let settings = Settings::default().section("benchmark", benchmark).key("threads", &run.config.threads);
    Step {
        inputs: vec![Input::From(QUANTIZE, &[COMPRESSED_MODEL, ORIGINAL_MODEL])],
        command_lines: vec![line.threads(run)],
        must_write: vec![BENCH_FILE],
        ..Step::new(Stage::Benchmark, BENCHMARK, settings)
    }
}
