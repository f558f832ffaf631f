//! The sections of a configuration: one struct for each stage, and two for what several stages read.
//! `configs/smollm2-135m.toml` explains every key.

use std::num::{NonZeroU64, NonZeroUsize};

use serde::{Deserialize, Serialize};

use super::data::{Text, resolve_data, task_parts};
use super::values::{Device, Recipe, Row, optional, or_none};
use crate::error::{Result, refuse};
use crate::workspace::Workspace;
use sharp_schema::{Bf16, FloatType, Form, Start, StrategyName, TrainMlps, Weighting};

/// Makes a default that is not 0.
const fn count(n: usize) -> NonZeroUsize {
    match NonZeroUsize::new(n) {
        Some(n) => n,
        None => panic!("a default of 0"),
    }
}

/// Insists on a fraction strictly between 0 and 1.
fn check_fraction(key: &str, value: f64, of: &str) -> Result<()> {
    if !(value > 0.0 && value < 1.0) {
        refuse!(key, "{value} is not a fraction between 0 and 1{of}");
    }
    Ok(())
}

/// Insists on a positive, finite number.
fn check_rate(key: &str, value: f64) -> Result<()> {
    if !(value > 0.0 && value.is_finite()) {
        refuse!(key, "{value} is not a learning rate");
    }
    Ok(())
}

/// `[data]`: the text that several stages read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// The fraction of documents that training never sees; as many again are for validation.
    pub held_out: f64,
    /// The text that layers are compared on and matrices rounded against; required.
    pub calibration: String,
    /// The texts of both trainings; required.
    pub train: Vec<String>,
    /// Tokens in a row.
    pub sequence: NonZeroUsize,
}

impl Default for Data {
    fn default() -> Self {
        Self { held_out: 0.05, calibration: String::new(), train: Vec::new(), sequence: count(512) }
    }
}

impl Data {
    pub(super) fn check(&self, workspace: &Workspace) -> Result<()> {
        if self.calibration.is_empty() {
            refuse!("data.calibration", "missing; a text or JSONL file, or pinned:NAME");
        }
        if self.train.is_empty() {
            refuse!("data.train", "missing; a list of text or JSONL files, or pinned:NAME");
        }
        check_fraction("data.held_out", self.held_out, "")?;
        resolve_data(workspace, "data.calibration", &self.calibration)?;
        for typed in &self.train {
            resolve_data(workspace, "data.train", typed)?;
        }
        Ok(())
    }
}

/// `[import]`: the checkpoint in one form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Import {
    /// Type of the imported weights.
    pub dtype: FloatType,
}

impl Default for Import {
    fn default() -> Self {
        Self { dtype: FloatType::F32 }
    }
}

/// `[analyze]`: how alike the layers are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Analyze {
    /// Tokens of the calibration text.
    pub tokens: NonZeroUsize,
    /// A layer may use the MLP of a layer at most this far away.
    pub window: NonZeroUsize,
    /// Tokens on which the model's own loss is measured for each pair.
    #[serde(deserialize_with = "optional")]
    pub delta_nll_tokens: Option<NonZeroUsize>,
}

impl Default for Analyze {
    fn default() -> Self {
        Self { tokens: count(16_384), window: count(2), delta_nll_tokens: None }
    }
}

/// `[plan]`: what each layer of the compressed model runs with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// How layers are chosen.
    pub strategy: StrategyName,
    /// Group size of `groups`, `back` and `front`; the strategy's own by default.
    #[serde(deserialize_with = "optional")]
    pub group: Option<NonZeroUsize>,
    /// The pairs of the strategy `explicit`.
    #[serde(deserialize_with = "optional")]
    pub explicit: Option<String>,
    /// The measure that decides; the best one there is by default.
    #[serde(deserialize_with = "optional")]
    pub cost: Option<String>,
    /// The fraction of MLP parameters to save.
    pub remove: f64,
    /// The number of layers to replace, instead of `remove`.
    #[serde(deserialize_with = "optional")]
    pub targets: Option<NonZeroUsize>,
    /// Layers that keep their own MLP.
    pub keep: Vec<usize>,
    /// Recovery parameters of a replaced layer, as a fraction of one MLP.
    pub rho: f64,
    /// What a replaced layer gets.
    pub form: Form,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            strategy: StrategyName::Optimal,
            group: None,
            explicit: None,
            cost: None,
            remove: 0.2,
            targets: None,
            keep: Vec::new(),
            rho: 0.134,
            form: Form::LowRank,
        }
    }
}

impl Plan {
    /// Returns true where changed layers have parameters of their own, which a warm-up can fit.
    pub(crate) fn has_recovery(&self) -> bool {
        self.form != Form::Drop && self.strategy != StrategyName::None
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.targets.is_none() {
            check_fraction("plan.remove", self.remove, " of the MLP parameters")?;
        }
        if !(self.rho > 0.0 && self.rho < 1.0) {
            refuse!("plan.rho", "{} is not between 0 and 1", self.rho);
        }
        if (self.strategy == StrategyName::Explicit) != self.explicit.is_some() {
            refuse!(
                "plan.explicit",
                "goes together with plan.strategy = \"explicit\"; for example explicit = \"27<-26,29<-28\""
            );
        }
        if self.form == Form::None {
            refuse!("plan.form", "\"none\" stores nothing that could be trained; \"drop\" leaves MLPs out");
        }
        let (even, pruned) = (self.strategy == StrategyName::Even, self.form == Form::Pruned);
        if pruned && !even {
            refuse!(
                "plan.strategy",
                "form = \"pruned\" takes some neurons from every layer: strategy = \"even\""
            );
        }
        if even && !(pruned || self.form == Form::LowRankOnly) {
            refuse!(
                "plan.form",
                "strategy = \"even\" shares nothing: form = \"pruned\" or \"low_rank_only\""
            );
        }
        if even && self.targets.is_some() {
            refuse!(
                "plan.targets",
                "strategy = \"even\" replaces every layer but those of `keep`; give `remove` instead"
            );
        }
        Ok(())
    }
}

/// `[training]`: what the warm-up, the fine-tuning and the repair have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// Whether products are computed in bf16.
    pub bf16: Bf16,
    /// Where training computes.
    pub device: Device,
    /// Another seed for the order of training and first values; `seed` by default.
    #[serde(deserialize_with = "optional")]
    pub seed: Option<NonZeroU64>,
}

impl Default for Training {
    fn default() -> Self {
        Self { bf16: Bf16::Auto, device: Device::Auto, seed: None }
    }
}

/// `[warmup]`: each replaced layer fitted alone (SLW).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Warmup {
    /// Start of what replaced layers store.
    pub start: Start,
    /// How the squared error of each token counts.
    pub weighting: Weighting,
    /// Tokens of activations that each layer is fitted on.
    pub tokens: NonZeroUsize,
    /// Steps of a layer at most.
    pub steps: NonZeroUsize,
    /// Tokens in a step.
    pub batch_tokens: NonZeroUsize,
    /// Highest learning rate.
    pub lr: f64,
}

impl Default for Warmup {
    fn default() -> Self {
        Self {
            start: Start::Zero,
            weighting: Weighting::Residual,
            tokens: count(65_536),
            steps: count(400),
            batch_tokens: count(1024),
            lr: 1e-3,
        }
    }
}

impl Warmup {
    pub(super) fn check(&self) -> Result<()> {
        check_rate("warmup.lr", self.lr)
    }
}

/// `[finetune]`: all recovery parameters trained together (SFT).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Finetune {
    /// Steps.
    pub steps: NonZeroUsize,
    /// Tokens in a step.
    pub batch_tokens: NonZeroUsize,
    /// Highest learning rate.
    pub lr: f64,
    /// Weight of the original's whole distribution in the loss.
    pub distill: f64,
    /// Whether the RMS norms are trained as well.
    pub norms: bool,
    /// MLPs that are trained as well.
    pub mlps: TrainMlps,
    /// Neighbouring pruned layers that run the neurons of all of them; no file holds such a model.
    #[serde(deserialize_with = "optional")]
    pub pool: Option<NonZeroUsize>,
    /// Layers that run twice in a row; no file holds such a model.
    pub run_twice: Vec<usize>,
    /// A stopped run goes on from the last multiple of this many steps.
    pub save_every: NonZeroUsize,
    /// Whether to train once more without the warm-up, for the row `sft`.
    pub cold: bool,
}

impl Default for Finetune {
    fn default() -> Self {
        Self {
            steps: count(200),
            batch_tokens: count(2048),
            lr: 1e-3,
            distill: 0.0,
            norms: false,
            mlps: TrainMlps::None,
            pool: None,
            run_twice: Vec::new(),
            save_every: count(50),
            cold: true,
        }
    }
}

impl Finetune {
    /// Returns true where weights are used more often than a plan can say: the result is measured and not
    /// written.
    pub(crate) fn reuses_weights(&self) -> bool {
        self.pool.is_some() || !self.run_twice.is_empty()
    }

    pub(super) fn check(&self) -> Result<()> {
        check_rate("finetune.lr", self.lr)?;
        if !(0.0..=1.0).contains(&self.distill) {
            refuse!("finetune.distill", "{} is not between 0 and 1", self.distill);
        }
        Ok(())
    }
}

/// `[export]`: the compressed checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Export {
    /// Type of the weights.
    pub dtype: FloatType,
    /// Whether to write the effective weights as a plain checkpoint too.
    pub dense: bool,
}

impl Default for Export {
    fn default() -> Self {
        Self { dtype: FloatType::F16, dense: false }
    }
}

/// `[quantize]`: the files that the engine runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quantize {
    /// What each matrix becomes.
    pub recipe: Recipe,
    /// Tokens of the calibration text that rounding is fitted on; without them each weight is rounded alone.
    #[serde(deserialize_with = "optional", serialize_with = "or_none")]
    pub tokens: Option<NonZeroUsize>,
    /// Steps that train against the rounding.
    #[serde(deserialize_with = "optional")]
    pub repair_steps: Option<NonZeroUsize>,
    /// Highest learning rate of these steps.
    pub repair_lr: f64,
}

impl Default for Quantize {
    fn default() -> Self {
        Self { recipe: Recipe::Q4, tokens: Some(count(4096)), repair_steps: None, repair_lr: 6e-4 }
    }
}

impl Quantize {
    pub(super) fn check(&self, workspace: &Workspace) -> Result<()> {
        if let Recipe::File(path) = &self.recipe {
            resolve_data(workspace, "quantize.recipe", path)?;
        }
        check_rate("quantize.repair_lr", self.repair_lr)
    }

    /// Returns the steps of the repair. 16-bit weights have no rounding to repair.
    pub fn repair(&self) -> Option<NonZeroUsize> {
        self.repair_steps.filter(|_| self.recipe != Recipe::F16)
    }
}

/// `[evaluate]`: perplexity and task accuracy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluate {
    /// The models that are measured.
    pub rows: Vec<Row>,
    /// Texts for perplexity: `name=data`, or `name=data@side`.
    pub texts: Vec<String>,
    /// Tokens of each text.
    pub text_tokens: NonZeroUsize,
    /// Tokens that the model sees at once.
    pub window: NonZeroUsize,
    /// How far that window moves.
    pub stride: NonZeroUsize,
    /// Multiple-choice tasks: `pinned:NAME`, or `name=path`.
    pub tasks: Vec<String>,
    /// Questions of each task; all by default.
    #[serde(deserialize_with = "optional")]
    pub task_limit: Option<NonZeroUsize>,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self {
            rows: Row::ALL.into_iter().filter(|row| *row != Row::UnrepairedQ4).collect(),
            texts: Vec::new(),
            text_tokens: count(8192),
            window: count(512),
            stride: count(512),
            tasks: Vec::new(),
            task_limit: None,
        }
    }
}

impl Evaluate {
    pub(super) fn check(&self, workspace: &Workspace) -> Result<()> {
        if self.stride > self.window {
            refuse!(
                "evaluate.stride",
                "{} is more than evaluate.window {}; tokens between would not be counted",
                self.stride,
                self.window
            );
        }
        if !self.rows.contains(&Row::Original) {
            refuse!("evaluate.rows", "must contain \"original\"; the others are compared with it");
        }
        for text in &self.texts {
            resolve_data(workspace, "evaluate.texts", Text::parse(text)?.data)?;
        }
        for task in &self.tasks {
            resolve_data(workspace, "evaluate.tasks", task_parts(task).1)?;
        }
        Ok(())
    }
}

/// `[benchmark]`: speed and memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Benchmark {
    /// Tokens of the prompt that prefill is measured on.
    pub prompt_tokens: NonZeroUsize,
    /// Tokens that decoding is measured on.
    pub decode_tokens: NonZeroUsize,
    /// How often each measurement is repeated.
    pub repeats: NonZeroUsize,
}

impl Default for Benchmark {
    fn default() -> Self {
        Self { prompt_tokens: count(512), decode_tokens: count(128), repeats: count(3) }
    }
}

/// `[report]`: the page for a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Report {
    /// Prompts of the sample text.
    pub prompts: Vec<String>,
    /// Tokens of each sample.
    pub sample_tokens: usize,
    /// Other runs that this one is compared with where they are there, as `name=folder`.
    pub compare_with: Vec<String>,
}

impl Default for Report {
    fn default() -> Self {
        Self { prompts: Vec::new(), sample_tokens: 64, compare_with: Vec::new() }
    }
}

impl Report {
    pub(super) fn check(&self) -> Result<()> {
        self.compared().map(drop)
    }

    /// Returns names and folders of the runs that this one is compared with; they need not be there.
    ///
    /// # Errors
    /// For an entry that is not `name=folder`.
    pub fn compared(&self) -> Result<Vec<(&str, &str)>> {
        let mut all = Vec::new();
        for run in &self.compare_with {
            match run.split_once('=') {
                Some((name, folder)) if is_run_name(name) && !folder.is_empty() => all.push((name, folder)),
                _ => refuse!(
                    "report.compare_with",
                    "{run:?} is not name=folder of a run, the name without . / and \\"
                ),
            }
        }
        Ok(all)
    }
}

/// Returns true for a name that `compare_with` may have before `=`.
fn is_run_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '.'])
}
