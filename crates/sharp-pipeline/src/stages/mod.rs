//! The stages: what each one reads, which programs it starts, what it writes.

mod analyze;
mod arithmetic;
mod benchmark;
mod command_line;
mod evaluate;
mod export;
mod import;
mod plan;
mod quantize;
mod report;
mod settings;
mod stage;
mod step;
#[cfg(test)]
mod tests;
mod training;

use sharp_schema::run::{EVALUATE, FINETUNE, IMPORT, StageFolder, WARMUP};

use crate::config::ModelSource;
use crate::error::Result;
use crate::run_folder::Run;

pub use command_line::{CommandLine, for_shell};
#[cfg(test)]
pub(crate) use settings::Settings;
pub use stage::Stage;
pub(crate) use step::Input;
pub use step::Step;

/// What a person is told whose run ends with the fine-tuning.
const REUSE_IS_NOT_WRITTEN: &str =
    "finetune.pool and finetune.run_twice are measured and not written: the run ends with the fine-tuning";

/// Returns all steps of a run, in order. Where fine-tuning uses weights more often than a plan can say, it is
/// the last.
///
/// # Errors
/// Where a file that the configuration names is not there.
pub fn steps(run: &Run) -> Result<Vec<Step>> {
    let mut steps = vec![
        import::step(run)?,
        analyze::step(run)?,
        plan::step(run),
        training::warmup(run)?,
        training::finetune(run, true)?,
    ];
    if run.config.finetune.reuses_weights() {
        if let Some(finetune) = steps.last_mut() {
            finetune.notes.push(REUSE_IS_NOT_WRITTEN.into());
        }
        return Ok(steps);
    }
    if run.config.trains_cold() {
        steps.push(training::finetune(run, false)?);
    }
    steps.extend([
        export::step(run),
        quantize::step(run)?,
        evaluate::step(run)?,
        benchmark::step(run),
        report::step(run)?,
    ]);
    Ok(steps)
}

/// Returns the evaluation and the steps that it needs.
///
/// # Errors
/// Where a file that the configuration names is not there.
pub fn steps_to_evaluate(run: &Run) -> Result<Vec<Step>> {
    Ok(needed_for(EVALUATE, steps(run)?))
}

/// Returns the fine-tuning, which measures its result on the texts of the evaluation, and the steps that it
/// needs.
///
/// # Errors
/// Where a file that the configuration names is not there.
pub fn steps_to_finetune(run: &Run) -> Result<Vec<Step>> {
    let mut steps = needed_for(FINETUNE, steps(run)?);
    if let Some(finetune) = steps.pop() {
        steps.push(training::measured(run, finetune)?);
    }
    Ok(steps)
}

/// Returns the step in `last` and the steps that it needs.
fn needed_for(last: StageFolder, steps: Vec<Step>) -> Vec<Step> {
    let mut wanted = vec![last];
    for step in steps.iter().rev() {
        if wanted.contains(&step.folder) {
            wanted.extend(step.inputs.iter().filter_map(|input| match input {
                Input::From(folder, _) => Some(*folder),
                _ => None,
            }));
        }
    }
    steps.into_iter().filter(|step| wanted.contains(&step.folder)).collect()
}

/// Lets a model that cannot be trained be refused before it is imported and analysed.
///
/// # Errors
/// Where a file that the configuration names is not there.
pub fn check_model_first(run: &Run, steps: &mut [Step]) -> Result<()> {
    let trains = steps.iter().any(|step| matches!(step.stage, Stage::Warmup | Stage::Finetune));
    let import = steps.iter_mut().find(|step| step.folder == IMPORT && trains);
    if let (Some(import), Some(line)) = (import, model_check(run)?) {
        import.command_lines.insert(0, line);
    }
    Ok(())
}

/// Builds the command that only says whether training takes the configuration's model; `None` for models of
/// the project's own, which it takes.
///
/// # Errors
/// Where a file that the configuration names is not there.
pub fn model_check(run: &Run) -> Result<Option<CommandLine>> {
    let ModelSource::File(found) = run.config.model_source(&run.workspace)? else { return Ok(None) };
    let line = |path| CommandLine::sharp("inspect").arg(path).value("--trainable", run.config.data.sequence);
    Ok(found.pinned.is_none().then(|| line(&found.path)))
}

/// Lets the fine-tuning say before the warm-up what memory and time it takes, and refuse a machine that is
/// too small.
///
/// # Errors
/// Where a file that the configuration names is not there.
pub fn check_memory_first(run: &Run, steps: &mut [Step]) -> Result<()> {
    let finetunes = steps.iter().any(|step| step.folder == FINETUNE);
    if let Some(warmup) = steps.iter_mut().find(|step| step.folder == WARMUP && finetunes) {
        warmup.command_lines.insert(0, training::memory_check(run)?);
    }
    Ok(())
}
