//! Section "How alike the layers are": the measurements that the plan was chosen from.

use crate::report::blocks::Block;
use crate::report::collect::Run;
use crate::report::text::count;

pub(in crate::report) fn similarity(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("How alike the layers are".into()));
    let Some(report) = &run.similarity else {
        blocks.push(Block::Missing("The layers were not compared.".into()));
        return;
    };
    let marked: Vec<(usize, usize)> = run
        .plan
        .iter()
        .flat_map(|p| &p.changes)
        .filter_map(|c| Some((c.layer, c.treatment.reference()?)))
        .collect();
    for metric in report.telling_metrics() {
        blocks.push(Block::Subheading(metric.title().into()));
        blocks.push(Block::Picture(sharp_similarity::heat_map(report, metric, &marked)));
        blocks.push(Block::Note(metric.explanation().into()));
    }
    blocks.push(Block::Note(format!(
        "Measured on {} tokens; frames mark the pairs of the plan. All measures: 02-analyze/similarity.html.",
        count(report.tokens)
    )));
}
