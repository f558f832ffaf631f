//! What became of each step.

use std::fmt;

use serde::{Deserialize, Serialize};
use sharp_schema::manifest::Manifest;

use crate::stages::Step;

/// Says what became of a step, or would become of it in a run that is not dry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Its outputs are up to date: nothing was done.
    Skipped,
    /// Its programs ran.
    Ran,
    /// Its outputs were taken from another run of the same study.
    Reused,
    /// Its programs would run.
    WouldRun,
    /// Its outputs would be taken from another run of the same study.
    WouldReuse,
}

impl fmt::Display for StepStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Skipped => "skipped",
            Self::Ran => "ran",
            Self::Reused => "reused",
            Self::WouldRun => "would run",
            Self::WouldReuse => "would reuse",
        })
    }
}

/// What happened, or would happen, to a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Stage name.
    pub stage: String,
    /// Folder inside the run.
    pub folder: String,
    /// What became of it.
    pub status: StepStatus,
    /// Why.
    pub reason: String,
    /// Wall time in seconds, now or when it was made.
    pub wall_s: Option<f64>,
    /// Largest resident memory of its programs, in bytes.
    pub peak_memory_bytes: Option<u64>,
}

impl Outcome {
    pub(super) fn new(step: &Step, status: StepStatus, reason: String, made: Option<&Manifest>) -> Self {
        Self {
            stage: step.stage.name().to_owned(),
            folder: step.folder.to_string(),
            status,
            reason,
            wall_s: made.map(|made| made.wall_s),
            peak_memory_bytes: made.and_then(|made| made.peak_memory_bytes),
        }
    }
}
