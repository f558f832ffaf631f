//! What fine-tuning is given, and what it gives.

use serde::{Deserialize, Serialize};
use sharp_data::TokenBlocks;
use sharp_model::Recovery;
use sharp_model::packed::PackedFile;
use sharp_schema::TrainMlps;

use super::reuse::Reuse;
use crate::error::{Error, Result};
use crate::head::Loss;
use crate::schedule::Schedule;

/// Settings of fine-tuning.
#[derive(Debug, Clone, PartialEq)]
pub struct FinetuneOptions {
    /// What is minimised.
    pub loss: Loss,
    /// Steps.
    pub steps: u64,
    /// Tokens in a step: whole rows, at least one.
    pub batch_tokens: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Steps of warm-up; `None` is a twentieth of all.
    pub lr_warmup: Option<u64>,
    /// The last step's rate as a fraction of the highest.
    pub lr_floor: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Largest L2 norm of the gradient; 0 leaves it alone.
    pub clip: f64,
    /// Also train the RMS norms from the first target on.
    pub train_norms: bool,
    /// Which MLPs' own weights are trained as well.
    pub train_mlps: TrainMlps,
    /// Write a checkpoint every so many steps; 0 writes none.
    pub save_every: u64,
    /// Measure the validation loss every so many steps; 0 only at the beginning and the end.
    pub eval_every: u64,
    /// Seed of the order of rows, and of the start where there is no warm-up.
    pub seed: u64,
    /// Bytes of memory that may be taken; `None` is what the machine has.
    pub memory_bytes: Option<u64>,
    /// Weights that are used more than once beyond what the plan says; with any, no recovery is written.
    pub reuse: Reuse,
    /// Texts that the result is measured on, as the last line of the metrics.
    pub texts: Vec<(String, TokenBlocks)>,
    /// Stop after this many steps of this call, as a kill would, leaving the last checkpoint behind.
    pub stop_after: Option<u64>,
}

impl Default for FinetuneOptions {
    fn default() -> Self {
        Self {
            loss: Loss::Completion,
            steps: 200,
            batch_tokens: 2048,
            lr: 1e-3,
            lr_warmup: None,
            lr_floor: 0.1,
            weight_decay: 0.01,
            clip: 1.0,
            train_norms: false,
            train_mlps: TrainMlps::None,
            save_every: 50,
            eval_every: 20,
            seed: 0,
            memory_bytes: None,
            reuse: Reuse::default(),
            texts: Vec::new(),
            stop_after: None,
        }
    }
}

impl FinetuneOptions {
    /// Checks that the settings make sense.
    pub(super) fn check(&self) -> Result<()> {
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return Err(Error::invalid(format!("learning rate {} is not above 0", self.lr)));
        }
        if !(0.0..=1.0).contains(&self.lr_floor) {
            return Err(Error::invalid(format!("lr_floor {} is not between 0 and 1", self.lr_floor)));
        }
        let temperature = match self.loss {
            Loss::Completion => 1.0,
            Loss::Distill { temperature } | Loss::Mixed { temperature, .. } => temperature,
        };
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Error::invalid(format!("temperature {temperature} is not above 0")));
        }
        if let Loss::Mixed { weight, .. } = self.loss
            && !(0.0..=1.0).contains(&weight)
        {
            return Err(Error::invalid(format!("weight {weight} is not between 0 and 1")));
        }
        Ok(())
    }

    /// Returns the learning rate over the steps.
    pub(super) fn schedule(&self) -> Schedule {
        Schedule {
            peak: self.lr,
            warmup_steps: self.lr_warmup.unwrap_or(self.steps / 20).max(1),
            total_steps: self.steps,
            floor: self.lr_floor,
        }
    }
}

/// The values that fine-tuning begins with.
#[derive(Clone, Copy)]
pub enum StartFrom<'a> {
    /// The paper's zero start: no warm-up.
    Zero,
    /// Recovery parameters, such as a warm-up's.
    Recovery(&'a Recovery),
    /// Recovery parameters and the runtime file made with them, whose rounding is repaired.
    ///
    /// Everything frozen is as the file has it. What is trained is rounded to the file's formats wherever the
    /// model computes (plainly, by the largest magnitude of each block), while the optimiser moves the exact
    /// values. What is written is rounded, so that a quantiser of the same format finds nothing to round.
    RuntimeFile {
        /// The parameters that the file was made with.
        recovery: &'a Recovery,
        /// The file, of the same model, plan and recovery parameters.
        file: &'a PackedFile,
    },
}

impl<'a> StartFrom<'a> {
    /// Returns the recovery parameters, if there are any.
    pub(super) fn recovery(self) -> Option<&'a Recovery> {
        match self {
            Self::Zero => None,
            Self::Recovery(recovery) | Self::RuntimeFile { recovery, .. } => Some(recovery),
        }
    }

    /// Returns the runtime file, if its rounding is repaired.
    pub(super) fn runtime_file(self) -> Option<&'a PackedFile> {
        match self {
            Self::Zero | Self::Recovery(_) => None,
            Self::RuntimeFile { file, .. } => Some(file),
        }
    }
}

/// The result of fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneSummary {
    /// Steps taken in all, those before a resume included.
    pub steps: u64,
    /// The step a checkpoint was resumed from.
    pub resumed_from: Option<u64>,
    /// Values trained.
    pub parameters: u64,
    /// Validation perplexity before the first step.
    pub start_perplexity: f64,
    /// Validation perplexity of the result; of the last measurement where steps are left.
    pub perplexity: f64,
    /// The step whose state is the result, the best on validation text. 0: training made nothing better.
    pub kept_step: u64,
    /// How often training diverged, went back and on at half the learning rate.
    pub setbacks: u32,
    /// Training tokens a second in this call.
    pub tokens_per_second: f64,
}
