//! Quantize: the files that the engine runs, and the training against their rounding.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use sharp_schema::run::{
    COMPACT, COMPRESSED_MODEL, EXPORT, FINETUNE, IMPORT, ORIGINAL_MODEL, PLAN, PLAN_FILE, QUANT_REPORT,
    QUANTIZE, RECOVERY_FILE, UNREPAIRED_MODEL,
};

use super::command_line::CommandLine;
use super::settings::Settings;
use super::stage::Stage;
use super::step::{COMPACT_FILES, Input, MODEL_FILES, Step, TRAINED, data, in_folder};
use super::training;
use crate::config::Recipe;
use crate::error::Result;
use crate::run_folder::Run;

pub(super) fn step(run: &Run) -> Result<Step> {
    let config = &run.config;
    let (recipe, recipe_file) = recipe(run)?;
    let (calibration, calibration_file) = data(run, "data.calibration", &config.data.calibration)?;
    let line = |model: PathBuf, out: &str, report: &str| {
        let line = CommandLine::sharp("quantize")
            .flag("--model", model)
            .flag("--out", in_folder(run, QUANTIZE, out))
            .flag("--recipe", recipe.as_str())
            .flag("--report", in_folder(run, QUANTIZE, report));
        let line = match config.quantize.tokens {
            None => line,
            Some(tokens) => line
                .flag("--calibrate", calibration.as_str())
                .value("--calibration-tokens", tokens)
                .value("--seq-len", config.data.sequence)
                .flag("--split", "train")
                .value("--held-out", config.data.held_out)
                .value("--seed", config.seed),
        };
        line.threads(run)
    };
    let repair_steps = config.quantize.repair();
    let first = if repair_steps.is_some() { UNREPAIRED_MODEL } else { COMPRESSED_MODEL };
    let mut command_lines = vec![
        line(in_folder(run, EXPORT, COMPACT), first, QUANT_REPORT),
        line(run.path(IMPORT), ORIGINAL_MODEL, "original_quant_report.json"),
    ];
    let mut inputs = vec![MODEL_FILES, COMPACT_FILES];
    inputs.extend(recipe_file);
    if config.quantize.tokens.is_some() {
        inputs.push(calibration_file);
    }
    let mut notes = Vec::new();
    match repair_steps {
        Some(steps) => {
            let (lines, read) = repair(run, steps)?;
            command_lines.extend(lines);
            inputs.extend(read);
        }
        None if config.quantize.repair_steps.is_some() => notes.push(
            "quantize.repair_steps is left out: quantize.recipe = \"f16\" has no rounding to repair"
                .to_owned(),
        ),
        None => {}
    }
    Ok(Step {
        version: 4,
        inputs,
        command_lines,
        must_write: vec![COMPRESSED_MODEL, ORIGINAL_MODEL, QUANT_REPORT],
        scratch: &["repair/step-"],
        resumable: repair_steps.is_some(),
        notes,
        ..Step::new(Stage::Quantize, QUANTIZE, settings(run))
    })
}

/// Collects what decides the packed files: settings of the calibration and of training only where they are
/// used.
fn settings(run: &Run) -> Settings {
    let config = &run.config;
    let mut settings = match config.quantize.repair() {
        // The repair has a length and a learning rate of its own.
        Some(_) => training::finetuning_settings(run)
            .without(&["finetune.steps", "finetune.lr"])
            .section("quantize", &config.quantize),
        None => Settings::default()
            .section("quantize", &config.quantize)
            .without(&["quantize.repair_steps", "quantize.repair_lr"]),
    };
    if config.quantize.tokens.is_some() {
        settings = settings
            .key("data.calibration", &config.data.calibration)
            .key("data.sequence", &config.data.sequence)
            .key("data.held_out", &config.data.held_out)
            .key("seed", &config.seed);
    }
    settings
}

/// Trains what the plan trains once more, against the rounding of the unrepaired file, and packs the result.
fn repair(run: &Run, steps: NonZeroUsize) -> Result<(Vec<CommandLine>, Vec<Input>)> {
    let folder = in_folder(run, QUANTIZE, "repair");
    let unrepaired = in_folder(run, QUANTIZE, UNREPAIRED_MODEL);
    // Another order than that of the fine-tuning it goes on from.
    let seed = training::order_seed(run).wrapping_add(1);
    let length = (steps, run.config.quantize.repair_lr);
    let (line, mut inputs) = training::finetuning(run, folder.clone(), seed, length)?;
    let train =
        line.flag("--recovery", in_folder(run, FINETUNE, RECOVERY_FILE)).flag("--runtime", &unrepaired);
    let pack = CommandLine::sharp("quantize")
        .flag("--model", run.path(IMPORT))
        .flag("--plan", in_folder(run, PLAN, PLAN_FILE))
        .flag("--recovery", folder.join(RECOVERY_FILE))
        .flag("--onto", &unrepaired)
        .flag("--out", in_folder(run, QUANTIZE, COMPRESSED_MODEL));
    inputs.push(TRAINED);
    Ok((vec![train, pack.threads(run)], inputs))
}

/// Returns the recipe as an argument, and its file where it is one.
fn recipe(run: &Run) -> Result<(String, Option<Input>)> {
    match &run.config.quantize.recipe {
        Recipe::File(path) => {
            data(run, "quantize.recipe", path).map(|(argument, file)| (argument, Some(file)))
        }
        named => Ok((named.to_string(), None)),
    }
}
