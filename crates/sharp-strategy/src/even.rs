//! The strategy that takes a little everywhere instead of much in a few places: `even`.

use sharp_model::{Ranks, Treatment};
use sharp_schema::{Form, StrategyName};

use crate::options::neuron_step;
use crate::problem::{Choice, Problem, Strategy};
use crate::{Error, Result};

/// Every layer of the range that need not keep its MLP gives up the same part of it; nothing is shared. A
/// budget decides how large that part is, not how many layers there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Even;

/// What a layer's size is counted in.
struct Unit {
    /// Parameters that one unit stores.
    parameters: usize,
    /// How many units a whole MLP has.
    most: usize,
    /// Units are taken in multiples of this.
    step: usize,
}

impl Even {
    fn unit(&self, problem: &Problem<'_>) -> Result<Unit> {
        let (d, f) = (problem.config().hidden_size, problem.config().intermediate_size);
        match problem.form() {
            // Neurons.
            Form::Pruned => Ok(Unit { parameters: 3 * d, most: f, step: neuron_step(problem.config()) }),
            // Ranks of all three projections.
            Form::LowRankOnly => Ok(Unit { parameters: 3 * (d + f), most: d.min(f), step: 1 }),
            Form::Drop => Err(Error::InvalidOption {
                what: "form",
                value: problem.form().to_string(),
                expected: "pruned or low_rank_only with the strategy `even`".into(),
            }),
            Form::None
            | Form::LowRank
            | Form::ScaledLowRank
            | Form::RowColumnScaledLowRank
            | Form::Neurons => Err(Error::InvalidOption {
                what: "strategy",
                value: self.name().into(),
                expected: "one that shares; with `even` no layer uses another's MLP (forms pruned, \
                           low_rank_only)"
                    .into(),
            }),
        }
    }
}

impl Strategy for Even {
    fn name(&self) -> &str {
        StrategyName::Even.name()
    }

    fn choose(&self, problem: &Problem<'_>) -> Result<Vec<Choice>> {
        let Unit { parameters, most, step } = self.unit(problem)?;
        let layers: Vec<usize> = problem.range().filter(|&l| problem.may_be_target(l)).collect();
        let remove = problem
            .parameters_to_remove()?
            .ok_or_else(|| Error::MissingBudget { strategy: self.name().into() })?;
        let mlp = problem.config().mlp_parameters_per_layer() as f64;
        let available = layers.len() as f64 * mlp - remove;
        let steps = (available / (parameters * step) as f64 + 1e-9).floor();
        if layers.is_empty() || steps < layers.len() as f64 {
            let asked = (remove / mlp).ceil() as usize;
            let advice = "keep fewer layers or lower the budget";
            return Err(problem.unreachable(self.name(), layers.len(), asked, advice));
        }
        let steps = steps as usize;
        let favoured = favoured(problem, &layers, steps % layers.len());
        let choice = |&layer: &usize| {
            let kept = ((steps / layers.len() + usize::from(favoured.contains(&layer))) * step).min(most);
            let rest = "every layer that is not kept whole gives up the same part";
            match problem.form() {
                Form::Pruned => Choice {
                    layer,
                    treatment: Treatment::Prune { neurons: kept },
                    reason: format!("keeps {kept} of {most} neurons; {rest}"),
                },
                _ => Choice {
                    layer,
                    treatment: Treatment::LowRank { ranks: Ranks::uniform(kept) },
                    reason: format!("rank {kept}; {rest}"),
                },
            }
        };
        Ok(layers.iter().map(choice).collect())
    }
}

/// The `count` layers that get one step more than the others: those that are missed most, or, where that was
/// not measured, the first.
fn favoured(problem: &Problem<'_>, layers: &[usize], count: usize) -> Vec<usize> {
    let importance: Option<Vec<(f64, usize)>> =
        layers.iter().map(|&l| Some((problem.table().importance(l)?, l))).collect();
    let Some(mut order) = importance else { return layers.iter().take(count).copied().collect() };
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    order.into_iter().take(count).map(|(_, layer)| layer).collect()
}
