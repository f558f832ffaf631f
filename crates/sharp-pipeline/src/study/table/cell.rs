//! Reads what a cell left in its folder: the rows of its evaluation, or what fine-tuning measured.

use std::collections::BTreeMap;
use std::path::Path;

use sharp_schema::evaluation::Results;
use sharp_schema::metrics::read_result;
use sharp_schema::run::{EVALUATE, FINETUNE, FINETUNE_COLD, METRICS_FILE, RESULTS_FILE, StageFolder, WARMUP};

use super::row::{Accuracy, Line, Row, State};
use crate::error::{Context as _, Result};
use crate::manifest;
use crate::study::file::{Cell, Until};

/// Reads what a cell left in its folder.
pub(super) fn line(until: Until, cell: &Cell, folder: &Path, state: &State) -> Result<Line> {
    let config = &cell.config;
    let sequence = config.data.sequence.get();
    let rows_of_a_step = (config.finetune.batch_tokens.get() / sequence).max(1);
    let mut line = Line {
        cell: cell.name.clone(),
        values: cell.values.clone(),
        seed: cell.seed,
        state: state.clone(),
        finetune_tokens: config.finetune.steps.get() * rows_of_a_step * sequence,
        machine: None,
        stage_wall_s: BTreeMap::new(),
        rows: Vec::new(),
    };
    if *state != State::Done {
        return Ok(line);
    }
    for step in [EVALUATE, WARMUP, FINETUNE, FINETUNE_COLD] {
        if let Some(made) = manifest::read(&folder.join(step)) {
            line.stage_wall_s.insert(step.to_string(), made.wall_s);
            line.machine = Some(format!("{}, {} threads", made.host.cpu, made.host.threads));
        }
    }
    line.rows = match until {
        Until::Evaluate => evaluated(folder, &line)?,
        Until::Finetune => vec![trained(folder, &line)?],
    };
    Ok(line)
}

/// Reads the rows of a cell's evaluation.
fn evaluated(folder: &Path, line: &Line) -> Result<Vec<Row>> {
    let path = folder.join(EVALUATE).join(RESULTS_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let results = serde_json::from_str::<Results>(&text).with_context(|| format!("in {}", path.display()))?;
    let whole = results.rows.first().map_or(0, |row| row.mlp_parameters);
    let original = results.rows.first().map(|row| row.name.clone()).unwrap_or_default();
    let mut rows = Vec::new();
    for row in results.rows {
        let behind: &[StageFolder] = match row.name.as_str() {
            "slw" => &[WARMUP],
            "sft" => &[FINETUNE_COLD],
            name if name.starts_with("slw_sft") => &[WARMUP, FINETUNE],
            _ => &[],
        };
        rows.push(Row {
            saved: saved(row.mlp_parameters, whole),
            mlp_parameters: row.mlp_parameters,
            bytes: Some(row.bytes),
            perplexity: row.perplexity,
            kl: row.kl,
            loss_over_original: row
                .differences
                .into_iter()
                .filter_map(|(text, mut over)| Some((text, over.remove(&original)?)))
                .collect(),
            accuracy: row
                .tasks
                .into_iter()
                .map(|(name, score)| (name, Accuracy { value: score.acc, stderr: score.acc_stderr }))
                .collect(),
            finetune_tokens: match behind.iter().any(|step| [FINETUNE, FINETUNE_COLD].contains(step)) {
                true => line.finetune_tokens,
                false => 0,
            },
            // A sum of nothing is -0.
            training_wall_s: behind.iter().filter_map(|step| line.stage_wall_s.get(step.name())).sum::<f64>()
                + 0.0,
            name: row.name,
        });
    }
    Ok(rows)
}

/// Reads what fine-tuning measured of its result, of which no file holds the weights.
fn trained(folder: &Path, line: &Line) -> Result<Row> {
    let path = folder.join(FINETUNE).join(METRICS_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let result = read_result(&text).with_context(|| format!("{}: no result", path.display()))?;
    Ok(Row {
        name: "slw_sft".into(),
        mlp_parameters: result.mlp_parameters,
        saved: saved(result.mlp_parameters, result.original_mlp_parameters),
        bytes: None,
        perplexity: result.texts.iter().map(|(name, text)| (name.clone(), text.loss.exp())).collect(),
        kl: result.texts.iter().filter_map(|(name, text)| Some((name.clone(), text.kl?))).collect(),
        loss_over_original: BTreeMap::new(),
        accuracy: BTreeMap::new(),
        finetune_tokens: line.finetune_tokens,
        training_wall_s: line.stage_wall_s.values().sum(),
    })
}

/// Returns the fraction of the original's MLP parameters that need not be stored.
fn saved(stored: u64, whole: u64) -> f64 {
    if whole > 0 { 1.0 - stored as f64 / whole as f64 } else { 0.0 }
}
