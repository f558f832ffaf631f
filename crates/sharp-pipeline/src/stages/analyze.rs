//! Analyze: how alike the layers are.

use sharp_schema::run::{ANALYZE, IMPORT, SIMILARITY_FILE};

use super::command_line::CommandLine;
use super::settings::Settings;
use super::stage::Stage;
use super::step::{MODEL_FILES, Step, data};
use crate::error::Result;
use crate::run_folder::Run;

pub(super) fn step(run: &Run) -> Result<Step> {
    let config = &run.config;
    let (calibration, input) = data(run, "data.calibration", &config.data.calibration)?;
    let line = CommandLine::sharp("analyze")
        .flag("--model", run.path(IMPORT))
        .flag("--data", calibration)
        .flag("--out", run.path(ANALYZE))
        .value("--tokens", config.analyze.tokens)
        .value("--seq-len", config.data.sequence)
        .value("--window", config.analyze.window)
        .flag("--split", "train")
        .value("--held-out", config.data.held_out)
        .value("--seed", config.seed)
        .option("--delta-nll", config.analyze.delta_nll_tokens)
        .threads(run);
    let settings = Settings::default()
        .section("analyze", &config.analyze)
        .key("data.calibration", &config.data.calibration)
        .key("data.sequence", &config.data.sequence)
        .key("data.held_out", &config.data.held_out)
        .key("seed", &config.seed);
    Ok(Step {
        version: 3,
        inputs: vec![MODEL_FILES, input],
        command_lines: vec![line],
        must_write: vec![SIMILARITY_FILE, "similarity.html"],
        ..Step::new(Stage::Analyze, ANALYZE, settings)
    })
}
