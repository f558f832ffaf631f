//! Measures several models at once, and writes and reads `results.json`.

use std::collections::BTreeMap;
use std::path::Path;

use sharp_data::{Task, Text};
use sharp_infer::Model;
use sharp_model::tokenizer::Tokenizer;
use sharp_progress::Progress;
use sharp_schema::evaluation::{EvalRow, Results, Settings};

use crate::bootstrap::{Bootstrap, RESAMPLES};
use crate::error::{Error, Result};
use crate::tasks::score_task;
use crate::text::{Measured, TextScore, Windows, compare_units};

fn sizes(name: &str, model: &Model) -> EvalRow {
    EvalRow {
        name: name.to_owned(),
        mlp_parameters: mlp_parameters(model),
        bytes: model.weight_bytes().total,
        ..EvalRow::default()
    }
}

fn add_text(row: &mut EvalRow, name: &str, score: &TextScore, first: bool) {
    let key = || name.to_owned();
    row.perplexity.insert(key(), score.perplexity);
    row.mean_loss.insert(key(), score.mean_loss);
    row.tokens.insert(key(), score.tokens);
    if !first {
        row.delta_loss.insert(key(), score.delta_loss);
        row.kl.insert(key(), score.kl);
        row.top1_agreement.insert(key(), score.top1_agreement);
    }
}

/// Adds standard errors and, for each two rows, the interval of the difference of their losses; nothing for a
/// text of one unit.
fn add_errors(rows: &mut [EvalRow], text: &str, measured: &Measured) {
    let models = rows.len();
    let quantities: Vec<&[f64]> =
        measured.losses.iter().chain(&measured.divergences).map(Vec::as_slice).collect();
    let Some(bootstrap) = Bootstrap::new(&measured.tokens, &quantities, RESAMPLES) else { return };
    let names: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
    for (i, row) in rows.iter_mut().enumerate() {
        row.loss_stderr.insert(text.to_owned(), bootstrap.stderr(i, None));
        if i == 0 {
            continue;
        }
        row.delta_stderr.insert(text.to_owned(), bootstrap.stderr(i, Some(0)));
        row.kl_stderr.insert(text.to_owned(), bootstrap.stderr(models + i, None));
        let loss = |i: usize| measured.scores[i].mean_loss;
        let from_earlier = |j: usize| (names[j].clone(), bootstrap.difference(i, j, loss(i) - loss(j)));
        row.differences.insert(text.to_owned(), (0..i).map(from_earlier).collect());
    }
}

/// Counts the parameters of the model's MLPs: by its plan, or each stored matrix counted once.
fn mlp_parameters(model: &Model) -> u64 {
    if let Some(plan) = model.plan() {
        return plan.stored_mlp_parameters(model.config());
    }
    let mut seen = std::collections::HashSet::new();
    let linears = model.layers().iter().flat_map(|layer| layer.mlp().projections());
    let weights = linears.flat_map(|linear| linear.weights());
    let stored = weights.filter(|w| seen.insert(w.bytes().as_ptr() as usize));
    stored.map(|w| w.rows() as u64 * w.cols() as u64).sum()
}

/// Measures every model on every text and task. The first model is what the others are compared with.
///
/// # Errors
/// Those of [`compare`](crate::compare) and [`score_task`]; [`Error::Argument`] if two models, texts or tasks
/// have one name.
pub fn measure(
    models: &[(&str, &Model)],
    tokenizer: &Tokenizer,
    texts: &[Text],
    cut: Windows,
    tasks: &[Task],
    progress: &dyn Progress,
) -> Result<Results> {
    distinct("models", models.iter().map(|m| m.0))?;
    distinct("texts", texts.iter().map(|t| t.name.as_str()))?;
    distinct("tasks", tasks.iter().map(|t| t.name.as_str()))?;
    let mut rows: Vec<EvalRow> = models.iter().map(|(name, model)| sizes(name, model)).collect();
    let all: Vec<&Model> = models.iter().map(|m| m.1).collect();
    let mut units = BTreeMap::new();
    for text in texts {
        let measured = compare_units(&all, text, cut, progress)?;
        for (i, (row, score)) in rows.iter_mut().zip(&measured.scores).enumerate() {
            add_text(row, &text.name, score, i == 0);
        }
        add_errors(&mut rows, &text.name, &measured);
        units.insert(text.name.clone(), measured.units);
    }
    for task in tasks {
        let scores = score_task(&all, tokenizer, task, progress)?;
        for (row, score) in rows.iter_mut().zip(scores) {
            row.tasks.insert(task.name.clone(), score);
        }
    }
    let settings = Settings {
        window: Some(cut.window),
        stride: Some(cut.stride),
        compared_with: models.first().map(|(name, _)| (*name).to_owned()),
        texts: None,
        units,
    };
    Ok(Results { rows, settings })
}

/// Writes a `results.json`, whole or not at all.
///
/// # Errors
/// [`Error::Model`] if the file cannot be written.
pub fn save(results: &Results, path: &Path) -> Result<()> {
    let text = results.to_json().map_err(|e| Error::Results { what: e.to_string() })?;
    sharp_model::write_atomic(path, |file| file.write_all(text.as_bytes()))?;
    Ok(())
}

/// Reads a `results.json`.
///
/// # Errors
/// [`Error::Results`] if it cannot be read or is no such file.
pub fn load(path: &Path) -> Result<Results> {
    let wrong = |e: &dyn std::fmt::Display| Error::Results { what: format!("{}: {e}", path.display()) };
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
    serde_json::from_str(&text).map_err(|e| wrong(&e))
}

fn distinct<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Error::argument(format!("two {what} are named {name:?}")));
        }
    }
    Ok(())
}
