//! Section "Beside other runs": the rows of other runs, measured on the same texts, next to this run's.

use crate::report::blocks::Block;
use crate::report::collect::Run;
use crate::report::rows::{Row, find, rows, texts};
use crate::report::text::{count, percent, perplexity, row_name};

/// The rows of another run that are shown: its method after each kind of training.
const SHOWN: [&str; 2] = ["slw", "slw_sft"];

/// Mean losses of one model on one text differ by less between machines, in nats.
const SAME: f64 = 1e-3;

pub(in crate::report) fn comparison(run: &Run, own: &[Row], blocks: &mut Vec<Block>) {
    if run.compared.is_empty() {
        return;
    }
    blocks.push(Block::Heading("Beside other runs".into()));
    let Some(original) = find(own, "original") else {
        blocks.push(Block::Missing(
            "This run did not evaluate the original, so nothing can be set beside it.".into(),
        ));
        return;
    };
    let texts = texts(own);
    let mut lines = line("this run", own, original, &texts, None);
    for (name, other) in &run.compared {
        let theirs = rows(other);
        match incomparable(run, own, other, &theirs, &texts) {
            Some(why) => blocks.push(Block::Missing(format!("{name}: {why}."))),
            None => lines.extend(line(name, &theirs, original, &texts, find(own, "slw_sft"))),
        }
    }
    let mut head = vec!["run".to_owned(), "row".into(), "MLP parameters".into(), "saved".into()];
    for text in &texts {
        head.push(format!("perplexity, {text}"));
        head.push(format!("excess loss, {text}"));
        head.push(format!("this run's over it, {text}"));
    }
    blocks.push(Block::Table { head, rows: lines, wide: None });
    blocks.push(Block::Note(
        "Excess loss: nats a token above the original. This run's over it: the excess of SLW + SFT here as a part of the row's; less \
         than 100 % is better here."
            .into(),
    ));
}

/// A run's rows as lines of the table.
fn line(run: &str, rows: &[Row], original: &Row, texts: &[&str], ours: Option<&Row>) -> Vec<Vec<String>> {
    let whole = original.measured.mlp_parameters.max(1) as f64;
    let loss = |row: &Row, text: &str| row.measured.mean_loss.get(text).copied();
    let excess = |row: &Row, text: &str| Some(loss(row, text)? - loss(original, text)?);
    SHOWN
        .iter()
        .filter_map(|name| find(rows, name))
        .map(|row| {
            let stored = row.measured.mlp_parameters;
            let mut cells =
                vec![run.to_owned(), row_name(row.name), count(stored), percent(1.0 - stored as f64 / whole)];
            for text in texts {
                let theirs = excess(row, text);
                let share =
                    ours.and_then(|ours| excess(ours, text)).zip(theirs).filter(|(_, theirs)| *theirs > 0.0);
                cells.push(row.perplexity(text).map_or("-".into(), perplexity));
                cells.push(theirs.map_or("-".into(), |v| format!("{v:.3}")));
                cells.push(share.map_or("-".into(), |(ours, theirs)| percent(ours / theirs)));
            }
            cells
        })
        .collect()
}

/// Why another run's rows cannot stand in one table with these.
fn incomparable(run: &Run, own: &[Row], other: &Run, theirs: &[Row], texts: &[&str]) -> Option<String> {
    if let Some(missing) = other.missing.first() {
        return Some(missing.clone());
    }
    if !SHOWN.iter().any(|name| find(theirs, name).is_some()) {
        return Some(format!("none of the rows {} was evaluated there", SHOWN.join(", ")));
    }
    let settings = |run: &Run| {
        let settings = &run.results.as_ref()?.settings;
        Some((settings.window?, settings.stride?))
    };
    if settings(run) != settings(other) {
        return Some("measured in other windows".into());
    }
    let Some((ours, original)) = find(own, "original").zip(find(theirs, "original")) else {
        return Some("the original was not measured there".into());
    };
    let alike = |text: &&&str| {
        let tokens = |row: &Row| row.measured.tokens.get(**text).copied();
        let loss = |row: &Row| row.measured.mean_loss.get(**text).copied();
        let apart = loss(ours).zip(loss(original)).map(|(a, b)| (a - b).abs());
        tokens(ours) == tokens(original) && apart.is_some_and(|apart| apart < SAME)
    };
    let off = texts.iter().find(|text| !alike(text))?;
    Some(format!("the original is another there, or {off} is another text or another number of tokens"))
}
