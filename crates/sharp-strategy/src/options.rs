//! How much to remove, and what the plan's targets look like.

use serde::{Deserialize, Serialize};
use sharp_model::{ModelConfig, Ranks, RecoveryForm};

use crate::{Error, Result};

/// How much is to be removed.
///
/// All MLPs of a model have the same shape and all targets of a plan the same ranks, so every budget comes down to
/// a number of targets: the smallest that meets it. With [`crate::Even`] the targets are given, and it comes down to what each keeps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Budget {
    /// As many targets as the strategy's pattern gives (`pairs`, `back`, `front`, `groups`, `explicit`).
    Pattern,
    /// Exactly this many targets.
    Targets(usize),
    /// At least this fraction (0 to 1) of the model's MLP parameters, recovery parameters counted against it.
    MlpFractionRemoved(f64),
    /// At most this many MLP and recovery parameters stored.
    StoredMlpParameters(u64),
}

/// What takes the place of a target's own MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Replacement {
    /// A reference layer's MLP with the recovery form of the options.
    #[default]
    Share,
    /// Low-rank matrices alone (a baseline).
    LowRankOnly,
    /// Some of the MLP's own neurons (structured pruning).
    Prune,
    /// Nothing: the MLP is left out (a baseline).
    Drop,
}

/// What every target of the plan has in common, and which layers take part.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Layers that keep their own MLP. They may still serve as references.
    pub keep: Vec<usize>,
    /// First layer of the range the strategy looks at (patterns start here), default 0.
    pub first: usize,
    /// One past the last layer of the range, default the number of layers.
    pub end: Option<usize>,
    /// The greatest distance between target and reference that `greedy` and `optimal` consider; default all
    /// measured ones.
    pub window: Option<usize>,
    /// What takes the place of the target's own MLP.
    pub replacement: Replacement,
    /// The recovery form of every target, where [`Replacement::Share`] is chosen.
    pub form: RecoveryForm,
    /// The ranks of every target; `None`: from `rho`.
    pub ranks: Option<Ranks>,
    /// Recovery parameters of one target as a fraction of one MLP: rho = r(d+f)/(d f). The paper's headline
    /// figures imply 0.134.
    pub rho: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep: Vec::new(),
            first: 0,
            end: None,
            window: None,
            replacement: Replacement::Share,
            form: RecoveryForm::LowRank,
            ranks: None,
            rho: 0.134,
        }
    }
}

impl Options {
    /// The recovery form the plan's targets get.
    pub fn effective_form(&self) -> RecoveryForm {
        match self.replacement {
            Replacement::Share => self.form,
            Replacement::LowRankOnly => RecoveryForm::LowRankOnly,
            Replacement::Prune => RecoveryForm::Pruned,
            Replacement::Drop => RecoveryForm::None,
        }
    }
}

impl Budget {
    /// The number of targets that meets this budget; `None` for [`Budget::Pattern`].
    ///
    /// `saved` is what one target saves: one MLP (`mlp` parameters) less its recovery parameters.
    ///
    /// # Errors
    /// A fraction that is no fraction, or a saving of nothing.
    pub(crate) fn targets(self, config: &ModelConfig, saved: u64) -> Result<Option<usize>> {
        let layers = config.num_hidden_layers;
        if let Budget::Targets(n) = self {
            if n >= layers.max(1) {
                return Err(Error::InvalidOption {
                    what: "number of targets",
                    value: n.to_string(),
                    expected: format!("less than the model's {layers} layers"),
                });
            }
            return Ok(Some(n));
        }
        let Some(to_remove) = self.parameters(config)? else { return Ok(None) };
        if to_remove <= 0.0 {
            return Ok(Some(0));
        }
        if saved == 0 {
            let mlp = config.mlp_parameters_per_layer();
            return Err(Error::NothingSaved { recovery: mlp, mlp });
        }
        // The small allowance keeps a fraction that was itself computed from a whole number of targets whole.
        Ok(Some((to_remove / saved as f64 - 1e-9).ceil().max(0.0) as usize))
    }

    /// How many MLP parameters are to go; `None` where the budget does not say.
    ///
    /// # Errors
    /// A fraction that is no fraction.
    pub(crate) fn parameters(self, config: &ModelConfig) -> Result<Option<f64>> {
        let total = config.mlp_parameters_per_layer().saturating_mul(config.num_hidden_layers as u64);
        Ok(Some(match self {
            Budget::Pattern | Budget::Targets(_) => return Ok(None),
            Budget::MlpFractionRemoved(f) => {
                if !(0.0..1.0).contains(&f) {
                    return Err(Error::InvalidOption {
                        what: "fraction of MLP parameters to remove",
                        value: f.to_string(),
                        expected: "a number from 0 to less than 1".into(),
                    });
                }
                f * total as f64
            }
            Budget::StoredMlpParameters(n) => total.saturating_sub(n) as f64,
        }))
    }
}
