//! Section "Recovery": the course of the warm-up (SLW) and of the fine-tuning (SFT).

use sharp_schema::metrics::FinetuneLine;

use crate::report::blocks::{Block, table};
use crate::report::charts::{self, Curve};
use crate::report::collect::Run;
use crate::report::metrics::{finetune_course, warmup_errors};
use crate::report::text::{count, perplexity};

pub(in crate::report) fn recovery(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Recovery".into()));
    blocks.push(Block::Subheading("Single-layer warm-up (SLW)".into()));
    warmup(run, blocks);
    blocks.push(Block::Subheading("Fine-tuning (SFT)".into()));
    finetune(run, blocks);
}

fn warmup(run: &Run, blocks: &mut Vec<Block>) {
    let (errors, what) = (warmup_errors(&run.warmup), "error on validation text");
    if errors.is_empty() {
        blocks.push(Block::Missing("No measurements of a warm-up.".into()));
        return;
    }
    let ends: Vec<(String, f64, f64)> = errors
        .iter()
        .filter_map(|(layer, points)| Some((format!("layer {layer}"), points.first()?.1, points.last()?.1)))
        .collect();
    blocks.push(Block::Picture(charts::from_to("warm-up, first and last measurement", what, &ends)));
    let curves: Vec<Curve> = errors
        .iter()
        .map(|(layer, points)| Curve { name: format!("layer {layer}"), points: points.clone() })
        .collect();
    if curves.iter().any(|c| c.points.len() > 2) {
        blocks.push(Block::Picture(charts::curves("warm-up", "step", what, &curves, false)));
    }
    let rows = errors
        .iter()
        .filter_map(|(layer, points)| {
            let (first, last) = (points.first()?, points.last()?);
            let number = sharp_similarity::number;
            Some(vec![layer.to_string(), number(first.1), number(last.1), count(last.0.max(0.0) as u64)])
        })
        .collect();
    blocks.push(table(&["layer", &format!("{what}: first"), "last", "steps"], rows));
    blocks.push(Block::Note(
        "Each changed MLP alone, against the original MLP's output on the same input. Ring: first measurement, dot: last. \
         Where the error is relative, 1 is as bad as no MLP."
            .into(),
    ));
}

fn finetune(run: &Run, blocks: &mut Vec<Block>) {
    if run.finetune.is_empty() && run.finetune_cold.is_empty() {
        blocks.push(Block::Missing("No measurements of a fine-tuning.".into()));
        return;
    }
    let curves = |figure: fn(&FinetuneLine) -> Option<f64>| -> Vec<Curve> {
        [("after warm-up", &run.finetune), ("without warm-up", &run.finetune_cold)]
            .into_iter()
            .map(|(name, lines)| Curve { name: name.into(), points: finetune_course(lines, figure) })
            .filter(|curve| !curve.points.is_empty())
            .collect()
    };
    let validation = curves(|line| line.validation().map(|validation| validation.perplexity));
    let loss = curves(FinetuneLine::train_loss);
    for (what, curves, log) in
        [("training loss", &loss, false), ("perplexity on validation text", &validation, true)]
    {
        if curves.is_empty() {
            continue;
        }
        blocks.push(Block::Picture(charts::curves(what, "step", what, curves, log)));
        let rows = curves
            .iter()
            .filter_map(|c| {
                let (first, last) = (c.points.first()?, c.points.last()?);
                let best = c.points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
                let write = if log { perplexity } else { |v: f64| format!("{v:.3}") };
                let steps = count(last.0.max(0.0) as u64);
                Some(vec![c.name.clone(), write(first.1), write(best), write(last.1), steps])
            })
            .collect();
        blocks.push(table(&[what, "first", "best", "last", "steps"], rows));
    }
    if loss.is_empty() && validation.is_empty() {
        blocks
            .push(Block::Missing("The fine-tuning's measurements hold neither loss nor perplexity.".into()));
    }
}
