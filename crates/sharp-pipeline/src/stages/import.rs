//! Import: the checkpoint as a plain Hugging Face directory.

use sharp_schema::run::IMPORT;

use super::command_line::CommandLine;
use super::settings::Settings;
use super::stage::Stage;
use super::step::{Input, Step};
use crate::config::ModelSource;
use crate::error::Result;
use crate::run_folder::Run;

pub(super) fn step(run: &Run) -> Result<Step> {
    let config = &run.config;
    let (line, inputs, settings) = match config.model_source(&run.workspace)? {
        ModelSource::Synth(preset) => (
            CommandLine::sharp("synth").flag("--preset", preset).value("--seed", config.seed),
            Vec::new(),
            Settings::default().key("model", &config.model).key("seed", &config.seed),
        ),
        ModelSource::File(found) => (
            CommandLine::sharp("import").arg(&found.path).value("--dtype", config.import.dtype),
            vec![found.pinned.map_or(Input::Outside(found.path), Input::Pinned)],
            Settings::default().section("import", &config.import),
        ),
    };
    Ok(Step {
        inputs,
        command_lines: vec![line.flag("--out", run.path(IMPORT))],
        must_write: vec!["config.json", "tokenizer.json"],
        ..Step::new(Stage::Import, IMPORT, settings)
    })
}
