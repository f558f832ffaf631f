//! The files of an evaluation: what is asked for (`rows.toml`) and what was measured (`results.json`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Side;

/// What `sharp evaluate --rows` measures: the contents of `rows.toml`. `D` is how a data file is named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request<D = String> {
    /// Tokens a model sees at once.
    pub window: usize,
    /// Tokens that the window moves on.
    pub stride: usize,
    /// The fraction of documents that a split holds out.
    #[serde(default = "default_held_out")]
    pub held_out: f64,
    /// Seed of the split.
    #[serde(default)]
    pub seed: u64,
    /// The models; the others are compared with the first.
    pub rows: Vec<RowRequest>,
    /// Texts to measure perplexity on.
    #[serde(default = "Vec::new")]
    pub texts: Vec<TextRequest<D>>,
    /// Multiple-choice tasks.
    #[serde(default)]
    pub tasks: Vec<TaskRequest>,
}

/// The fraction that is held out where a request does not say.
pub const fn default_held_out() -> f64 {
    0.05
}

/// A model to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowRequest {
    /// Its name in the results.
    pub name: String,
    /// A checkpoint, a GGUF file or a packed file.
    pub model: PathBuf,
    /// A plan to lay over the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PathBuf>,
    /// Trained parameters for the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<PathBuf>,
}

/// A text to measure perplexity on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextRequest<D = String> {
    /// Its name in the results.
    pub name: String,
    /// `PATH`, `PATH#VIEW` or `PATH#VIEW:LIMIT`.
    pub data: D,
    /// The side of the split that is read.
    #[serde(default)]
    pub split: Side,
    /// Tokens that are measured; all of them where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
}

/// A multiple-choice task to measure accuracy on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest {
    /// Its name in the results.
    pub name: String,
    /// The file of its questions.
    pub path: PathBuf,
    /// Questions that are asked; all of them where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Everything that was measured, a row for each model; the others are compared with the first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// One for each model.
    pub rows: Vec<EvalRow>,
    /// How it was measured.
    #[serde(default)]
    pub settings: Settings,
}

/// How rows were measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Tokens a model sees at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Tokens that the window moves on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// The row that the others are compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared_with: Option<String>,
    /// What each text was read as, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<BTreeMap<String, TextSettings>>,
    /// What was drawn again for the standard errors and intervals of each text, by its name. Files of before
    /// lack it: their standard errors take tokens as independent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub units: BTreeMap<String, Units>,
}

/// The parts of a text that the bootstrap draws, each as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Units {
    /// What they are.
    pub unit: Unit,
    /// How many there are; with one there are neither standard errors nor intervals.
    pub count: usize,
}

impl std::fmt::Display for Units {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let one = match self.unit {
            Unit::Document => "document",
            Unit::Window => "window",
        };
        write!(f, "{} {one}{}", self.count, if self.count == 1 { "" } else { "s" })
    }
}

/// What the bootstrap draws as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// A document.
    Document,
    /// The scored tokens of a window, in a text that is one document.
    Window,
}

/// What a text was read as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextSettings {
    /// The part of each record that was read.
    pub view: String,
    /// The side of the split.
    pub split: Side,
}

/// What was measured of one model.
///
/// Maps are by the text's or the task's name. Those that compare a model with the first one are empty in the
/// first row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// The model's name.
    pub name: String,
    /// Parameters of its MLPs as stored, recovery parameters among them.
    pub mlp_parameters: u64,
    /// Bytes of all its weights in memory, shared ones counted once.
    pub bytes: u64,
    /// `exp` of the mean loss.
    #[serde(default)]
    pub perplexity: BTreeMap<String, f64>,
    /// Mean negative log likelihood of a token, in nats.
    #[serde(default)]
    pub mean_loss: BTreeMap<String, f64>,
    /// Standard error of the mean loss, by the bootstrap over [`Settings::units`] as those below.
    #[serde(default)]
    pub loss_stderr: BTreeMap<String, f64>,
    /// Mean loss less the first row's, in nats.
    #[serde(default)]
    pub delta_loss: BTreeMap<String, f64>,
    /// Standard error of that difference, paired.
    #[serde(default)]
    pub delta_stderr: BTreeMap<String, f64>,
    /// By text and by the name of each row before this one: mean loss less that row's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub differences: BTreeMap<String, BTreeMap<String, LossDifference>>,
    /// Mean Kullback-Leibler divergence from the first row's distribution to this one's, in nats.
    #[serde(default)]
    pub kl: BTreeMap<String, f64>,
    /// Standard error of the divergence.
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

/// What a model's mean loss is over another's on one text, in nats, with the 95 % interval of a paired
/// bootstrap: both models' losses on the same documents.
///
/// ```
/// use sharp_schema::evaluation::LossDifference;
///
/// let difference = LossDifference { mean: 0.0642, low: 0.051, high: 0.079 };
/// assert_eq!(difference.to_string(), "+0.064 [+0.051, +0.079]");
/// assert_eq!(difference.sign(), Some(std::cmp::Ordering::Greater));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossDifference {
    /// On the text as it is.
    pub mean: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl LossDifference {
    /// Says whether the loss is less or greater than the other's; `None` where the interval holds 0.
    pub fn sign(self) -> Option<std::cmp::Ordering> {
        match (self.low > 0.0, self.high < 0.0) {
            (true, _) => Some(std::cmp::Ordering::Greater),
            (_, true) => Some(std::cmp::Ordering::Less),
            _ => None,
        }
    }
}

impl std::fmt::Display for LossDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:+.3} [{:+.3}, {:+.3}]", self.mean, self.low, self.high)
    }
}

/// What was measured of one model on one task; the names in a file are lm-evaluation-harness's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// Fraction of questions where the right answer has the highest log likelihood.
    #[serde(rename = "acc,none")]
    pub acc: f64,
    /// Standard error of `acc`: sqrt(p (1 - p) / (n - 1)).
    #[serde(rename = "acc_stderr,none")]
    pub acc_stderr: f64,
    /// Accuracy with each log likelihood divided by its answer's length in characters.
    #[serde(rename = "acc_norm,none")]
    pub acc_norm: f64,
    /// Standard error of `acc_norm`.
    #[serde(rename = "acc_norm_stderr,none")]
    pub acc_norm_stderr: f64,
    /// Accuracy with each log likelihood divided by its answer's length in bytes of UTF-8.
    #[serde(rename = "acc_bytes,none")]
    pub acc_bytes: f64,
    /// Standard error of `acc_bytes`.
    #[serde(rename = "acc_bytes_stderr,none")]
    pub acc_bytes_stderr: f64,
    /// Number of questions.
    pub n: usize,
    /// Fraction of questions where the model gives the same answer (by `acc`'s rule) as the first model; 1
    /// for the first.
    pub same_answer: f64,
    /// Log likelihood of every answer to every question, in nats, in the task's order; not part of the file.
    #[serde(skip)]
    pub log_likelihoods: Vec<Vec<f64>>,
}

impl Results {
    /// Returns the row of a name.
    pub fn row(&self, name: &str) -> Option<&EvalRow> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// Writes the results as JSON, the same bytes for the same results.
    ///
    /// # Errors
    /// Where a value cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_and_written_as_they_always_were() {
        let text = concat!(
            r#"{"rows":[{"name":"original","mlp_parameters":184320,"bytes":1105152,"perplexity":{"tiny":460.75},"#,
            r#""mean_loss":{"tiny":6.132},"loss_stderr":{"tiny":0.05},"delta_loss":{},"delta_stderr":{},"kl":{},"#,
            r#""kl_stderr":{},"top1_agreement":{},"tokens":{"tiny":511},"tasks":{"questions":{"acc,none":0.5,"#,
            r#""acc_stderr,none":0.12,"acc_norm,none":0.31,"acc_norm_stderr,none":0.11,"acc_bytes,none":0.31,"#,
            r#""acc_bytes_stderr,none":0.11,"n":16,"same_answer":1.0}}}],"settings":{"window":32,"stride":16,"#,
            r#""compared_with":"original","texts":{"tiny":{"view":"text","split":"held_out"}}}}"#
        );
        let results: Results = serde_json::from_str(text).unwrap();
        assert_eq!(results.row("original").unwrap().tasks["questions"].n, 16);
        assert_eq!(results.settings.texts.as_ref().unwrap()["tiny"].split, Side::HeldOut);
        assert_eq!(serde_json::to_string(&results).unwrap(), text);
    }

    #[test]
    fn differences_are_written_and_read_and_a_file_without_them_has_none() {
        let difference = LossDifference { mean: 0.25, low: -0.5, high: 0.75 };
        assert_eq!(difference.sign(), None, "0 lies in the interval");
        let mut results = Results {
            rows: vec![EvalRow { name: "slw".into(), ..EvalRow::default() }],
            ..Results::default()
        };
        results.rows[0].differences =
            BTreeMap::from([("prose".into(), BTreeMap::from([("original".into(), difference)]))]);
        results.settings.units = BTreeMap::from([("prose".into(), Units { unit: Unit::Document, count: 9 })]);
        let text = results.to_json().unwrap();
        assert!(text.contains("\"unit\": \"document\""), "{text}");
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
    }

    #[test]
    fn a_row_with_nothing_but_its_size_is_enough() {
        let results: Results =
            serde_json::from_str(r#"{"rows":[{"name":"a","mlp_parameters":1,"bytes":2}]}"#).unwrap();
        assert_eq!((results.row("a").unwrap().bytes, &results.settings), (2, &Settings::default()));
        assert!(results.row("b").is_none());
    }

    #[test]
    fn a_misspelt_key_of_a_request_is_named() {
        let text = r#"{"window":8,"stride":8,"rows":[{"name":"a","modle":"b"}]}"#;
        assert!(serde_json::from_str::<Request<String>>(text).unwrap_err().to_string().contains("modle"));
        let text = r#"{"window":8,"stride":8,"rows":[{"name":"a","model":"b"}],"texts":[{"name":"t","data":"d","split":"heldout"}]}"#;
        let error = serde_json::from_str::<Request<String>>(text).unwrap_err().to_string();
        assert!(error.contains("did you mean `held_out`?"), "{error}");
    }
}
