//! Section "Quality": perplexity of every row, by text and against size.

use std::cmp::Ordering;

use sharp_schema::evaluation::LossDifference;

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
    let compared: Vec<&str> =
        texts.iter().copied().filter(|t| rows.iter().any(|r| over_first(rows, r, t).is_some())).collect();
    head.extend(compared.iter().map(|t| format!("loss over the original's, {t}")));
    let lines = rows
        .iter()
        .map(|row| {
            let mut line =
                vec![row.title.clone(), count(row.measured.mlp_parameters), bytes(row.measured.bytes)];
            line.extend(texts.iter().map(|t| row.perplexity(t).map_or("-".into(), perplexity)));
            line.extend(
                compared.iter().map(|t| over_first(rows, row, t).map_or("-".into(), |d| d.to_string())),
            );
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
    blocks.extend(intervals(run));
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

/// What a row's loss on a text is over the first row's.
fn over_first(rows: &[Row], row: &Row, text: &str) -> Option<LossDifference> {
    row.over(rows.first()?.name, text)
}

/// What the intervals are of.
fn intervals(run: &Run) -> Option<Block> {
    let units = &run.results.as_ref()?.settings.units;
    let of: Vec<String> = units.iter().map(|(text, units)| format!("{units} of {text}")).collect();
    (!of.is_empty()).then(|| {
        Block::Note(format!(
            "Losses in nats a token. In brackets: 95 % intervals of the difference, by a paired bootstrap over {}. They do not say what \
             another seed of the training would give.",
            of.join(" and ")
        ))
    })
}

/// Whether the full method beats its parts on a text: where the interval of their difference leaves out 0.
fn verdict(rows: &[Row], text: &str) -> Vec<Block> {
    let Some((full, value)) = find(rows, "slw_sft").and_then(|row| Some((row, row.perplexity(text)?))) else {
        return Vec::new();
    };
    let others: Vec<&Row> = ["direct", "slw", "sft"].iter().filter_map(|name| find(rows, name)).collect();
    let list = |found: Option<Option<Ordering>>| -> Vec<String> {
        others
            .iter()
            .filter(|row| full.over(row.name, text).map(LossDifference::sign) == found)
            .filter_map(|row| Some(format!("{} ({})", row.title, perplexity(row.perplexity(text)?))))
            .collect()
    };
    let said = [
        (Some(Some(Ordering::Less)), "is better than"),
        (Some(None), "cannot be told from"),
        (Some(Some(Ordering::Greater)), "is worse than"),
        (None, "was measured without intervals beside"),
    ];
    let said: Vec<String> = said
        .into_iter()
        .map(|(found, words)| (list(found), words))
        .filter(|(rows, _)| !rows.is_empty())
        .map(|(rows, words)| format!("{words} {}", rows.join(", ")))
        .collect();
    if said.is_empty() {
        return Vec::new();
    }
    vec![Block::Text(format!("On {text} SLW + SFT ({}) {}.", perplexity(value), said.join("; it ")))]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sharp_schema::evaluation::EvalRow;

    use super::*;

    fn row(name: &str, perplexity: f64, over: &[(&str, LossDifference)]) -> EvalRow {
        let over: BTreeMap<String, LossDifference> =
            over.iter().map(|(name, difference)| ((*name).to_owned(), *difference)).collect();
        EvalRow {
            name: name.into(),
            perplexity: BTreeMap::from([("prose".into(), perplexity)]),
            differences: BTreeMap::from([("prose".into(), over)]),
            ..EvalRow::default()
        }
    }

    #[test]
    fn better_is_only_what_the_interval_says() {
        let clear = LossDifference { mean: -0.2, low: -0.3, high: -0.1 };
        let unclear = LossDifference { mean: -0.01, low: -0.03, high: 0.01 };
        let measured = [
            row("direct", 30.0, &[]),
            row("slw", 21.0, &[]),
            row("sft", 25.0, &[]),
            row("slw_sft", 20.8, &[("direct", clear), ("slw", unclear)]),
        ];
        let rows: Vec<Row> =
            measured.iter().map(|m| Row { name: &m.name, title: row_name(&m.name), measured: m }).collect();
        let [Block::Text(said)] = &verdict(&rows, "prose")[..] else { panic!("one sentence") };
        assert_eq!(
            said,
            "On prose SLW + SFT (20.80) is better than untrained (30.00); it cannot be told from SLW only (21.00); it was measured \
             without intervals beside SFT only (25.00)."
        );
    }
}
