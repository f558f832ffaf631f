//! `config.json` of a compact checkpoint: a model's configuration and its plan in one file.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::hf::read_text;
use crate::config::{ModelConfig, object};
use crate::error::{Error, Result};
use crate::json;
use crate::plan::Plan;
use crate::tokenizer::eos_ids;

/// The largest `config.json` or `generation_config.json` believed, in bytes.
const MAX_JSON: u64 = 1 << 20;

impl ModelConfig {
    /// Reads the text of a `config.json`. A compact checkpoint's `sharp_config` is left out; see
    /// [`crate::ModelSource::plan`].
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Config`] with the key at fault, [`Error::Unsupported`] for another
    /// architecture.
    pub fn from_json(text: &str) -> Result<Self> {
        Ok(parse_with_plan(Path::new("config.json"), text)?.0)
    }

    /// Reads `config.json`, given the file or its folder.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json`], and [`Error::Io`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Ok(load_with_plan(path.as_ref())?.0)
    }

    /// `config.json` of a compact checkpoint: every key of [`ModelConfig::to_json`], a `model_type` of its
    /// own, and the plan as `sharp_config`.
    pub fn to_json_with_plan(&self, plan: &Plan) -> Map<String, Value> {
        let family = self.family();
        let mut all = self.to_json();
        all.insert("architectures".into(), json!([family.compact_architecture]));
        all.insert("model_type".into(), json!(family.compact_model_type));
        let plan = serde_json::to_value(plan).expect("a plan has only text and numbers");
        let mut sharp = object(plan);
        sharp.insert("base_model_type".into(), json!(family.model_type));
        all.insert("sharp_config".into(), Value::Object(sharp));
        all
    }
}

/// Reads `config.json` (the file or its folder) and, from a compact checkpoint, its plan. Of a folder, ends
/// of text that only `generation_config.json` names are among the configuration's.
///
/// # Errors
/// As [`parse_with_plan`], and [`Error::Io`].
pub(crate) fn load_with_plan(path: &Path) -> Result<(ModelConfig, Option<Plan>)> {
    if !path.is_dir() {
        return parse_with_plan(path, &read_text(path, MAX_JSON)?);
    }
    let file = path.join("config.json");
    let (mut config, plan) = parse_with_plan(&file, &read_text(&file, MAX_JSON)?)?;
    let generation = path.join("generation_config.json");
    if generation.is_file() {
        let text = read_text(&generation, MAX_JSON)?;
        let named: Map<String, Value> = json::parse(&generation, text.as_bytes())?;
        for id in eos_ids(&named) {
            // What has no row of the head is never chosen.
            if (id as usize) < config.vocab_size && !config.eos_token_ids.contains(&id) {
                config.eos_token_ids.push(id);
            }
        }
    }
    Ok((config, plan))
}

/// Reads the text of a `config.json` and, from a compact checkpoint, its plan, checked against the model.
/// `path` is for messages.
///
/// # Errors
/// [`Error::Json`], [`Error::Config`] with the key at fault, [`Error::Unsupported`] for another architecture,
/// [`Error::Plan`] for a plan that does not fit.
pub(crate) fn parse_with_plan(path: &Path, text: &str) -> Result<(ModelConfig, Option<Plan>)> {
    let mut raw: Map<String, Value> = json::parse(path, text.as_bytes())?;
    let sharp = raw.remove("sharp_config");
    let named_compact =
        raw.get("model_type").and_then(Value::as_str).is_some_and(|t| t.starts_with("sharp_"));
    let config = ModelConfig::from_map(path, raw)?;
    let plan = match sharp {
        None if named_compact => {
            return Err(Error::config(
                path,
                "sharp_config",
                "missing, though model_type says the MLPs are shared",
            ));
        }
        None => None,
        Some(mut value) => {
            if let Some(base) = value.as_object_mut().and_then(|o| o.remove("base_model_type"))
                && base.as_str() != Some(config.family().model_type)
            {
                let what = format!("{base}, but the model is {}", config.family().model_type);
                return Err(Error::config(path, "sharp_config.base_model_type", what));
            }
            let plan = Plan::from_json_value(path, value)?;
            plan.validate(&config)?;
            Some(plan)
        }
    };
    Ok((config, plan))
}
