//! A checked configuration: all sections, and what they have to do with each other.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use sharp_schema::{Form, StrategyName, TrainMlps};

use super::data::ModelSource;
use super::sections::{
    Analyze, Benchmark, Data, Evaluate, Export, Finetune, Import, Plan, Quantize, Report, Training, Warmup,
};
use super::values::{Row, optional};
use crate::error::{Result, refuse};
use crate::workspace::Workspace;

/// A checked configuration. `configs/smollm2-135m.toml` says what each key means; a test holds that it names
/// them all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The original: a Hugging Face directory, a GGUF file, `pinned:NAME` or `synth:tiny`; required.
    pub model: String,
    /// Seed of everything that is random.
    pub seed: u64,
    /// Threads of the programs; one for each core by default.
    #[serde(deserialize_with = "optional")]
    pub threads: Option<NonZeroUsize>,
    /// The text that several stages read.
    pub data: Data,
    /// The stage of that name.
    pub import: Import,
    /// The stage of that name.
    pub analyze: Analyze,
    /// The stage of that name.
    pub plan: Plan,
    /// What all training has in common.
    pub training: Training,
    /// The stage of that name.
    pub warmup: Warmup,
    /// The stage of that name.
    pub finetune: Finetune,
    /// The stage of that name.
    pub export: Export,
    /// The stage of that name.
    pub quantize: Quantize,
    /// The stage of that name.
    pub evaluate: Evaluate,
    /// The stage of that name.
    pub benchmark: Benchmark,
    /// The stage of that name.
    pub report: Report,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: String::new(),
            seed: 1,
            threads: None,
            data: Data::default(),
            import: Import::default(),
            analyze: Analyze::default(),
            plan: Plan::default(),
            training: Training::default(),
            warmup: Warmup::default(),
            finetune: Finetune::default(),
            export: Export::default(),
            quantize: Quantize::default(),
            evaluate: Evaluate::default(),
            benchmark: Benchmark::default(),
            report: Report::default(),
        }
    }
}

impl Config {
    /// Checks each section, and what sections have to do with each other.
    pub(super) fn check(&self, workspace: &Workspace) -> Result<()> {
        self.model_source(workspace)?;
        self.data.check(workspace)?;
        self.plan.check()?;
        self.warmup.check()?;
        self.finetune.check()?;
        self.quantize.check(workspace)?;
        self.evaluate.check(workspace)?;
        self.report.check()?;
        let (none, all_mlps) =
            (self.plan.strategy == StrategyName::None, self.finetune.mlps == TrainMlps::All);
        if none && !all_mlps {
            refuse!("plan.strategy", "\"none\" leaves nothing to train but finetune.mlps = \"all\"");
        }
        if self.plan.form == Form::Drop && !self.finetune.norms && !all_mlps {
            refuse!(
                "plan.form",
                "\"drop\" leaves nothing to train but finetune.norms = true or finetune.mlps = \"all\""
            );
        }
        Ok(())
    }

    /// Resolves where the model comes from.
    pub(crate) fn model_source(&self, workspace: &Workspace) -> Result<ModelSource> {
        ModelSource::parse(workspace, &self.model)
    }

    /// Returns true where fine-tuning without the warm-up is wanted and differs from that with it.
    pub(crate) fn trains_cold(&self) -> bool {
        self.finetune.cold && self.plan.has_recovery()
    }

    /// Returns the rows that can be measured, and a sentence for each that is left out.
    pub fn rows(&self) -> (Vec<Row>, Vec<String>) {
        let (mut rows, mut left_out) = (Vec::new(), Vec::new());
        for &row in &self.evaluate.rows {
            match self.obstacle(row) {
                None => rows.push(row),
                Some(why) => left_out.push(format!("the row {row} is left out: {why}")),
            }
        }
        (rows, left_out)
    }

    /// Says why a row cannot be measured, if so.
    fn obstacle(&self, row: Row) -> Option<&'static str> {
        match row {
            Row::Slw | Row::Sft if self.plan.strategy == StrategyName::None => {
                Some("plan.strategy = \"none\" changes no layer that a warm-up could fit")
            }
            Row::Slw | Row::Sft if !self.plan.has_recovery() => {
                Some("plan.form = \"drop\" has no recovery parameters that a warm-up could fit")
            }
            Row::Sft if !self.finetune.cold => Some("finetune.cold = false, and nothing else trains it"),
            Row::UnrepairedQ4 if self.quantize.repair_steps.is_none() => {
                Some("quantize.repair_steps is not given, so that nothing is repaired")
            }
            Row::UnrepairedQ4 if self.quantize.repair().is_none() => {
                Some("quantize.recipe = \"f16\" has no rounding to repair")
            }
            _ => None,
        }
    }
}
