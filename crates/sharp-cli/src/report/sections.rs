//! Sections of the report: one file each, in the order of the page.

mod accuracy;
mod comparison;
mod divergence;
mod layers;
mod making;
mod quality;
mod recovery;
mod samples;
mod similarity;
mod size;
mod speed;
mod summary;

use super::blocks::{Block, Document};
use super::collect::Run;
use super::rows::rows;

/// Writes all sections of the report of a run.
pub(super) fn document(run: &Run) -> Document {
    let mut blocks = Vec::new();
    let rows = rows(run);
    if !run.missing.is_empty() {
        blocks.push(Block::Missing(format!(
            "Not all stages have left their results: {}.",
            run.missing.join("; ")
        )));
    }
    summary::summary(run, &rows, &mut blocks);
    layers::layers(run, &mut blocks);
    size::size(run, &mut blocks);
    quality::quality(run, &rows, &mut blocks);
    comparison::comparison(run, &rows, &mut blocks);
    recovery::recovery(run, &mut blocks);
    speed::speed(run, &mut blocks);
    samples::samples(run, &mut blocks);
    similarity::similarity(run, &mut blocks);
    making::making(run, &mut blocks);
    Document { title: format!("SHARP report: {}", run.name), blocks }
}
