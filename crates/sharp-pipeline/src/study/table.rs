//! What the cells of a study came to, side by side: each cell by itself, and the mean over its seeds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use sharp_schema::evaluation::{LossDifference, Results};
use sharp_schema::metrics::read_result;

use super::file::{Cell, Study, Until};
use crate::error::{Context as _, Result};
use crate::manifest;
use sharp_schema::run::{EVALUATE, FINETUNE, FINETUNE_COLD, METRICS_FILE, RESULTS_FILE, StageFolder, WARMUP};

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
    /// Seconds of warm-up and fine-tuning behind this row.
    pub training_wall_s: f64,
}

/// Accuracy in a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    pub value: f64,
    pub stderr: f64,
}

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
                line(study.until, cell, &folder.join(&cell.name), state)
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
        table.means = means(&table.cells);
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

    /// Formats `table.md`.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n`{}`\n\n", self.study, self.command);
        let done = self.cells.iter().filter(|cell| cell.state == State::Done).count();
        let seeds: Vec<String> = self.seeds.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "{done} of {} cells; base `{}`, seeds {}. Perplexity and the Kullback-Leibler divergence from the original (KL, in nats) on \
             each text; loss over the original's in nats, in brackets its 95 % interval over documents; accuracy where tasks are measured; \
             ± is the standard deviation over seeds. A difference smaller than what seeds and documents differ by is not called a win. Training is the wall time of warm-up \
             and fine-tuning. Bytes are those of the weights as they were measured: rows from before the export have the type of the \
             import.\n",
            self.cells.len(),
            self.base,
            seeds.join(", ")
        );
        let mut head: Vec<String> = self.axes.clone();
        head.extend(["row", "seeds", "MLP parameters", "saved", "bytes"].map(str::to_owned));
        let compared = self.means.iter().any(|mean| !mean.loss_over_original.is_empty());
        for text in &self.texts {
            head.extend([text.clone(), format!("KL {text}")]);
            head.extend(compared.then(|| format!("loss over the original's, {text}")));
        }
        head.extend(self.tasks.iter().cloned());
        head.push("training".to_owned());
        let words = self.axes.len() + 1;
        let _ = writeln!(text, "| {} |", head.join(" | "));
        let _ = writeln!(text, "|{}{}", "---|".repeat(words), "---:|".repeat(head.len() - words));
        for mean in &self.means {
            let mut cells: Vec<String> = match mean.values.is_empty() {
                true => self.axes.iter().map(|_| "-".to_owned()).collect(),
                false => mean.values.clone(),
            };
            cells.push(mean.row.clone());
            cells.push(mean.seeds.to_string());
            cells.push(format!("{:.2} M", mean.mlp_parameters / 1e6));
            cells.push(format!("{:.1} %", 100.0 * mean.saved));
            cells.push(mean.bytes.map_or("-".to_owned(), |bytes| format!("{:.1} MB", bytes / 1e6)));
            for name in &self.texts {
                cells.push(shown(mean.perplexity.get(name), 1.0, 2));
                cells.push(shown(mean.kl.get(name), 1.0, 3));
                cells.extend(compared.then(|| over_original(mean.loss_over_original.get(name))));
            }
            for name in &self.tasks {
                cells.push(shown(mean.accuracy.get(name), 100.0, 1));
            }
            cells.push(match mean.training_wall_s > 0.0 {
                true => format!("{:.0} s", mean.training_wall_s),
                false => "-".to_owned(),
            });
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        let left: Vec<String> = self
            .cells
            .iter()
            .filter_map(|cell| match &cell.state {
                State::Done => None,
                State::Missing => Some(format!("- {}: not run\n", cell.cell)),
                State::Failed { error } => {
                    let first = error.lines().next().unwrap_or_default();
                    Some(format!("- {}: failed: {first}\n", cell.cell))
                }
            })
            .collect();
        if !left.is_empty() {
            let _ = write!(text, "\nNot in the table:\n\n{}", left.concat());
        }
        text
    }
}

/// Formats a mean and its deviation, as in `12.34 ± 0.05`.
fn shown(spread: Option<&Spread>, times: f64, digits: usize) -> String {
    match spread {
        None => "-".to_owned(),
        Some(Spread { mean, deviation: None }) => format!("{:.digits$}", times * mean),
        Some(Spread { mean, deviation: Some(deviation) }) => {
            format!("{:.digits$} ± {:.digits$}", times * mean, times * deviation)
        }
    }
}

/// Formats a difference and its interval, as in `0.123 ± 0.005 [0.101, 0.140]`.
fn over_original(difference: Option<&Difference>) -> String {
    match difference {
        None => "-".to_owned(),
        Some(Difference { over_seeds, low, high }) => {
            format!("{} [{low:.3}, {high:.3}]", shown(Some(over_seeds), 1.0, 3))
        }
    }
}

fn line(until: Until, cell: &Cell, folder: &Path, state: &State) -> Result<Line> {
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
    if until == Until::Finetune {
        line.rows.push(trained_row(folder, &line.stage_wall_s)?);
        return Ok(line);
    }
    let path = folder.join(EVALUATE).join(RESULTS_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let results = serde_json::from_str::<Results>(&text).with_context(|| format!("in {}", path.display()))?;
    let whole = results.rows.first().map_or(0, |row| row.mlp_parameters);
    let original = results.rows.first().map(|row| row.name.clone()).unwrap_or_default();
    for row in results.rows {
        let behind: &[StageFolder] = match row.name.as_str() {
            "slw" => &[WARMUP],
            "sft" => &[FINETUNE_COLD],
            name if name.starts_with("slw_sft") => &[WARMUP, FINETUNE],
            _ => &[],
        };
        line.rows.push(Row {
            saved: if whole > 0 { 1.0 - row.mlp_parameters as f64 / whole as f64 } else { 0.0 },
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
            // A sum of nothing is -0.
            training_wall_s: behind.iter().filter_map(|step| line.stage_wall_s.get(step.name())).sum::<f64>()
                + 0.0,
            name: row.name,
        });
    }
    Ok(line)
}

/// Reads what fine-tuning measured of its result, of which no file holds the weights.
fn trained_row(folder: &Path, stage_wall_s: &BTreeMap<String, f64>) -> Result<Row> {
    let path = folder.join(FINETUNE).join(METRICS_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let result = read_result(&text).with_context(|| format!("{}: no result", path.display()))?;
    let whole = result.original_mlp_parameters;
    Ok(Row {
        name: "slw_sft".into(),
        mlp_parameters: result.mlp_parameters,
        saved: if whole > 0 { 1.0 - result.mlp_parameters as f64 / whole as f64 } else { 0.0 },
        bytes: None,
        perplexity: result.texts.iter().map(|(name, text)| (name.clone(), text.loss.exp())).collect(),
        kl: result.texts.iter().filter_map(|(name, text)| Some((name.clone(), text.kl?))).collect(),
        loss_over_original: BTreeMap::new(),
        accuracy: BTreeMap::new(),
        training_wall_s: stage_wall_s.values().sum(),
    })
}

/// Rows with the same values and name together. The original's rows do not depend on a cell's values: those
/// that are the same in every respect are one.
fn means(cells: &[Line]) -> Vec<Mean> {
    let mut groups: Vec<(Vec<String>, usize, Vec<&Row>)> = Vec::new();
    for original in [true, false] {
        for cell in cells {
            for row in cell.rows.iter().filter(|row| row.name.starts_with("original") == original) {
                let values = if original { Vec::new() } else { cell.values.clone() };
                let tokens = if row.name.contains("sft") { cell.finetune_tokens } else { 0 };
                let same = |(others, _, rows): &&mut (Vec<String>, usize, Vec<&Row>)| {
                    *others == values
                        && rows.first().is_some_and(|first| {
                            if original { *first == row } else { first.name == row.name }
                        })
                };
                match groups.iter_mut().find(same) {
                    Some((_, _, rows)) if !original => rows.push(row),
                    Some(_) => {}
                    None => groups.push((values, tokens, vec![row])),
                }
            }
        }
    }
    groups.into_iter().filter_map(|(values, tokens, rows)| mean(values, tokens, &rows)).collect()
}

fn mean(values: Vec<String>, finetune_tokens: usize, rows: &[&Row]) -> Option<Mean> {
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
        finetune_tokens,
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

#[cfg(test)]
pub(super) mod tests {
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
                    finetune_tokens: 100,
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
        assert!(
            (spread.deviation.unwrap() - 0.5f64.sqrt()).abs() < 1e-12,
            "of a sample, not of a population"
        );
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
            text.contains(
                "| 21.50 ± 0.71 | 0.500 ± 0.000 | 0.215 ± 0.007 [0.165, 0.275] | 75.0 ± 0.0 | 10 s |"
            ),
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
}
