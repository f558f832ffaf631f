//! Export: the compressed checkpoint.

use sharp_schema::run::{COMPACT, DENSE, EXPORT, FINETUNE, IMPORT, PLAN, PLAN_FILE, RECOVERY_FILE};

use super::command_line::CommandLine;
use super::settings::Settings;
use super::stage::Stage;
use super::step::{MODEL_FILES, PLAN_INPUT, Step, TRAINED, in_folder};
use crate::run_folder::Run;

pub(super) fn step(run: &Run) -> Step {
    let export = &run.config.export;
    let line = CommandLine::sharp("export")
        .flag("--model", run.path(IMPORT))
        .flag("--plan", in_folder(run, PLAN, PLAN_FILE))
        .flag("--recovery", in_folder(run, FINETUNE, RECOVERY_FILE))
        .flag("--out", in_folder(run, EXPORT, COMPACT))
        .value("--dtype", export.dtype)
        .when(export.dense, |line| line.flag("--dense", in_folder(run, EXPORT, DENSE)));
    Step {
        inputs: vec![MODEL_FILES, PLAN_INPUT, TRAINED],
        command_lines: vec![line],
        must_write: vec!["compact/config.json"],
        ..Step::new(Stage::Export, EXPORT, Settings::default().section("export", export))
    }
}
