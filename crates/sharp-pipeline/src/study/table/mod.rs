//! What the cells of a study came to, side by side: each cell by itself, and the mean over its seeds.

mod cell;
mod means;
mod page;
mod row;
#[cfg(test)]
pub(super) mod tests;

use std::path::Path;

use serde::Serialize;

pub(super) use means::Mean;
pub use row::State;

use self::row::Line;
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
