//! Section "Sample text": what the models write after the same prompts.

use crate::report::blocks::Block;
use crate::report::collect::Run;
use crate::report::text::row_name;

pub(in crate::report) fn samples(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Sample text".into()));
    if run.samples.is_empty() {
        blocks.push(Block::Missing("No text was generated for this report.".into()));
        return;
    }
    let mut prompts: Vec<&str> = Vec::new();
    for sample in &run.samples {
        if !prompts.contains(&sample.prompt.as_str()) {
            prompts.push(&sample.prompt);
        }
    }
    for prompt in prompts {
        blocks.push(Block::Subheading(format!("\u{201c}{}\u{201d}", prompt.trim())));
        for sample in run.samples.iter().filter(|s| s.prompt == prompt) {
            let speed = sample
                .tokens_per_second
                .filter(|v| v.is_finite())
                .map(|v| format!(" ({v:.0} tokens/s)"))
                .unwrap_or_default();
            blocks.push(Block::Note(format!("{}{speed}:", row_name(&sample.model))));
            blocks.push(Block::Quote(sample.text.clone()));
        }
    }
    blocks.push(Block::Note("Greedy, not chosen among several.".into()));
}
