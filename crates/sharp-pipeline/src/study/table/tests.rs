//! A table of a small grid: its means, its page, its gaps.

use std::collections::BTreeMap;

use sharp_schema::evaluation::LossDifference;

use super::means::means;
use super::row::{Accuracy, Row};
use super::*;
use crate::study::file::tests::grid;

fn row(name: &str, mlp_parameters: u64, perplexity: f64) -> Row {
    Row {
        name: name.into(),
        mlp_parameters,
        saved: 1.0 - mlp_parameters as f64 / 1000.0,
        bytes: Some(2 * mlp_parameters),
        perplexity: BTreeMap::from([("prose".to_owned(), perplexity)]),
        kl: match name {
            "original" => BTreeMap::new(),
            _ => BTreeMap::from([("prose".to_owned(), 0.5)]),
        },
        loss_over_original: match name {
            "original" => BTreeMap::new(),
            _ => {
                let mean = perplexity / 100.0;
                let over = LossDifference { mean, low: mean - 0.05, high: mean + 0.06 };
                BTreeMap::from([("prose".to_owned(), over)])
            }
        },
        accuracy: BTreeMap::from([("quiz".to_owned(), Accuracy { value: 0.75, stderr: 0.1 })]),
        finetune_tokens: if name == "original" { 0 } else { 100_000 },
        training_wall_s: if name == "original" { 0.0 } else { 10.0 },
    }
}

/// A table of the grid in which the last cell failed and the one before was not run.
pub(in crate::study) fn table() -> Table {
    let study = grid();
    let last = study.cells.len() - 1;
    let cells = study
        .cells
        .iter()
        .enumerate()
        .map(|(i, cell)| {
            let state = match last - i {
                0 => State::Failed { error: "stage finetune failed\nmore".into() },
                1 => State::Missing,
                _ => State::Done,
            };
            let size = if cell.values[1] == "20" { 800 } else { 900 };
            let base = if cell.values[0] == "ours" { 20.0 } else { 30.0 };
            let rows = match state {
                State::Done => {
                    vec![row("original", 1000, 15.0), row("slw_sft", size, base + cell.seed as f64)]
                }
                _ => Vec::new(),
            };
            Line {
                cell: cell.name.clone(),
                values: cell.values.clone(),
                seed: cell.seed,
                state,
                finetune_tokens: 100_000,
                machine: None,
                stage_wall_s: BTreeMap::new(),
                rows,
            }
        })
        .collect();
    Table::of(&study, "cargo xtask study mine.toml".into(), cells)
}

#[test]
fn seeds_are_averaged_and_the_original_is_there_once() {
    let table = table();
    let rows: Vec<(&str, usize)> = table.means.iter().map(|m| (m.row.as_str(), m.seeds)).collect();
    assert_eq!(rows, [("original", 1), ("slw_sft", 2), ("slw_sft", 2), ("slw_sft", 2)]);
    let ours = &table.means[1];
    assert_eq!(ours.values, ["ours", "20"]);
    let spread = ours.perplexity["prose"];
    assert!((spread.mean - 21.5).abs() < 1e-12);
    assert!((spread.deviation.unwrap() - 0.5f64.sqrt()).abs() < 1e-12, "of a sample, not of a population");
    assert!((ours.saved - 0.2).abs() < 1e-12 && ours.training_wall_s == 10.0);
    assert!(table.means[0].perplexity["prose"].deviation.is_none());
}

#[test]
fn the_page_has_a_line_for_each_mean_and_says_what_is_missing() {
    let text = table().markdown();
    assert!(text.contains("6 of 8 cells"), "{text}");
    assert!(text.contains("| method | size | row | seeds | MLP parameters | saved | bytes | prose | KL prose | loss over the original's, prose | quiz | training |"));
    assert!(
        text.contains("| - | - | original | 1 | 0.00 M | 0.0 % | 0.0 MB | 15.00 | - | - | 75.0 | - |"),
        "{text}"
    );
    assert!(
        text.contains("| 21.50 ± 0.71 | 0.500 ± 0.000 | 0.215 ± 0.007 [0.165, 0.275] | 75.0 ± 0.0 | 10 s |"),
        "{text}"
    );
    assert!(
        text.contains("- paper-10-s1: not run\n- paper-10-s2: failed: stage finetune failed\n"),
        "{text}"
    );
}

#[test]
fn what_differs_between_originals_is_not_hidden() {
    let mut table = table();
    table.cells[3].rows[0].perplexity.insert("prose".into(), 16.0);
    let originals = means(&table.cells).into_iter().filter(|mean| mean.row == "original").count();
    assert_eq!(originals, 2);
}
