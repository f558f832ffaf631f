//! Section "Quality": perplexity of every row, by text and against size.

use super::accuracy::accuracy;
use super::divergence::divergence;
use crate::output::bytes;
use crate::report::blocks::{Block, strings};
use crate::report::charts::{self, Mark};
use crate::report::collect::Run;
use crate::report::rows::{Row, find, texts};
use crate::report::text::{count, perplexity, row_name};

pub(in crate::report) fn quality(run: &Run, rows: &[Row], blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Quality".into()));
    if rows.is_empty() {
        blocks.push(Block::Missing("No row was evaluated.".into()));
        return;
    }
    let texts = texts(rows);
    let mut head = strings(&["row", "MLP parameters", "bytes"]);
    head.extend(texts.iter().map(|t| format!("perplexity, {t}")));
    let lines = rows
        .iter()
        .map(|row| {
            let mut line =
                vec![row.title.clone(), count(row.measured.mlp_parameters), bytes(row.measured.bytes)];
            line.extend(texts.iter().map(|t| row.perplexity(t).map_or("-".into(), perplexity)));
            line
        })
        .collect();
    blocks.push(Block::Table { head, rows: lines, wide: None });
    let mut note = String::new();
    let settings = run.results.as_ref().map(|results| &results.settings);
    if let Some((window, stride)) = settings.and_then(|settings| settings.window.zip(settings.stride)) {
        note = format!("Perplexity in windows of {window} tokens, stride {stride}. ");
    }
    note.push_str("Lower is better. Bytes are the weights as stored for the row.");
    blocks.push(Block::Note(note));
    for text in &texts {
        blocks.extend(quality_by_size(run, rows, text));
    }
    blocks.push(Block::Note(
        "Rings: the original. Dashed: the same model before and after quantisation. Lower left is better."
            .into(),
    ));
    for text in &texts {
        blocks.extend(verdict(rows, text));
    }
    divergence(rows, blocks);
    accuracy(rows, blocks);
    let expected = ["original", "direct", "slw", "sft", "slw_sft"];
    let absent: Vec<String> =
        expected.iter().filter(|name| find(rows, name).is_none()).map(|name| row_name(name)).collect();
    if !absent.is_empty() {
        blocks.push(Block::Missing(format!("Not evaluated in this run: {}.", absent.join(", "))));
    }
}

/// What the name of a quantised row ends in.
fn precision(name: &str) -> Option<&'static str> {
    ["_q4", "_q8"].into_iter().find(|ending| name.ends_with(ending))
}

/// Every row by its size and its perplexity, the quantised ones joined to what they were made of.
fn quality_by_size(run: &Run, rows: &[Row], text: &str) -> Option<Block> {
    // Rows that are not quantised were evaluated in the type they happened to lie in; what counts is what
    // they take in 16 bits.
    let rest = run.estimate().map(|e| e.original_parameters.saturating_sub(e.original_mlp_parameters) as f64);
    let bytes = |row: &Row| match (precision(row.name), rest) {
        (None, Some(rest)) => 2.0 * (rest + row.measured.mlp_parameters as f64),
        _ => row.measured.bytes as f64,
    };
    let at = |row: &Row| Some((bytes(row) / 1e6, row.perplexity(text)?));
    let marks: Vec<Mark> = rows
        .iter()
        .filter_map(|row| {
            Some(Mark { name: row.title.clone(), at: at(row)?, ring: row.name.starts_with("original") })
        })
        .collect();
    let lines: Vec<Vec<(f64, f64)>> = rows
        .iter()
        .filter_map(|row| {
            let of = row.name.strip_suffix(precision(row.name)?)?;
            Some(vec![at(row)?, at(find(rows, of)?)?])
        })
        .collect();
    let name = format!("perplexity on {text}");
    let title = format!("{name} against size");
    let picture = charts::marks(
        &title,
        ("megabytes, 16-bit weights where not quantised", false),
        (&name, true),
        &marks,
        &lines,
    );
    (!picture.is_empty()).then_some(Block::Picture(picture))
}

/// Whether the full method beats its parts on a text, in figures either way.
fn verdict(rows: &[Row], text: &str) -> Option<Block> {
    let full = find(rows, "slw_sft")?.perplexity(text)?;
    let others: Vec<(String, f64)> = ["direct", "slw", "sft"]
        .iter()
        .filter_map(|name| {
            let row = find(rows, name)?;
            Some((row.title.clone(), row.perplexity(text)?))
        })
        .collect();
    let better: Vec<&(String, f64)> = others.iter().filter(|(_, v)| *v <= full).collect();
    let list = |rows: Vec<&(String, f64)>| {
        rows.iter().map(|(n, v)| format!("{n} ({})", perplexity(*v))).collect::<Vec<_>>().join(", ")
    };
    if others.is_empty() {
        return None;
    }
    Some(Block::Text(if better.is_empty() {
        format!(
            "On {text} SLW + SFT ({}) is better than {}.",
            perplexity(full),
            list(others.iter().collect())
        )
    } else {
        format!("On {text} SLW + SFT ({}) does not beat {}.", perplexity(full), list(better))
    }))
}
