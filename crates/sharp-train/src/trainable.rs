//! Refuses models whose layers are not those that are trained here.

use sharp_model::ModelConfig;

use crate::error::{Error, Result};

/// Checks that a model's layers can be trained on rows of `seq_len` tokens, by its configuration alone. Both
/// trainings do so before they read a weight.
///
/// # Errors
/// [`Error::Invalid`] naming what the model has and Llama lacks.
pub fn check_trainable(config: &ModelConfig, seq_len: usize) -> Result<()> {
    config.training_refusal(seq_len).map_or(Ok(()), |refusal| Err(Error::invalid(refusal)))
}
