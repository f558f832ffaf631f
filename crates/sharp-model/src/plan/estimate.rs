//! What a plan costs and saves, before anything runs.

use serde::{Deserialize, Serialize};
use sharp_quant::DType;

use super::Plan;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::tensors;

/// What a plan costs and saves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// MLP weights of the original.
    pub original_mlp_parameters: u64,
    /// MLP weights of unchanged layers, and what changed layers store of their own.
    pub stored_mlp_parameters: u64,
    /// What changed layers store of their own: low-rank matrices, scales, and neurons kept.
    pub recovery_parameters: u64,
    /// `1 - stored / original`, of the MLP weights.
    pub saved_fraction: f64,
    /// All weights of the original; a tied head counts once.
    pub original_parameters: u64,
    /// All weights stored under the plan.
    pub stored_parameters: u64,
    /// Bytes of the original's weights in the given type.
    pub original_bytes: u64,
    /// Bytes of the stored weights in the given type (scales in float32).
    pub stored_bytes: u64,
}

impl Plan {
    /// How many MLP weights the original model has.
    pub fn original_mlp_parameters(&self, config: &ModelConfig) -> u64 {
        config.num_hidden_layers as u64 * config.mlp_parameters_per_layer()
    }

    /// How many parameters the changed layers store of their own: low-rank matrices, scales and neurons kept.
    pub fn stored_parameters(&self, config: &ModelConfig) -> u64 {
        self.changes.iter().map(|c| c.treatment.stored_parameters(config)).sum()
    }

    /// How many MLP weights are stored: those of unchanged layers, and [`Plan::stored_parameters`].
    pub fn stored_mlp_parameters(&self, config: &ModelConfig) -> u64 {
        let unchanged = (0..config.num_hidden_layers).filter(|&l| self.is_unchanged(l)).count() as u64;
        unchanged * config.mlp_parameters_per_layer() + self.stored_parameters(config)
    }

    /// `1 - stored / original` MLP parameters (the paper's "saved", 0.38 to 0.65 there).
    pub fn saved_fraction(&self, config: &ModelConfig) -> f64 {
        1.0 - self.stored_mlp_parameters(config) as f64 / self.original_mlp_parameters(config) as f64
    }

    /// Counts parameters and bytes before and after, stored as `dtype`.
    ///
    /// # Errors
    /// [`Error::Plan`](crate::Error::Plan) if the plan does not fit the model,
    /// [`Error::Quant`](crate::Error::Quant) if `dtype` cannot hold a shape.
    pub fn estimate(&self, config: &ModelConfig, dtype: DType) -> Result<Estimate> {
        self.validate(config)?;
        let (mut original, mut stored) = (0u64, 0u64);
        let (mut original_bytes, mut stored_bytes) = (0u64, 0u64);
        for (_, layer, info) in tensors::tensors_of(config, dtype) {
            let n = info.elements()?;
            // Norms and biases stay in a float type whatever the weights are in.
            let own = if info.shape.len() < 2 && dtype.block_len() > 1 { DType::F32 } else { dtype };
            let bytes = own.nbytes(n)? as u64;
            original += n as u64;
            original_bytes += bytes;
            let replaced = layer.is_some_and(|l| !self.is_unchanged(l))
                && crate::names::parse_mlp_weight(&info.name).is_some();
            if !replaced {
                stored += n as u64;
                stored_bytes += bytes;
            }
        }
        for change in &self.changes {
            let matrices = change.treatment.matrix_parameters(config);
            let scales = change.treatment.scale_parameters(config);
            stored += matrices + scales;
            stored_bytes += matrices * dtype.block_bytes() as u64 / dtype.block_len() as u64 + 4 * scales;
        }
        Ok(Estimate {
            original_mlp_parameters: self.original_mlp_parameters(config),
            stored_mlp_parameters: self.stored_mlp_parameters(config),
            recovery_parameters: self.stored_parameters(config),
            saved_fraction: self.saved_fraction(config),
            original_parameters: original,
            stored_parameters: stored,
            original_bytes,
            stored_bytes,
        })
    }
}
