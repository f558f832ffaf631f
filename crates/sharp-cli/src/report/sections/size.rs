//! Section "Size": parameters and bytes before and after.

use crate::output::bytes;
use crate::report::blocks::{Block, table};
use crate::report::collect::Run;
use crate::report::text::{count, percent};

pub(in crate::report) fn size(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Size".into()));
    match run.estimate() {
        Some(e) => {
            let saved = |before: u64, after: u64| percent(1.0 - after as f64 / before.max(1) as f64);
            let line = |what: &str, before: u64, after: u64, write: &dyn Fn(u64) -> String| {
                vec![what.to_owned(), write(before), write(after), saved(before, after)]
            };
            let rows = vec![
                line("MLP parameters", e.original_mlp_parameters, e.stored_mlp_parameters, &count),
                line("all parameters", e.original_parameters, e.stored_parameters, &count),
                line("bytes in 16 bits", e.original_bytes, e.stored_bytes, &bytes),
            ];
            blocks.push(table(&["", "original", "compressed", "saved"], rows));
            let own = count(e.recovery_parameters);
            blocks.push(Block::Note(if run.only_prunes() {
                format!("{own} of the compressed model's are the neurons kept in changed layers.")
            } else {
                format!("Recovery parameters are counted: {own} of the compressed model's.")
            }));
        }
        None => blocks.push(Block::Missing(
            "Without a plan and the model's configuration there is nothing to count.".into(),
        )),
    }
    if !run.sizes.is_empty() {
        let files = run.sizes.iter().map(|(name, n)| vec![name.clone(), bytes(*n)]).collect();
        blocks.push(table(&["weights on disk", "size"], files));
    }
}
