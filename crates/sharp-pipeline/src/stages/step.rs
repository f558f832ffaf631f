//! A step of a run: what it reads, starts and writes.

use std::path::{Path, PathBuf};

use sharp_schema::run::{EXPORT, FINETUNE, IMPORT, PLAN, PLAN_FILE, RECOVERY_FILE, StageFolder, WARMUP};

use super::command_line::CommandLine;
use super::settings::Settings;
use super::stage::Stage;
use crate::config::resolve_data;
use crate::error::Result;
use crate::provision::pins::PinnedFile;
use crate::run_folder::Run;

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
pub(super) const MODEL_FILES: Input = Input::From(IMPORT, &[]);
/// The plan.
pub(super) const PLAN_INPUT: Input = Input::From(PLAN, &[PLAN_FILE]);
/// The layers that the warm-up fitted.
pub(super) const WARM_LAYERS: Input = Input::From(WARMUP, &["layer-"]);
/// The parameters that fine-tuning trained.
pub(super) const TRAINED: Input = Input::From(FINETUNE, &[RECOVERY_FILE]);

/// The compact checkpoint.
pub(super) const COMPACT_FILES: Input = Input::From(EXPORT, &["compact/"]);

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
    /// Makes a step that reads, starts and writes nothing yet.
    pub(super) fn new(stage: Stage, folder: StageFolder, settings: Settings) -> Self {
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

/// Returns a data specification of `key` as an argument and as an input.
pub(super) fn data(run: &Run, key: &str, typed: &str) -> Result<(String, Input)> {
    let data = resolve_data(&run.workspace, key, typed)?;
    let argument = data.argument();
    Ok((argument, data.pinned.map_or(Input::Outside(data.path), Input::Pinned)))
}

/// Returns the path of a file in a step's folder.
pub(super) fn in_folder(run: &Run, folder: StageFolder, file: impl AsRef<Path>) -> PathBuf {
    run.path(folder).join(file)
}
