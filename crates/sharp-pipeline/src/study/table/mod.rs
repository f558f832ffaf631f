//! What the cells of a study came to, side by side: each cell by itself, and the mean over its seeds.

mod cell;
mod means;
mod page;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use sharp_schema::evaluation::LossDifference;

pub(super) use means::Mean;

use super::file::Study;
use crate::error::{Context as _, Result};

/// `table.json`.
#[derive(Debug, Serialize)]
pub struct Table {
    /// Name of the study.
    pub study: String,
    /// The command that makes this table.
    pub command: String,
    /// The base configuration.
    pub base: String,
    /// Names of the axes.
    pub axes: Vec<String>,
    /// Seeds of the training.
    pub seeds: Vec<u64>,
    /// Names of the texts that perplexity is measured on.
    pub texts: Vec<String>,
    /// Names of the tasks.
    pub tasks: Vec<String>,
    /// A line for each cell.
    pub cells: Vec<Line>,
    /// Rows that share everything but the seed, together.
    pub means: Vec<Mean>,
}

/// How far a cell is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Every stage is up to date.
    Done,
    /// Some stages are not up to date.
    Missing,
    /// A stage failed when it was last tried by this command.
    Failed {
        /// Its message.
        error: String,
    },
}

/// A cell and what was measured of it.
#[derive(Debug, Serialize)]
pub struct Line {
    pub cell: String,
    pub values: Vec<String>,
    pub seed: u64,
    #[serde(flatten)]
    pub state: State,
    /// Tokens of the fine-tuning.
    pub finetune_tokens: usize,
    /// Name of the processor and threads of the training, or of the evaluation where nothing was trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Seconds that each stage took where it was made, by folder.
    pub stage_wall_s: BTreeMap<String, f64>,
    pub rows: Vec<Row>,
}

/// One row of a cell's evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    pub mlp_parameters: u64,
    /// Fraction of the original's MLP parameters that need not be stored.
    pub saved: f64,
    /// Bytes of the weights as they were measured; absent where nothing was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    pub perplexity: BTreeMap<String, f64>,
    /// Kullback-Leibler divergence from the original, in nats; empty for the original.
    pub kl: BTreeMap<String, f64>,
    /// Loss over the original's, in nats, with its 95 % interval over documents; empty for the original.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub loss_over_original: BTreeMap<String, LossDifference>,
    pub accuracy: BTreeMap<String, Accuracy>,
    /// Tokens of the fine-tuning behind this row; 0 where there was none.
    pub finetune_tokens: usize,
    /// Seconds of warm-up and fine-tuning behind this row.
    pub training_wall_s: f64,
}

/// Accuracy in a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    pub value: f64,
    pub stderr: f64,
}

impl Table {
    /// Reads what the cells left in the study's folder; `states` says of each cell how far it is.
    ///
    /// # Errors
    /// Where the results of a finished cell cannot be read.
    pub fn read(study: &Study, folder: &Path, command: String, states: &[State]) -> Result<Self> {
        let cells = study
            .cells
            .iter()
            .zip(states)
            .map(|(cell, state)| {
                cell::line(study.until, cell, &folder.join(&cell.name), state)
                    .with_context(|| format!("the results of the cell {}", cell.name))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self::of(study, command, cells))
    }

    fn of(study: &Study, command: String, cells: Vec<Line>) -> Self {
        let mut table = Self {
            study: study.name.clone(),
            command,
            base: study.base.display().to_string(),
            axes: study.axes.iter().map(|(name, _)| name.clone()).collect(),
            seeds: study.seeds.clone(),
            texts: Vec::new(),
            tasks: Vec::new(),
            cells,
            means: Vec::new(),
        };
        for row in table.cells.iter().flat_map(|cell| &cell.rows) {
            for (names, found) in [
                (&mut table.texts, row.perplexity.keys().collect::<Vec<_>>()),
                (&mut table.tasks, row.accuracy.keys().collect()),
            ] {
                for name in found {
                    if !names.contains(name) {
                        names.push(name.clone());
                    }
                }
            }
        }
        table.means = means::means(&table.cells);
        table
    }

    /// Formats `table.json`, the same bytes for the same results.
    ///
    /// # Errors
    /// Where a number cannot be written as JSON.
    pub fn json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self).context("the table as JSON")?;
        text.push('\n');
        Ok(text)
    }
}
