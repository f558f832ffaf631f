//! A study's file: a base configuration, axes of named values, seeds; and the cells that they make.

#[cfg(test)]
pub(super) mod tests;
mod typed;

use std::path::{Path, PathBuf};

use sharp_schema::suggest;

use self::typed::{Axis, StudyFile, Value, check};
pub use self::typed::{Plot, Until, X};
use crate::config::{Config, Row, assignments, lay_over, read_layers};
use crate::error::{Context as _, Result, bail};
use crate::workspace::Workspace;

/// A checked study.
#[derive(Debug)]
pub struct Study {
    /// Its name: that of the file.
    pub name: String,
    /// The file, as a person names it.
    pub file: PathBuf,
    /// The base configuration's file, likewise.
    pub base: PathBuf,
    /// Names of the axes and of their values, in the order of the file.
    pub axes: Vec<(String, Vec<String>)>,
    /// Seeds of the training.
    pub seeds: Vec<u64>,
    /// How far every cell goes.
    pub until: Until,
    /// What the picture shows.
    pub plot: Plot,
    /// All cells: the last axis changes fastest, then the seed.
    pub cells: Vec<Cell>,
}

/// One run of a study.
#[derive(Debug)]
pub struct Cell {
    /// Name of its folder: the values and the seed.
    pub name: String,
    /// Its value on each axis.
    pub values: Vec<String>,
    /// Its seed.
    pub seed: u64,
    /// Its whole configuration.
    pub config: Config,
}

impl Study {
    /// Reads a study's file, lays `--set` values over every cell and checks every configuration that results.
    ///
    /// # Errors
    /// Where the study or one of its cells cannot be read or used.
    pub fn load(workspace: &Workspace, file: &Path, overrides: &[String]) -> Result<Self> {
        let path = workspace.find(file);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "reading the study {} (there are: {})",
                file.display(),
                workspace.listed("configs/studies").join(", ")
            )
        })?;
        let shown = || format!("in the study {}", file.display());
        let read = toml::from_str::<StudyFile>(&text).with_context(shown)?;
        let base = workspace.find(&read.base);
        let base = read_layers(workspace, &base).context("base").with_context(shown)?;
        let name = path.file_stem().context("the study's file has no name")?.to_string_lossy().into_owned();
        Self::new(workspace, name, file, read, &base, &assignments(overrides)?).with_context(shown)
    }

    fn new(
        workspace: &Workspace,
        name: String,
        file: &Path,
        read: StudyFile,
        base: &toml::Table,
        overrides: &toml::Table,
    ) -> Result<Self> {
        check(&read)?;
        let mut plot = read.plot.clone();
        if plot.lines.is_empty() {
            plot.lines = read.axes.first().map(|axis| axis.name.clone()).unwrap_or_default();
        }
        if plot.rows.is_empty() {
            plot.rows.push(Row::SlwSft);
        }
        let mut cells: Vec<Cell> = Vec::new();
        for values in grid(&read.axes) {
            for &seed in &read.seeds {
                let cell = cell(workspace, &read, base, &values, seed, overrides)?;
                if cells.iter().any(|other| other.name == cell.name) {
                    bail!("two cells would be called {}: rename a value of an axis", cell.name);
                }
                cells.push(cell);
            }
        }
        let axes = read
            .axes
            .iter()
            .map(|axis| (axis.name.clone(), axis.values.iter().map(|value| value.name.clone()).collect()))
            .collect();
        let (base, seeds, until) = (read.base, read.seeds, read.until);
        Ok(Self { name, file: file.to_path_buf(), base, axes, seeds, until, plot, cells })
    }

    /// Returns the cells of these names; all where none is named.
    ///
    /// # Errors
    /// Where there is no such cell.
    pub fn chosen(&self, only: &[String]) -> Result<Vec<&Cell>> {
        let names: Vec<&str> = self.cells.iter().map(|cell| cell.name.as_str()).collect();
        if let Some(wrong) = only.iter().find(|name| !names.contains(&name.as_str())) {
            bail!("--only {wrong}: there is no such cell in {}{}", self.name, suggest::hint(wrong, &names));
        }
        Ok(self.cells.iter().filter(|cell| only.is_empty() || only.contains(&cell.name)).collect())
    }
}

/// Lists every combination of the axes' values; the last axis changes fastest.
fn grid(axes: &[Axis]) -> Vec<Vec<&Value>> {
    let mut grid: Vec<Vec<&Value>> = vec![Vec::new()];
    for axis in axes {
        grid = grid
            .into_iter()
            .flat_map(|cell| axis.values.iter().map(move |value| [&cell[..], &[value]].concat()))
            .collect();
    }
    grid
}

/// Makes the cell of these values: over the base lie the study's keys, the values', what their combination
/// needs, the seed and `--set`.
fn cell(
    workspace: &Workspace,
    read: &StudyFile,
    base: &toml::Table,
    values: &[&Value],
    seed: u64,
    overrides: &toml::Table,
) -> Result<Cell> {
    let names: Vec<String> = values.iter().map(|value| value.name.clone()).collect();
    let name = [&names[..], &[format!("s{seed}")]].concat().join("-");
    let mut table = base.clone();
    lay_over(&mut table, read.set.clone());
    for value in values {
        lay_over(&mut table, value.set.clone());
    }
    for when in &read.when {
        let holds = |(axis, value): (&String, &String)| {
            read.axes.iter().zip(&names).any(|(a, name)| a.name == *axis && name == value)
        };
        if when.is.iter().all(holds) {
            lay_over(&mut table, when.set.clone());
        }
    }
    lay_over(&mut table, assignments(&[format!("training.seed={seed}")])?);
    lay_over(&mut table, overrides.clone());
    let place = || format!("the cell {name}");
    let config = Config::from_table(workspace, table).with_context(place)?;
    if config.evaluate.texts.is_empty() {
        bail!("the cell {name}: evaluate.texts: a study needs a text");
    }
    if read.until == Until::Finetune {
        return Ok(Cell { name, values: names, seed, config });
    }
    if config.finetune.reuses_weights() {
        bail!(
            "the cell {name}: finetune.pool and finetune.run_twice are measured by the fine-tuning alone: until = \"finetune\""
        );
    }
    let rows = config.rows().0;
    if rows.first() != Some(&Row::Original) {
        bail!("the cell {name}: evaluate.rows: begin with \"original\", which the others are compared with");
    }
    if rows.len() < 2 {
        bail!("the cell {name}: evaluate.rows: a study needs a row beside the original");
    }
    Ok(Cell { name, values: names, seed, config })
}

impl Cell {
    /// Says what the cell is asked to save, for a person.
    pub fn size(&self) -> String {
        let plan = &self.config.plan;
        match (&plan.explicit, plan.targets) {
            (Some(layers), _) => format!("layers {layers}"),
            (None, Some(targets)) => format!("replaces {targets} MLPs"),
            (None, None) => format!("saves {:.1} % or more", 100.0 * plan.remove),
        }
    }

    /// Returns the number of steps of its fine-tuning.
    pub fn finetune_steps(&self) -> usize {
        self.config.finetune.steps.get()
    }
}
