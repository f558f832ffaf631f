//! A strategy of your own: `cargo run --release -p sharp-strategy --example own_strategy`.
//!
//! This one lets no two neighbours give up their MLPs, so that every shared MLP has untouched layers around
//! it. A strategy chooses layers, says what each has instead, and why; budget, ranks, order and checks are
//! `make_plan`'s.

use std::io::Write;

use sharp_model::ModelConfig;
use sharp_strategy::{
    Budget, Choice, Cost, Error, LayerCosts, Options, Problem, Result, Strategy, make_plan,
};

/// The cheapest targets of which no two are neighbours, each with the layer before it as reference.
struct Apart;

impl Strategy for Apart {
    fn name(&self) -> &str {
        "apart"
    }

    fn choose(&self, problem: &Problem<'_>) -> Result<Vec<Choice>> {
        let wanted =
            problem.targets()?.ok_or_else(|| Error::MissingBudget { strategy: self.name().into() })?;
        let mut offers: Vec<(usize, f64)> = problem
            .range()
            .filter(|&layer| layer > 0 && problem.may_be_target(layer))
            .filter_map(|layer| Some((layer, problem.table().cost(layer, layer - 1)?)))
            .collect();
        offers.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut chosen: Vec<Choice> = Vec::new();
        for (layer, _) in offers {
            if chosen.len() < wanted && chosen.iter().all(|c| c.layer.abs_diff(layer) > 1) {
                let reason = problem.table().describe(layer, layer - 1);
                chosen.push(Choice { layer, treatment: problem.treatment(layer - 1)?, reason });
            }
        }
        Ok(chosen)
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let config = ModelConfig::llama(64, 176, 6, 4, 2, 256)?;
    let costs = LayerCosts {
        num_layers: 6,
        metric: "delta_nll".into(),
        costs: (1..6).map(|t| Cost { target: t, reference: t - 1, cost: 1.0 / t as f64 }).collect(),
        importance: vec![],
    };
    let plan = make_plan(&config, &Apart, &costs, Budget::Targets(2), &Options::default())?;
    let mut out = std::io::stdout();
    for change in &plan.changes {
        writeln!(out, "layer {}: {}: {}", change.layer, change.treatment.describe(), change.reason)?;
    }
    let layers: Vec<usize> = plan.changes.iter().map(|t| t.layer).collect();
    // Layer 4 is cheaper than 3, and next to 5.
    if layers != [3, 5] {
        return Err(format!("expected layers 3 and 5, not {layers:?}").into());
    }
    Ok(())
}
