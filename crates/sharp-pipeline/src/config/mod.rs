//! The configuration of a run: TOML by stage, every key checked before anything starts.
//!
//! A file may begin with `extends = "other.toml"` and then says only what differs. Over the files lie the values of
//! `--set section.key=value`. What no layer says has the default of its section ([`sections`]).

mod data;
mod layers;
mod old_keys;
mod sections;
#[cfg(test)]
mod tests;
mod values;

use std::num::NonZeroUsize;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub(crate) use data::{ModelSource, Text, resolve_data, task_parts};
#[cfg(test)]
pub(crate) use layers::keys;
pub(crate) use layers::{assignments, check_keys, dotted_keys, lay_over, read_layers};
use sections::refuse;
pub use sections::{
    Analyze, Benchmark, Data, Evaluate, Export, Finetune, Import, Plan, Quantize, Report, Training, Warmup,
};
use values::optional;
pub use values::{Device, Recipe, Row};

use crate::error::{Context as _, Error, Result};
use crate::workspace::Workspace;
use sharp_schema::{Form, TrainMlps};

/// A checked configuration. `configs/smollm2-135m.toml` says what each key means; a test holds that it names them all.
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
    /// Reads a configuration file and those that it extends, lays `--set` values over it and checks the result.
    ///
    /// # Errors
    /// Where a file cannot be read, or a key or value cannot be used; the message names the key.
    pub fn load(workspace: &Workspace, file: &Path, overrides: &[String]) -> Result<Self> {
        let mut table = read_layers(workspace, file)?;
        lay_over(&mut table, assignments(overrides)?);
        Self::from_table(workspace, table).with_context(|| format!("in the configuration {}", file.display()))
    }

    /// Takes a configuration from its keys and checks it.
    ///
    /// # Errors
    /// Where a key or value cannot be used.
    pub fn from_table(workspace: &Workspace, table: toml::Table) -> Result<Self> {
        check_keys(&table)?;
        let config: Self = serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| {
            let key = error.path().to_string();
            Error::Setting { key, message: error.into_inner().to_string().trim_end().to_owned() }
        })?;
        config.check(workspace)?;
        Ok(config)
    }

    /// Checks each section, and what sections have to do with each other.
    fn check(&self, workspace: &Workspace) -> Result<()> {
        self.model_source(workspace)?;
        self.data.check(workspace)?;
        self.plan.check()?;
        self.warmup.check()?;
        self.finetune.check()?;
        self.quantize.check(workspace)?;
        self.evaluate.check(workspace)?;
        self.report.check()?;
        if self.plan.form == Form::Drop && !self.finetune.norms && self.finetune.mlps != TrainMlps::All {
            refuse!(
                "plan.form",
                "\"drop\" leaves nothing to train but finetune.norms = true or finetune.mlps = \"all\""
            );
        }
        Ok(())
    }

    /// Where the model comes from.
    pub(crate) fn model_source(&self, workspace: &Workspace) -> Result<ModelSource> {
        ModelSource::parse(workspace, &self.model)
    }

    /// True where the fine-tuning without the warm-up is another one than with it.
    pub(crate) fn trains_cold(&self) -> bool {
        self.finetune.cold && self.plan.form != Form::Drop
    }

    /// The rows that can be measured, and a sentence for each that is left out.
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

    /// Why a row cannot be measured, if so.
    fn obstacle(&self, row: Row) -> Option<&'static str> {
        let drop = self.plan.form == Form::Drop;
        match row {
            Row::Slw | Row::Sft if drop => {
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
