//! The stages: what each one reads, which programs it starts, what it writes.

mod analyze;
mod benchmark;
mod command_line;
mod evaluate;
mod export;
mod import;
mod plan;
mod quantize;
mod report;
mod settings;
#[cfg(test)]
mod tests;
mod training;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sharp_schema::run::{EVALUATE, FINETUNE, IMPORT, PLAN, PLAN_FILE, RECOVERY_FILE, StageFolder, WARMUP};
use sharp_schema::suggest;

use crate::config::resolve_data;
use crate::error::{Error, Result};
use crate::provision::pins::PinnedFile;
use crate::run_folder::Run;

pub use command_line::CommandLine;
pub(crate) use settings::Settings;

/// A stage of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Bring the checkpoint into one form.
    Import,
    /// Measure how alike the layers are.
    Analyze,
    /// Choose what each layer of the compressed model runs with.
    Plan,
    /// Fit the parameters of each changed layer alone (SLW).
    Warmup,
    /// Train the parameters of all changed layers together (SFT).
    Finetune,
    /// Write the compressed checkpoint.
    Export,
    /// Write the files that the engine runs.
    Quantize,
    /// Measure perplexity and task accuracy.
    Evaluate,
    /// Measure speed and memory.
    Benchmark,
    /// Write the page for a person.
    Report,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 10] = [
        Self::Import,
        Self::Analyze,
        Self::Plan,
        Self::Warmup,
        Self::Finetune,
        Self::Export,
        Self::Quantize,
        Self::Evaluate,
        Self::Benchmark,
        Self::Report,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Analyze => "analyze",
            Self::Plan => "plan",
            Self::Warmup => "warmup",
            Self::Finetune => "finetune",
            Self::Export => "export",
            Self::Quantize => "quantize",
            Self::Evaluate => "evaluate",
            Self::Benchmark => "benchmark",
            Self::Report => "report",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|stage| stage.name() == name)
            .ok_or_else(|| Error::Invalid(suggest::unknown("stage", name, &Self::ALL.map(Self::name))))
    }
}

/// A file or folder that a step reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Outputs of an earlier step's folder: those whose path begins with one of the prefixes, or all.
    From(StageFolder, &'static [&'static str]),
    /// A file known by its published hash.
    Pinned(&'static PinnedFile),
    /// A file or folder of the user's own, outside the run.
    Outside(PathBuf),
}

/// All files of the imported model.
const MODEL_FILES: Input = Input::From(IMPORT, &[]);
/// The plan.
const PLAN_INPUT: Input = Input::From(PLAN, &[PLAN_FILE]);
/// The layers that the warm-up fitted.
const WARM_LAYERS: Input = Input::From(WARMUP, &["layer-"]);
/// The parameters that fine-tuning trained.
const TRAINED: Input = Input::From(FINETUNE, &[RECOVERY_FILE]);

/// One folder of a run: a stage, or one of the parts of a stage.
#[derive(Debug)]
pub struct Step {
    /// The stage it belongs to.
    pub stage: Stage,
    /// Its folder in the run.
    pub folder: StageFolder,
    /// The programs it starts, in order.
    pub command_lines: Vec<CommandLine>,
    /// Raised where the meaning of the outputs changes.
    pub(crate) version: u32,
    /// The part of the configuration that decides the outputs.
    pub(crate) settings: Settings,
    /// What it reads.
    pub(crate) inputs: Vec<Input>,
    /// Outputs that must be there afterwards, relative to the folder.
    pub(crate) must_write: Vec<&'static str>,
    /// Outputs outside the folder, relative to the run.
    pub(crate) outputs_in_run: Vec<&'static str>,
    /// Beginnings of paths that are not outputs: steps kept for resuming.
    pub(crate) scratch: &'static [&'static str],
    /// True where a person may edit the outputs: the edit then counts as the output.
    pub(crate) editable: bool,
    /// True where the program goes on from what an interrupted run left in the folder.
    pub(crate) resumable: bool,
    /// Small files that are written before the programs start: name and contents.
    pub(crate) files: Vec<(&'static str, String)>,
    /// Sentences for the person: what the configuration asks for and cannot have.
    pub(crate) notes: Vec<String>,
}

impl Step {
    /// A step that reads, starts and writes nothing yet.
    fn new(stage: Stage, folder: StageFolder, settings: Settings) -> Self {
        Self {
            stage,
            folder,
            command_lines: Vec::new(),
            version: 1,
            settings,
            inputs: Vec::new(),
            must_write: Vec::new(),
            outputs_in_run: Vec::new(),
            scratch: &[],
            editable: false,
            resumable: false,
            files: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// All steps of a run, in order.
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

/// The steps without which the evaluation could not be made, and itself.
///
/// # Errors
/// Where a file that the configuration names is not there.
pub fn steps_to_evaluate(run: &Run) -> Result<Vec<Step>> {
    Ok(needed_for(EVALUATE, steps(run)?))
}

/// The steps without which the step in `last` could not be made, and itself.
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

/// Lets a machine that is too small for the fine-tuning say so before the warm-up, not after it.
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

/// A data specification of `key` as an argument and as an input.
fn data(run: &Run, key: &str, typed: &str) -> Result<(String, Input)> {
    let data = resolve_data(&run.workspace, key, typed)?;
    let argument = data.argument();
    Ok((argument, data.pinned.map_or(Input::Outside(data.path), Input::Pinned)))
}

/// A file in a step's folder.
fn in_folder(run: &Run, folder: StageFolder, file: impl AsRef<Path>) -> PathBuf {
    run.path(folder).join(file)
}
