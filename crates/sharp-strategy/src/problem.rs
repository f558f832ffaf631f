//! The question every strategy answers, and the form of its answer.

use std::collections::BTreeSet;

use crate::costs::Table;
use crate::options::{Budget, Options, Replacement};
use crate::{Error, LayerCosts, Result};

/// What a strategy is asked: a checked, resolved view of the model's shape, the measurements and the options.
#[derive(Debug, Clone)]
pub struct Problem {
    layers: usize,
    first: usize,
    end: usize,
    keep: BTreeSet<usize>,
    targets: Option<usize>,
    replacement: Replacement,
    table: Table,
}

impl Problem {
    pub(crate) fn new(costs: &LayerCosts, options: &Options, targets: Option<usize>) -> Result<Self> {
        let layers = costs.num_layers;
        let end = options.end.unwrap_or(layers);
        if options.first > end || end > layers {
            return Err(Error::InvalidOption {
                what: "range of layers",
                value: format!("{}..{end}", options.first),
                expected: format!("a range within 0..{layers}"),
            });
        }
        if let Some(&layer) = options.keep.iter().find(|&&l| l >= layers) {
            return Err(Error::InvalidDecision {
                layer,
                problem: format!(
                    "is to keep its MLP, but the model has layers 0 to {}",
                    layers.saturating_sub(1)
                ),
            });
        }
        if options.window == Some(0) {
            return Err(Error::InvalidOption {
                what: "window",
                value: "0".into(),
                expected: "the greatest distance between target and reference, at least 1".into(),
            });
        }
        Ok(Self {
            layers,
            first: options.first,
            end,
            keep: options.keep.iter().copied().collect(),
            targets,
            replacement: options.replacement,
            table: costs.table(options.window)?,
        })
    }

    /// How many layers the model has.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// The range of layers the strategy looks at, `first..end`.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.first..self.end
    }

    /// Whether this layer may give up its own MLP: in range and not kept.
    pub fn may_be_target(&self, layer: usize) -> bool {
        self.range().contains(&layer) && !self.keep.contains(&layer)
    }

    /// Whether the options ask for this layer to keep its own MLP.
    pub fn keeps(&self, layer: usize) -> bool {
        self.keep.contains(&layer)
    }

    /// How many targets the budget asks for; `None`: as many as the pattern gives.
    pub fn targets(&self) -> Option<usize> {
        self.targets
    }

    /// Whether a target uses another layer's MLP, or has none (the baselines).
    pub fn shares(&self) -> bool {
        self.replacement == Replacement::Share
    }

    /// The measured costs.
    pub fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn require_targets(&self, strategy: &str) -> Result<usize> {
        self.targets.ok_or_else(|| Error::MissingBudget { strategy: strategy.into() })
    }

    pub(crate) fn unreachable(&self, strategy: &str, possible: usize, asked: usize, advice: &str) -> Error {
        Error::BudgetUnreachable {
            strategy: strategy.into(),
            possible,
            asked,
            layers: self.layers,
            advice: advice.into(),
        }
    }
}

/// One decision of a strategy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The layer that gives up its own MLP.
    pub target: usize,
    /// The layer whose MLP it uses; `None`: no sharing (the baselines).
    pub reference: Option<usize>,
    /// Why, in plain words with the numbers.
    pub reason: String,
}

/// A way of choosing which layer uses whose MLP. Pure: same problem, same answer.
pub trait Strategy {
    /// Its name, as configurations spell it.
    fn name(&self) -> &str;

    /// The decisions, in any order.
    ///
    /// # Errors
    /// Where the problem lacks what the strategy needs, or the budget is out of its reach.
    fn choose(&self, problem: &Problem) -> Result<Vec<Choice>>;
}

/// Sizes a plan: budget to number of targets.
pub(crate) fn count(
    config: &sharp_model::ModelConfig,
    budget: Budget,
    recovery: u64,
) -> Result<Option<usize>> {
    let mlp = config.mlp_parameters_per_layer();
    if recovery >= mlp && !matches!(budget, Budget::Pattern | Budget::Targets(_)) {
        return Err(Error::NothingSaved { recovery, mlp });
    }
    budget.targets(config, mlp.saturating_sub(recovery))
}
