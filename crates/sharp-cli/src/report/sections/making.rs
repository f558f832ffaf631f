//! Section "How this was made": stages, time, memory, machine and configuration.

use sharp_schema::manifest::Status;

use crate::output::bytes;
use crate::report::blocks::{Block, table};
use crate::report::collect::{Run, Stage};
use crate::report::text::seconds;

pub(in crate::report) fn making(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("How this was made".into()));
    if run.stages.is_empty() {
        blocks.push(Block::Missing("No stage has left a manifest.".into()));
    } else {
        let manifests = || run.stages.iter().map(|stage| &stage.manifest);
        let memory = |peak: Option<u64>| peak.map_or("-".into(), bytes);
        let mut rows: Vec<Vec<String>> = run
            .stages
            .iter()
            .map(|Stage { name, manifest }| {
                let name = match manifest.status {
                    Status::Done => (*name).to_owned(),
                    Status::Running => format!("{name} (not finished)"),
                };
                vec![name, seconds(manifest.wall_s), memory(manifest.peak_memory_bytes)]
            })
            .collect();
        let total: f64 = manifests().map(|manifest| manifest.wall_s).sum();
        let peak = manifests().filter_map(|manifest| manifest.peak_memory_bytes).max();
        rows.push(vec!["all".into(), seconds(total), memory(peak)]);
        blocks.push(table(&["stage", "time", "peak memory"], rows));
        let mut hosts: Vec<String> = Vec::new();
        for host in manifests().map(|manifest| manifest.host.to_string()) {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let seed = manifests().next().map(|manifest| format!(" Seed {}.", manifest.seed)).unwrap_or_default();
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
