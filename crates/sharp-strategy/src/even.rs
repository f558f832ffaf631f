//! The strategy that takes a little everywhere instead of much in a few places: `even`.

use sharp_model::{ModelConfig, RecoveryForm, SharingPlan, Target};

use crate::options::{Budget, Options};
use crate::problem::{Choice, Problem, Strategy};
use crate::{Error, LayerCosts, Result};

/// Neurons are kept in multiples of this, the block of the packed formats, where the MLP's width is one.
const BLOCK: usize = 32;

/// Every layer of the range that need not keep its MLP gives up the same part of it; nothing is shared. A budget decides how large
/// that part is, not how many layers there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Even;

impl Strategy for Even {
    fn name(&self) -> &str {
        "even"
    }

    fn choose(&self, problem: &Problem) -> Result<Vec<Choice>> {
        if problem.shares() {
            return Err(Error::InvalidOption {
                what: "strategy",
                value: self.name().into(),
                expected:
                    "one that shares; with `even` no layer uses another's MLP (forms pruned, low_rank_only)"
                        .into(),
            });
        }
        Ok(problem
            .range()
            .filter(|&layer| problem.may_be_target(layer))
            .map(|target| Choice { target, reference: None, reason: String::new() })
            .collect())
    }
}

/// The plan of [`Even`] with the form of the options.
pub(crate) fn plan(
    config: &ModelConfig,
    costs: &LayerCosts,
    budget: Budget,
    options: &Options,
) -> Result<SharingPlan> {
    let problem = Problem::new(costs, options, None)?;
    let layers: Vec<usize> = Even.choose(&problem)?.into_iter().map(|c| c.target).collect();
    let form = options.effective_form();
    let (unit, most) = match form {
        // What one neuron stores, and how many there are.
        RecoveryForm::Pruned => (3 * config.hidden_size, config.intermediate_size),
        // What one rank of all three projections stores.
        RecoveryForm::LowRankOnly => (
            3 * (config.hidden_size + config.intermediate_size),
            config.hidden_size.min(config.intermediate_size),
        ),
        _ => {
            return Err(Error::InvalidOption {
                what: "form",
                value: form.name().into(),
                expected: "pruned or low_rank_only with the strategy `even`".into(),
            });
        }
    };
    let remove =
        budget.parameters(config)?.ok_or_else(|| Error::MissingBudget { strategy: "even".into() })?;
    let mlp = config.mlp_parameters_per_layer() as f64;
    let available = layers.len() as f64 * mlp - remove;
    let step = if form == RecoveryForm::Pruned && most.is_multiple_of(BLOCK) { BLOCK } else { 1 };
    let steps = (available / (unit * step) as f64 + 1e-9).floor();
    if layers.is_empty() || steps < layers.len() as f64 {
        return Err(Error::BudgetUnreachable {
            strategy: "even".into(),
            possible: layers.len(),
            asked: (remove / mlp).ceil() as usize,
            layers: config.num_hidden_layers,
            advice: "keep fewer layers or lower the budget".into(),
        });
    }
    let steps = steps as usize;
    // What does not come out even goes to the layers that are missed most, or, where that was not measured, to the first.
    let mut order = layers.clone();
    if layers.iter().all(|&l| problem.table().importance(l).is_some()) {
        let of = |l: usize| problem.table().importance(l).unwrap_or_default();
        order.sort_by(|&a, &b| of(b).total_cmp(&of(a)).then(a.cmp(&b)));
    }
    order.truncate(steps % layers.len());
    let targets = layers
        .iter()
        .map(|&layer| {
            let kept = ((steps / layers.len() + usize::from(order.contains(&layer))) * step).min(most);
            let reason = match form {
                RecoveryForm::Pruned => {
                    format!("keeps {kept} of {most} neurons; every layer that is not kept whole gives up the same part")
                }
                _ => format!("rank {kept}; every layer that is not kept whole gives up the same part"),
            };
            match form {
                RecoveryForm::Pruned => Target::pruned(layer, kept),
                _ => Target::low_rank_only(layer, sharp_model::Ranks::uniform(kept)),
            }
            .because(reason)
        })
        .collect();
    let plan = SharingPlan::new(Even.name(), targets);
    plan.validate(config)?;
    Ok(plan)
}
