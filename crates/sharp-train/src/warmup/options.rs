//! What warm-up is given, and what it gives.

use serde::{Deserialize, Serialize};
use sharp_schema::{Start, Weighting};

use crate::schedule::Schedule;

/// Settings of the warm-up.
#[derive(Debug, Clone, PartialEq)]
pub struct WarmupOptions {
    /// Where the parameters begin.
    pub start: Start,
    /// AdamW steps a layer at most; 0 leaves the start as it is.
    pub steps: u64,
    /// Tokens in a step.
    pub batch_tokens: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Decoupled weight decay of the factors.
    pub weight_decay: f64,
    /// How tokens count.
    pub weighting: Weighting,
    /// Steps between measurements of the validation error.
    pub eval_every: u64,
    /// Measurements without a new best after which a layer is done.
    pub patience: u64,
    /// Seed of the start and of the batches.
    pub seed: u64,
    /// Bytes of activations above which they go to files beside the output instead of memory.
    pub memory_bytes: u64,
}

impl Default for WarmupOptions {
    fn default() -> Self {
        Self {
            start: Start::Zero,
            steps: 400,
            batch_tokens: 1024,
            lr: 1e-3,
            weight_decay: 0.0,
            weighting: Weighting::default(),
            eval_every: 25,
            patience: 6,
            seed: 0,
            memory_bytes: 1 << 30,
        }
    }
}

impl WarmupOptions {
    /// Returns the learning rate over a layer's steps.
    pub(super) fn schedule(&self) -> Schedule {
        Schedule {
            peak: self.lr,
            warmup_steps: (self.steps / 20).max(1),
            total_steps: self.steps,
            floor: 0.05,
        }
    }
}

/// The result of a layer's warm-up. Errors are on validation tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerSummary {
    /// The target.
    pub layer: usize,
    /// Whose MLP it uses.
    pub reference: Option<usize>,
    /// Relative squared error of direct sharing, if there is a reference. 1 is what removing the MLP would
    /// give.
    pub direct_error: Option<f64>,
    /// The start's.
    pub start_error: f64,
    /// The best found, which is what was kept.
    pub error: f64,
    /// Mean over tokens of the relative squared error of each (at most 1e3 a token): massive activations
    /// count no more than others.
    pub token_error: f64,
    /// The error in the weighting that was trained.
    pub weighted_error: f64,
    /// Steps taken.
    pub steps: u64,
    /// Seconds of the start and of the training.
    pub seconds: f64,
}

/// The result of the warm-up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WarmupSummary {
    /// The layers fitted by this call, in the order of the model.
    pub layers: Vec<LayerSummary>,
    /// Targets whose files were there already.
    pub skipped: Vec<usize>,
}
