//! A cell of a study and the rows that were measured of it.

use std::collections::BTreeMap;

use serde::Serialize;
use sharp_schema::evaluation::LossDifference;

/// How far a cell is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Every stage is up to date.
    Done,
    /// Some stages are not up to date.
    Missing,
    /// A stage failed when it was last tried by this command.
    Failed {
        /// Its message.
        error: String,
    },
}

/// A cell and what was measured of it.
#[derive(Debug, Serialize)]
pub struct Line {
    pub cell: String,
    pub values: Vec<String>,
    pub seed: u64,
    #[serde(flatten)]
    pub state: State,
    /// Tokens of the fine-tuning.
    pub finetune_tokens: usize,
    /// Name of the processor and threads of the training, or of the evaluation where nothing was trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Seconds that each stage took where it was made, by folder.
    pub stage_wall_s: BTreeMap<String, f64>,
    pub rows: Vec<Row>,
}

/// One row of a cell's evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    pub mlp_parameters: u64,
    /// Fraction of the original's MLP parameters that need not be stored.
    pub saved: f64,
    /// Bytes of the weights as they were measured; absent where nothing was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    pub perplexity: BTreeMap<String, f64>,
    /// Kullback-Leibler divergence from the original, in nats; empty for the original.
    pub kl: BTreeMap<String, f64>,
    /// Loss over the original's, in nats, with its 95 % interval over documents; empty for the original.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub loss_over_original: BTreeMap<String, LossDifference>,
    pub accuracy: BTreeMap<String, Accuracy>,
    /// Tokens of the fine-tuning behind this row; 0 where there was none.
    pub finetune_tokens: usize,
    /// Seconds of warm-up and fine-tuning behind this row.
    pub training_wall_s: f64,
}

/// Accuracy in a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    pub value: f64,
    pub stderr: f64,
}
