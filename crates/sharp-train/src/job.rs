//! What a training works on, and where and how it is computed.

use std::path::Path;

use sharp_data::TokenBlocks;
use sharp_model::{ModelSource, Plan};
use sharp_progress::Progress;

use crate::device::Compute;
use crate::error::{Error, Result};
use crate::trainable::check_trainable;

/// Names what warm-up and fine-tuning have in common: model, plan, data, output folder and machine.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The original model.
    pub source: &'a ModelSource,
    /// What each layer of the compressed model has in place of its MLP.
    pub plan: &'a Plan,
    /// Rows of tokens to train on.
    pub train: &'a TokenBlocks,
    /// Rows of tokens that choices go by (the best step, the best state), as long as those of `train`.
    pub validation: &'a TokenBlocks,
    /// The folder to write to. What is finished there already is not done again.
    pub out: &'a Path,
    /// Device, number type and threads.
    pub compute: Compute,
    /// Where progress is reported.
    pub progress: &'a dyn Progress,
}

impl Job<'_> {
    /// Checks that the original can be trained, that the plan fits it and that the rows are of one length.
    pub(crate) fn check(&self) -> Result<()> {
        check_trainable(self.source.config(), self.train.seq_len)?;
        self.plan.validate(self.source.config())?;
        if self.source.plan().is_some() {
            let path = self.source.path().display();
            return Err(Error::invalid(format!(
                "{path} is compressed already: training begins with an original"
            )));
        }
        if self.train.seq_len != self.validation.seq_len {
            return Err(Error::invalid("training and validation rows must be of one length"));
        }
        Ok(())
    }
}
