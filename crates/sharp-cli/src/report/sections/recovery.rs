//! Section "Recovery": the course of the warm-up (SLW) and of the fine-tuning (SFT).

use crate::report::blocks::{Block, table};
use crate::report::charts::{self, Curve};
use crate::report::collect::Run;
use crate::report::metrics::{HELD_OUT_ERROR, HELD_OUT_LOSS, HELD_OUT_PERPLEXITY, LOSS, STEP, series};
use crate::report::text::{count, perplexity};

pub(in crate::report) fn recovery(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Recovery".into()));
    blocks.push(Block::Subheading("Single-layer warm-up (SLW)".into()));
    warmup(run, blocks);
    blocks.push(Block::Subheading("Fine-tuning (SFT)".into()));
    finetune(run, blocks);
}

fn warmup(run: &Run, blocks: &mut Vec<Block>) {
    let held_out = series(&run.warmup, Some("layer"), STEP, HELD_OUT_ERROR);
    let (errors, what) = if held_out.is_empty() {
        (series(&run.warmup, Some("layer"), STEP, LOSS), "training loss")
    } else {
        (held_out, "error on held-out text")
    };
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
    let curves = |y: &[&str]| -> Vec<Curve> {
        [("after warm-up", &run.finetune), ("without warm-up", &run.finetune_cold)]
            .into_iter()
            .filter_map(|(name, records)| {
                let points = series(records, None, STEP, y).remove(&0)?;
                Some(Curve { name: name.into(), points })
            })
            .collect()
    };
    let mut held_out = curves(HELD_OUT_PERPLEXITY);
    if held_out.is_empty() {
        held_out = curves(HELD_OUT_LOSS);
        for point in held_out.iter_mut().flat_map(|c| &mut c.points) {
            point.1 = point.1.exp();
        }
    }
    let loss = curves(LOSS);
    for (what, curves, log) in
        [("training loss", &loss, false), ("perplexity on held-out text", &held_out, true)]
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
    if loss.is_empty() && held_out.is_empty() {
        blocks
            .push(Block::Missing("The fine-tuning's measurements hold neither loss nor perplexity.".into()));
    }
}
