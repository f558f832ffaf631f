//! What `results.json` holds.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sharp_data::Task;
use sharp_infer::Model;
use sharp_model::tokenizer::Tokenizer;
use sharp_progress::Progress;

use crate::error::{Error, Result};
use crate::tasks::{TaskScore, score_task};
use crate::text::{TextScore, Windows, compare};

/// Everything that was measured: a row for each model, the first of which the others are compared with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// One for each model.
    pub rows: Vec<Row>,
    /// How it was measured; for the reader.
    #[serde(default)]
    pub settings: Map<String, Value>,
}

/// What was measured of one model. Maps are by the text's or the task's name; what compares a model with the first one is empty in
/// the first row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The model's name.
    pub name: String,
    /// Parameters of its MLPs as stored, recovery parameters among them.
    pub mlp_parameters: u64,
    /// Bytes of all its weights as they lie in memory, shared ones counted once.
    pub bytes: u64,
    /// `exp` of the mean loss.
    #[serde(default)]
    pub perplexity: BTreeMap<String, f64>,
    /// Mean negative log likelihood of a token, in nats.
    #[serde(default)]
    pub mean_loss: BTreeMap<String, f64>,
    /// Standard error of that.
    #[serde(default)]
    pub loss_stderr: BTreeMap<String, f64>,
    /// Mean loss less the first row's, in nats.
    #[serde(default)]
    pub delta_loss: BTreeMap<String, f64>,
    /// Standard error of that, token by token.
    #[serde(default)]
    pub delta_stderr: BTreeMap<String, f64>,
    /// Mean Kullback-Leibler divergence from the first row's distribution to this one's, in nats.
    #[serde(default)]
    pub kl: BTreeMap<String, f64>,
    /// Standard error of that.
    #[serde(default)]
    pub kl_stderr: BTreeMap<String, f64>,
    /// Fraction of tokens that both think most likely.
    #[serde(default)]
    pub top1_agreement: BTreeMap<String, f64>,
    /// Tokens that were scored.
    #[serde(default)]
    pub tokens: BTreeMap<String, usize>,
    /// Multiple-choice accuracy.
    #[serde(default)]
    pub tasks: BTreeMap<String, TaskScore>,
}

impl Row {
    fn new(name: &str, model: &Model) -> Self {
        Row {
            name: name.to_owned(),
            mlp_parameters: mlp_parameters(model),
            bytes: model.weight_bytes().total,
            ..Row::default()
        }
    }

    fn add_text(&mut self, name: &str, score: &TextScore, first: bool) {
        let key = || name.to_owned();
        self.perplexity.insert(key(), score.perplexity);
        self.mean_loss.insert(key(), score.mean_loss);
        self.loss_stderr.insert(key(), score.loss_stderr);
        self.tokens.insert(key(), score.tokens);
        if !first {
            self.delta_loss.insert(key(), score.delta_loss);
            self.delta_stderr.insert(key(), score.delta_stderr);
            self.kl.insert(key(), score.kl);
            self.kl_stderr.insert(key(), score.kl_stderr);
            self.top1_agreement.insert(key(), score.top1_agreement);
        }
    }
}

/// Parameters of the model's MLPs: by its plan, or each stored matrix counted once.
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

/// A text to measure perplexity on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Its name in the results.
    pub name: String,
    /// Its tokens; see [`crate::text_tokens`].
    pub tokens: Vec<u32>,
}

impl Results {
    /// Measures every model on every text and task. The first model is what the others are compared with.
    ///
    /// # Errors
    /// Those of [`compare`] and [`score_task`]; [`Error::Argument`] if two models, texts or tasks have one name.
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
        let mut rows: Vec<Row> = models.iter().map(|(name, model)| Row::new(name, model)).collect();
        let all: Vec<&Model> = models.iter().map(|m| m.1).collect();
        for text in texts {
            let scores = compare(&all, &text.tokens, cut, progress)?;
            for (i, (row, score)) in rows.iter_mut().zip(&scores).enumerate() {
                row.add_text(&text.name, score, i == 0);
            }
        }
        for task in tasks {
            let scores = score_task(&all, tokenizer, task, progress)?;
            for (row, score) in rows.iter_mut().zip(scores) {
                row.tasks.insert(task.name.clone(), score);
            }
        }
        let mut settings = Map::new();
        settings.insert("window".into(), cut.window.into());
        settings.insert("stride".into(), cut.stride.into());
        if let Some((name, _)) = models.first() {
            settings.insert("compared_with".into(), (*name).into());
        }
        Ok(Results { rows, settings })
    }

    /// The row of a name.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.name == name)
    }

    /// As JSON, the same bytes for the same results.
    ///
    /// # Errors
    /// [`Error::Results`] if a number is not finite, which JSON cannot hold.
    pub fn to_json(&self) -> Result<String> {
        let mut text =
            serde_json::to_string_pretty(self).map_err(|e| Error::Results { what: e.to_string() })?;
        text.push('\n');
        Ok(text)
    }

    /// Writes `results.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Model`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = self.to_json()?;
        sharp_model::write_atomic(path, |file| file.write_all(text.as_bytes()))?;
        Ok(())
    }

    /// Reads a `results.json`.
    ///
    /// # Errors
    /// [`Error::Results`] if it cannot be read or is no such file.
    pub fn load(path: &Path) -> Result<Self> {
        let wrong = |e: &dyn std::fmt::Display| Error::Results { what: format!("{}: {e}", path.display()) };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
        serde_json::from_str(&text).map_err(|e| wrong(&e))
    }
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
