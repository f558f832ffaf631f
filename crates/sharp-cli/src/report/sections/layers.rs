//! Section on the plan: how each layer is changed.

use sharp_model::Treatment;

use crate::report::blocks::{Block, strings};
use crate::report::charts;
use crate::report::collect::Run;

/// Writes the pictures and the table of the plan.
pub(in crate::report) fn layers(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("How each layer is changed".into()));
    let Some(plan) = &run.plan else {
        blocks.push(Block::Missing("There is no plan.".into()));
        return;
    };
    if let Some(model) = &run.model {
        if plan.changes.iter().any(|c| matches!(c.treatment, Treatment::Prune { .. })) {
            let picture = charts::neurons(plan, model.num_hidden_layers, model.intermediate_size);
            blocks.push(Block::Picture(picture));
            blocks.push(Block::Note(
                "Bars: neurons of its own MLP that a layer keeps. Paler: all of them.".into(),
            ));
        }
        if !run.only_prunes() {
            let picture = charts::plan(plan, model.num_hidden_layers, model.intermediate_size);
            blocks.push(Block::Picture(picture));
            blocks.push(Block::Note(
                "Upper line: layers with an MLP of their own, filled as far as they keep its neurons. Lower line: \
                 layers joined to the layer whose MLP they use, filled as far as they keep neurons of their own; dashed, layers with low-rank matrices or no MLP."
                    .into(),
            ));
        }
    }
    let changes = plan
        .changes
        .iter()
        .map(|c| vec![c.layer.to_string(), c.treatment.describe(), c.reason.clone()])
        .collect();
    blocks.push(Block::Text(format!("Chosen by the strategy {}.", plan.strategy)));
    blocks.push(Block::Table {
        head: strings(&["layer", "in place of its MLP", "why"]),
        rows: changes,
        wide: Some(2),
    });
}
