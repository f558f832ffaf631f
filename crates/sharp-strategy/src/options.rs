//! How much to remove, and what changed layers look like.

use serde::{Deserialize, Serialize};
use sharp_model::{ModelConfig, Ranks};
use sharp_schema::Form;

use crate::{Error, Result};

/// How much is to be removed.
///
/// All MLPs of a model have the same shape. Most strategies give every layer they change the same treatment,
/// so a budget comes down to a number of layers: the smallest that meets it. [`crate::Even`] changes all
/// layers, and a budget comes down to what each of them keeps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Budget {
    /// As many layers as the strategy's pattern gives (`pairs`, `back`, `front`, `groups`, `explicit`).
    Pattern,
    /// Exactly this many layers.
    Targets(usize),
    /// At least this fraction (0 to 1) of the model's MLP parameters, recovery parameters counted against it.
    MlpFractionRemoved(f64),
    /// At most this many MLP and recovery parameters stored.
    StoredMlpParameters(u64),
}

/// What every changed layer has in common, and which layers may change.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Layers that keep their own MLP. They may still serve as references.
    pub keep: Vec<usize>,
    /// First layer of the range the strategy looks at (patterns start here), default 0.
    pub first: usize,
    /// One past the last layer of the range, default the number of layers.
    pub end: Option<usize>,
    /// The greatest distance between a layer and its reference that `greedy` and `optimal` consider; default
    /// all measured ones.
    pub window: Option<usize>,
    /// What takes the place of a layer's own MLP.
    pub form: Form,
    /// The ranks of every changed layer; `None`: from `rho`.
    pub ranks: Option<Ranks>,
    /// Recovery parameters of one layer as a fraction of one MLP: rho = r(d+f)/(d f), or, with neurons
    /// beside a reference, k/f. The paper's headline figures imply 0.134.
    pub rho: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep: Vec::new(),
            first: 0,
            end: None,
            window: None,
            form: Form::LowRank,
            ranks: None,
            rho: 0.134,
        }
    }
}

impl Options {
    /// The ranks of every changed layer in a model of this shape.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a `rho` that is not between 0 and 1.
    pub(crate) fn ranks(&self, config: &ModelConfig) -> Result<Ranks> {
        if let Some(ranks) = self.ranks {
            return Ok(ranks);
        }
        self.check_rho()?;
        Ok(Ranks::uniform(sharp_model::rank_for_rho(config, self.rho)))
    }

    /// How many neurons of its own every changed layer has beside its reference's MLP: whole blocks of the
    /// packed formats where the MLP's width is one, at least one of them.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a `rho` that is not between 0 and 1, and for ranks.
    pub(crate) fn neurons(&self, config: &ModelConfig) -> Result<usize> {
        if let Some(ranks) = self.ranks {
            return Err(Error::InvalidOption {
                what: "ranks",
                value: format!("{}/{}/{}", ranks.gate, ranks.up, ranks.down),
                expected: "none with the form `neurons`; rho decides how many there are".into(),
            });
        }
        self.check_rho()?;
        let step = neuron_step(config);
        let steps = (self.rho * config.intermediate_size as f64 / step as f64).round().max(1.0);
        Ok((steps as usize * step).min(config.intermediate_size))
    }

    fn check_rho(&self) -> Result<()> {
        if !(self.rho > 0.0 && self.rho < 1.0) {
            return Err(Error::InvalidOption {
                what: "rho",
                value: self.rho.to_string(),
                expected: "a fraction of one MLP between 0 and 1 (the paper: 0.134)".into(),
            });
        }
        Ok(())
    }
}

/// Neurons are kept in multiples of this: the block of the packed formats, where the MLP's width is whole
/// blocks.
pub(crate) fn neuron_step(config: &ModelConfig) -> usize {
    const BLOCK: usize = 32;
    if config.intermediate_size.is_multiple_of(BLOCK) { BLOCK } else { 1 }
}

impl Budget {
    /// Returns the number of changed layers that meets this budget; `None` for [`Budget::Pattern`].
    ///
    /// `stored` is what one changed layer stores of its own.
    ///
    /// # Errors
    /// A fraction that is no fraction, or a saving of nothing.
    pub(crate) fn targets(self, config: &ModelConfig, stored: u64) -> Result<Option<usize>> {
        let (layers, mlp) = (config.num_hidden_layers, config.mlp_parameters_per_layer());
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
        if stored >= mlp {
            return Err(Error::NothingSaved { recovery: stored, mlp });
        }
        // The small allowance keeps a fraction that was itself computed from a whole number of targets whole.
        Ok(Some((to_remove / (mlp - stored) as f64 - 1e-9).ceil().max(0.0) as usize))
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
