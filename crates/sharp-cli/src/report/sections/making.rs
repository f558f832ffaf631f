//! Section "How this was made": stages, time, memory, machine and configuration.

use crate::output::bytes;
use crate::report::blocks::{Block, table};
use crate::report::collect::Run;
use crate::report::text::seconds;

pub(in crate::report) fn making(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("How this was made".into()));
    if run.stages.is_empty() {
        blocks.push(Block::Missing("No stage has left a manifest.".into()));
    } else {
        let total: f64 = run.stages.iter().filter_map(|s| s.wall_s).sum();
        let mut rows: Vec<Vec<String>> = run
            .stages
            .iter()
            .map(|s| {
                let name = if s.done { s.name.to_owned() } else { format!("{} (not finished)", s.name) };
                vec![name, s.wall_s.map_or("-".into(), seconds), s.peak_memory.map_or("-".into(), bytes)]
            })
            .collect();
        rows.push(vec![
            "all".into(),
            seconds(total),
            run.stages.iter().filter_map(|s| s.peak_memory).max().map_or("-".into(), bytes),
        ]);
        blocks.push(table(&["stage", "time", "peak memory"], rows));
        let mut hosts: Vec<&str> = Vec::new();
        for host in run.stages.iter().filter_map(|s| s.host.as_deref()) {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let seed = run.stages.iter().find_map(|s| s.seed).map(|s| format!(" Seed {s}.")).unwrap_or_default();
        if !hosts.is_empty() {
            blocks.push(Block::Text(format!("On {}.{seed}", hosts.join("; "))));
        }
    }
    if let Some(config) = &run.config {
        blocks.push(Block::Folded { summary: "Configuration".into(), text: config.clone() });
    }
    blocks.push(Block::Note(
        "Method: Wang et al., SHARP: Accelerating Language Model Inference by SHaring Adjacent layers with Recovery \
         Parameters, arXiv 2502.07832."
            .into(),
    ));
}
