//! The question every strategy answers, and the form of its answer.

use std::collections::BTreeSet;
use std::ops::Range;

use sharp_model::{ModelConfig, Repair, Treatment};
use sharp_schema::Form;

use crate::costs::Table;
use crate::options::{Budget, Options};
use crate::{Error, LayerCosts, Result};

/// What a strategy is asked: a checked, resolved view of the model's shape, the measurements and the options.
#[derive(Debug, Clone)]
pub struct Problem<'a> {
    config: &'a ModelConfig,
    budget: Budget,
    range: Range<usize>,
    keep: BTreeSet<usize>,
    form: Form,
    uniform: Uniform,
    table: Table,
}

/// What takes the place of an MLP where every changed layer gets the same.
#[derive(Debug, Clone, Copy)]
enum Uniform {
    /// Another layer's MLP with this repair.
    Share(Repair),
    /// Something that needs no other layer.
    Alone(Treatment),
    /// Neurons of its own: how many is for the strategy to say.
    Sized,
}

impl<'a> Problem<'a> {
    pub(crate) fn new(
        config: &'a ModelConfig,
        costs: &LayerCosts,
        budget: Budget,
        options: &Options,
    ) -> Result<Self> {
        let layers = config.num_hidden_layers;
        if costs.num_layers != layers {
            return Err(Error::InvalidCosts(format!(
                "measured on a model of {} layers, but this one has {layers}",
                costs.num_layers
            )));
        }
        let uniform = match options.form {
            Form::None => Uniform::Share(Repair::None),
            Form::LowRank => Uniform::Share(Repair::low_rank(options.ranks(config)?)),
            Form::ScaledLowRank => Uniform::Share(Repair::scaled(options.ranks(config)?)),
            Form::RowColumnScaledLowRank => Uniform::Share(Repair::row_column_scaled(options.ranks(config)?)),
            Form::Neurons => Uniform::Share(Repair::Neurons { neurons: options.neurons(config)? }),
            Form::LowRankOnly => Uniform::Alone(Treatment::LowRank { ranks: options.ranks(config)? }),
            Form::Drop => Uniform::Alone(Treatment::Drop),
            Form::Pruned => Uniform::Sized,
        };
        let range = options.first..options.end.unwrap_or(layers);
        if range.start > range.end || range.end > layers {
            return Err(Error::InvalidOption {
                what: "range of layers",
                value: format!("{}..{}", range.start, range.end),
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
        let (keep, table) = (options.keep.iter().copied().collect(), costs.table(options.window)?);
        Ok(Self { config, budget, range, keep, form: options.form, uniform, table })
    }

    /// The model's shape.
    pub fn config(&self) -> &'a ModelConfig {
        self.config
    }

    /// How many layers the model has.
    pub fn layers(&self) -> usize {
        self.config.num_hidden_layers
    }

    /// The range of layers the strategy looks at.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Whether this layer may change: in range and not kept.
    pub fn may_be_target(&self, layer: usize) -> bool {
        self.range.contains(&layer) && !self.keep.contains(&layer)
    }

    /// Whether the options ask for this layer to keep its own MLP.
    pub fn keeps(&self, layer: usize) -> bool {
        self.keep.contains(&layer)
    }

    /// What the options put in place of an MLP, by name.
    pub fn form(&self) -> Form {
        self.form
    }

    /// How many MLP parameters the budget asks to remove; `None` where it names a number of layers or none.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a fraction that is none.
    pub fn parameters_to_remove(&self) -> Result<Option<f64>> {
        self.budget.parameters(self.config)
    }

    /// How many layers the budget asks to change, where all get the same treatment; `None`: as many as the
    /// pattern gives.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a budget or a form that does not say, [`Error::NothingSaved`].
    pub fn targets(&self) -> Result<Option<usize>> {
        // The layers are alike, so any reference will do.
        let stored = self.treatment(0)?.stored_parameters(self.config);
        self.budget.targets(self.config, stored)
    }

    /// What takes the place of a layer's MLP where all layers get the same: `reference`'s MLP with the
    /// options' repair, or, where nothing is shared, what needs no reference.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for the form `pruned`, whose size the strategy has to choose.
    pub fn treatment(&self, reference: usize) -> Result<Treatment> {
        match self.uniform {
            Uniform::Share(repair) => Ok(Treatment::Share { reference, repair }),
            Uniform::Alone(treatment) => Ok(treatment),
            Uniform::Sized => Err(Error::InvalidOption {
                what: "form",
                value: self.form.to_string(),
                expected: "one that the strategy can give to every layer alike; `even` decides how many \
                           neurons each layer keeps"
                    .into(),
            }),
        }
    }

    /// What takes the place of a layer's MLP where nothing is shared; `None` where layers use each other's
    /// MLPs.
    ///
    /// # Errors
    /// As [`Problem::treatment`].
    pub fn treatment_alone(&self) -> Result<Option<Treatment>> {
        match self.uniform {
            Uniform::Share(_) => Ok(None),
            Uniform::Alone(_) | Uniform::Sized => self.treatment(0).map(Some),
        }
    }

    /// Whether changed layers use other layers' MLPs.
    pub fn shares(&self) -> bool {
        matches!(self.uniform, Uniform::Share(_))
    }

    /// The measured costs.
    pub fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn require_targets(&self, strategy: &str) -> Result<usize> {
        self.targets()?.ok_or_else(|| Error::MissingBudget { strategy: strategy.into() })
    }

    pub(crate) fn unreachable(&self, strategy: &str, possible: usize, asked: usize, advice: &str) -> Error {
        Error::BudgetUnreachable {
            strategy: strategy.into(),
            possible,
            asked,
            layers: self.layers(),
            advice: advice.into(),
        }
    }
}

/// One decision of a strategy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The layer that changes.
    pub layer: usize,
    /// What it has in place of its MLP.
    pub treatment: Treatment,
    /// Why, in plain words with the numbers.
    pub reason: String,
}

/// A way of choosing which layers change, and how. Pure: same problem, same answer.
pub trait Strategy {
    /// Its name, as configurations spell it.
    fn name(&self) -> &str;

    /// Returns the decisions, in any order.
    ///
    /// # Errors
    /// Where the problem lacks what the strategy needs, or the budget is out of its reach.
    fn choose(&self, problem: &Problem<'_>) -> Result<Vec<Choice>>;
}
