//! Means over the seeds of a study's training.

use std::collections::BTreeMap;

use serde::Serialize;
use sharp_schema::evaluation::LossDifference;

use super::row::{Line, Row};

/// Mean and deviation over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    /// Standard deviation of a sample; absent with one seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deviation: Option<f64>,
}

/// A difference of losses: its mean and deviation over seeds, and the means of the ends of its intervals,
/// which are over documents.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    #[serde(flatten)]
    pub over_seeds: Spread,
    pub low: f64,
    pub high: f64,
}

/// A row's mean over the seeds.
#[derive(Debug, Serialize)]
pub struct Mean {
    /// The values on the axes; empty for the original, which all cells have in common.
    pub values: Vec<String>,
    pub row: String,
    /// Seeds that it is the mean of.
    pub seeds: usize,
    pub mlp_parameters: f64,
    pub saved: f64,
    /// Bytes of the weights as they were measured; absent where nothing was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<f64>,
    /// Tokens of the fine-tuning behind this row; 0 where nothing was trained.
    pub finetune_tokens: usize,
    pub perplexity: BTreeMap<String, Spread>,
    pub kl: BTreeMap<String, Spread>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub loss_over_original: BTreeMap<String, Difference>,
    pub accuracy: BTreeMap<String, Spread>,
    pub training_wall_s: f64,
}

/// Rows with the same values and name together. The original's rows do not depend on a cell's values: those
/// that are the same in every respect are one.
pub(super) fn means(cells: &[Line]) -> Vec<Mean> {
    let mut groups: Vec<(Vec<String>, Vec<&Row>)> = Vec::new();
    for original in [true, false] {
        for cell in cells {
            for row in cell.rows.iter().filter(|row| row.name.starts_with("original") == original) {
                let values = if original { Vec::new() } else { cell.values.clone() };
                let same = |(others, rows): &&mut (Vec<String>, Vec<&Row>)| {
                    *others == values
                        && rows.first().is_some_and(|first| {
                            if original { *first == row } else { first.name == row.name }
                        })
                };
                match groups.iter_mut().find(same) {
                    Some((_, rows)) if !original => rows.push(row),
                    Some(_) => {}
                    None => groups.push((values, vec![row])),
                }
            }
        }
    }
    groups.into_iter().filter_map(|(values, rows)| mean(values, &rows)).collect()
}

fn mean(values: Vec<String>, rows: &[&Row]) -> Option<Mean> {
    let first = rows.first()?;
    let of = |get: &dyn Fn(&Row) -> f64| spread(rows.iter().map(|row| get(row))).map_or(0.0, |s| s.mean);
    let by_name = |names: Vec<&String>, get: &dyn Fn(&Row, &str) -> Option<f64>| {
        names
            .into_iter()
            .filter_map(|name| Some((name.clone(), spread(rows.iter().filter_map(|row| get(row, name)))?)))
            .collect()
    };
    Some(Mean {
        row: first.name.clone(),
        seeds: rows.len(),
        mlp_parameters: of(&|row| row.mlp_parameters as f64),
        saved: of(&|row| row.saved),
        finetune_tokens: first.finetune_tokens,
        bytes: spread(rows.iter().filter_map(|row| Some(row.bytes? as f64))).map(|bytes| bytes.mean),
        perplexity: by_name(first.perplexity.keys().collect(), &|row, name| {
            row.perplexity.get(name).copied()
        }),
        kl: by_name(first.kl.keys().collect(), &|row, name| row.kl.get(name).copied()),
        loss_over_original: first
            .loss_over_original
            .keys()
            .filter_map(|text| Some((text.clone(), difference(rows, text)?)))
            .collect(),
        accuracy: by_name(first.accuracy.keys().collect(), &|row, name| {
            row.accuracy.get(name).map(|accuracy| accuracy.value)
        }),
        training_wall_s: of(&|row| row.training_wall_s),
        values,
    })
}

fn difference(rows: &[&Row], text: &str) -> Option<Difference> {
    let of = |get: fn(&LossDifference) -> f64| {
        spread(rows.iter().filter_map(|row| row.loss_over_original.get(text).map(get)))
    };
    Some(Difference {
        over_seeds: of(|difference| difference.mean)?,
        low: of(|difference| difference.low)?.mean,
        high: of(|difference| difference.high)?.mean,
    })
}

fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let values: Vec<f64> = values.collect();
    if values.is_empty() {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some(Spread { mean, deviation: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()) })
}
