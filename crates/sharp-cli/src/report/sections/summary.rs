//! Section "summary": the change, the saving and the perplexity in a few sentences.

use sharp_model::{ModelConfig, Plan, Repair, Treatment};

use crate::report::blocks::Block;
use crate::report::collect::Run;
use crate::report::rows::{Row, find, texts};
use crate::report::text::{count, percent, perplexity};

pub(in crate::report) fn summary(run: &Run, rows: &[Row], blocks: &mut Vec<Block>) {
    let mut lines = Vec::new();
    if let (Some(model), Some(plan)) = (&run.model, &run.plan) {
        lines.extend(what_changes(plan, model));
    }
    if let Some(e) = run.estimate() {
        lines.push(format!(
            "{} of the MLP parameters and {} of all parameters are saved.",
            percent(e.saved_fraction),
            percent(1.0 - e.stored_parameters as f64 / e.original_parameters.max(1) as f64)
        ));
    }
    if let (Some(first), Some(last)) = (find(rows, "original"), find(rows, "slw_sft"))
        && let Some(text) = texts(rows).first()
        && let (Some(before), Some(after)) = (first.perplexity(text), last.perplexity(text))
    {
        lines.push(format!(
            "Perplexity on {text}: {} before, {} after recovery.",
            perplexity(before),
            perplexity(after)
        ));
    }
    if !lines.is_empty() {
        blocks.push(Block::Text(lines.join(" ")));
    }
}

/// What the plan does, a sentence for each kind of layer.
fn what_changes(plan: &Plan, model: &ModelConfig) -> Vec<String> {
    let layers = model.num_hidden_layers;
    let (mut kept, mut beside) = (Vec::new(), Vec::new());
    let (mut sharing, mut dropped, mut low_rank) = (0, 0, 0);
    for change in &plan.changes {
        match change.treatment {
            Treatment::Share { repair: Repair::Neurons { neurons }, .. } => beside.push(neurons),
            Treatment::Share { .. } => sharing += 1,
            Treatment::LowRank { .. } => low_rank += 1,
            Treatment::Prune { neurons } => kept.push(neurons),
            Treatment::Drop => dropped += 1,
        }
    }
    let mut lines = Vec::new();
    let range = |of: &[usize]| {
        let (&least, &most) = (of.iter().min()?, of.iter().max()?);
        let (least, most) = (count(least as u64), count(most as u64));
        Some(if least == most { least } else { format!("{least} to {most}") })
    };
    if let Some(range) = range(&beside) {
        lines.push(format!(
            "{} of {layers} layers run with another layer's MLP and {range} neurons of their own.",
            beside.len()
        ));
    }
    if let Some(range) = range(&kept) {
        lines.push(format!(
            "{} of {layers} layers keep {range} of their {} neurons.",
            kept.len(),
            count(model.intermediate_size as u64)
        ));
    }
    for (n, what) in [
        (sharing, "run with another layer's MLP"),
        (dropped, "run without an MLP"),
        (low_rank, "run with a low-rank MLP"),
    ] {
        if n > 0 {
            lines.push(format!("{n} of {layers} layers {what}."));
        }
    }
    lines
}
