//! A model's shape: `config.json` of a Hugging Face checkpoint, read, checked and written back.

use std::f64::consts::PI;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::family::{FAMILIES, Family};
use crate::plan::Plan;
use crate::projection::Projection;
use crate::shape::{self, LayerKind, Scales};

/// How RoPE's frequencies are stretched for contexts longer than those the model was first trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1's: high frequencies stay, low ones are divided by `factor`, between them a smooth passage.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Context length before stretching, in tokens.
        original_max_position_embeddings: usize,
    },
}

/// The shape of a Llama-like model, checked: every size is at least 1 and small enough to multiply.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `LlamaForCausalLM`: the key into [`FAMILIES`].
    pub architecture: String,
    /// Width of the residual stream, `d`.
    pub hidden_size: usize,
    /// Width of the MLP's hidden layer, `f`.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even. Not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMS norms.
    pub rms_norm_eps: f64,
    /// Base of RoPE's frequencies.
    pub rope_theta: f64,
    /// How RoPE's frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether query, key and value have biases.
    pub attention_bias: bool,
    /// Whether the attention output has a bias.
    pub attention_output_bias: bool,
    /// Whether the MLP projections have biases.
    pub mlp_bias: bool,
    /// Whether query and key heads are normed before RoPE.
    pub qk_norm: bool,
    /// Constant factors and caps.
    pub scales: Scales,
    /// What each layer's attention does, `(num_hidden_layers)`.
    pub layer_kinds: Vec<LayerKind>,
    /// Base of RoPE's frequencies in layers with a RoPE of their own.
    pub local_rope_theta: Option<f64>,
    /// Token that begins a text, where the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// All keys of `config.json` as found (without `sharp_config`); written back by [`ModelConfig::to_json`].
    pub raw: Map<String, Value>,
}

/// Largest sizes believed; past them a file is damaged or hostile.
const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 31;

impl ModelConfig {
    /// Whether both are the same model: all that a computation depends on is equal. Other keys of the file may differ, as that of the
    /// stored weights' type does between a checkpoint and what is exported of it.
    pub fn same_model(&self, other: &Self) -> bool {
        Self { raw: Map::new(), ..self.clone() } == Self { raw: Map::new(), ..other.clone() }
    }

    /// A Llama of the given shape with the usual rest: RoPE base 10,000, epsilon 1e-5, head width
    /// `hidden_size / heads`, 2,048 positions, tied embeddings, no biases.
    ///
    /// # Errors
    /// [`Error::Config`] if the sizes cannot be.
    pub fn llama(
        hidden_size: usize,
        intermediate_size: usize,
        layers: usize,
        heads: usize,
        kv_heads: usize,
        vocab_size: usize,
    ) -> Result<Self> {
        let raw = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocab_size,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": true,
        });
        Self::from_map(Path::new("(memory)"), object(raw))
    }

    /// Reads the text of a `config.json`. A compact checkpoint's `sharp_config` is left out; see
    /// [`parse_with_plan`].
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Config`] with the key at fault, [`Error::Unsupported`] for another architecture.
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

    /// Reads the keys of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json`].
    pub fn from_map(path: &Path, mut raw: Map<String, Value>) -> Result<Self> {
        raw.remove("sharp_config");
        // Names Python files beside the checkpoint, which do not go where it goes.
        raw.remove("auto_map");
        let family = family_of(path, &raw)?;
        let keys = Keys { path, raw: &raw };
        let num_hidden_layers = keys.size("num_hidden_layers", MAX_LAYERS)?;
        let layer_kinds = shape::layer_kinds(&keys, family, num_hidden_layers)?;
        // Said outright, since another reader's default may be another.
        if family.default_window.is_some() || family.read_as.is_some() {
            let window = raw.get("sliding_window").cloned().unwrap_or_else(|| json!(family.default_window));
            raw.insert("sliding_window".into(), window);
        }
        let family = family.read_as.and_then(Family::by_architecture).unwrap_or(family);
        raw.insert("architectures".into(), json!([family.architecture]));
        raw.insert("model_type".into(), json!(family.model_type));
        let keys = Keys { path, raw: &raw };
        refuse_unsupported(path, family, &keys)?;

        let hidden_size = keys.size("hidden_size", MAX_WIDTH)?;
        let num_attention_heads = keys.size("num_attention_heads", MAX_WIDTH)?;
        let num_key_value_heads =
            keys.optional_size("num_key_value_heads", MAX_WIDTH)?.unwrap_or(num_attention_heads);
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(keys.fault(
                "num_key_value_heads",
                format!("{num_key_value_heads} does not divide {num_attention_heads} query heads"),
            ));
        }
        let head_dim = match keys.optional_size("head_dim", MAX_WIDTH)? {
            Some(dim) => dim,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(keys.fault(
                    "num_attention_heads",
                    format!("{num_attention_heads} heads do not divide a hidden size of {hidden_size}"),
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(keys.fault("head_dim", format!("{head_dim} is odd; RoPE turns pairs")));
        }
        let max_position_embeddings =
            keys.optional_size("max_position_embeddings", MAX_POSITIONS)?.unwrap_or(2048);
        let Rope { theta: rope_theta, scaling: rope_scaling, local: local_rope_theta } =
            rope(&keys, family, max_position_embeddings)?;
        let flag =
            |presence: crate::family::Presence| presence.resolve(|k| raw.get(k).and_then(Value::as_bool));

        let config = Self {
            architecture: family.architecture.to_owned(),
            hidden_size,
            intermediate_size: keys.size("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: keys.size("vocab_size", MAX_VOCAB)?,
            max_position_embeddings,
            rms_norm_eps: keys.positive("rms_norm_eps", Some(1e-6))?,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.bool("tie_word_embeddings")?.unwrap_or(family.default_tied),
            attention_bias: flag(family.qkv_bias),
            attention_output_bias: flag(family.output_bias),
            mlp_bias: flag(family.mlp_bias),
            qk_norm: flag(family.qk_norm),
            scales: shape::scales(&keys, family, hidden_size, head_dim)?,
            layer_kinds,
            local_rope_theta,
            bos_token_id: keys.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: keys.tokens("eos_token_id")?,
            raw: raw.clone(),
        };
        config.check_sizes(path)?;
        Ok(config)
    }

    /// The family's table.
    pub fn family(&self) -> &'static Family {
        // `architecture` is public; a value no family has behaves as Llama's.
        Family::by_architecture(&self.architecture).unwrap_or(&crate::family::LLAMA)
    }

    /// Every key of `config.json`: those found when reading, with this configuration's own values over them.
    pub fn to_json(&self) -> Map<String, Value> {
        let family = self.family();
        let mut all = self.raw.clone();
        let mut put = |key: &str, value: Value| drop(all.insert(key.to_owned(), value));
        put("architectures", json!([family.architecture]));
        put("model_type", json!(family.model_type));
        for key in ["hidden_act", "hidden_activation"] {
            if key == "hidden_act" || self.raw.contains_key(key) {
                put(key, json!(family.activation.names().first()));
            }
        }
        put("hidden_size", json!(self.hidden_size));
        put("intermediate_size", json!(self.intermediate_size));
        put("num_hidden_layers", json!(self.num_hidden_layers));
        put("num_attention_heads", json!(self.num_attention_heads));
        put("num_key_value_heads", json!(self.num_key_value_heads));
        put("head_dim", json!(self.head_dim));
        put("vocab_size", json!(self.vocab_size));
        put("max_position_embeddings", json!(self.max_position_embeddings));
        put("rms_norm_eps", json!(self.rms_norm_eps));
        put("rope_theta", json!(self.rope_theta));
        put("tie_word_embeddings", json!(self.tie_word_embeddings));
        if let crate::family::Presence::Key(key) = family.qkv_bias {
            put(key, json!(self.attention_bias));
        }
        if let crate::family::Presence::Key(key) = family.mlp_bias {
            put(key, json!(self.mlp_bias));
        }
        if let Some(theta) = self.local_rope_theta {
            put("rope_local_base_freq", json!(theta));
        }
        if let Some(bos) = self.bos_token_id {
            put("bos_token_id", json!(bos));
        }
        match self.eos_token_ids.as_slice() {
            [] => {}
            [one] => put("eos_token_id", json!(one)),
            many => put("eos_token_id", json!(many)),
        }
        let scaling = match self.rope_scaling {
            RopeScaling::Default => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        };
        all.insert("rope_scaling".into(), scaling);
        // Written by transformers 5; the same facts as the two keys above, which every version reads.
        all.remove("rope_parameters");
        all
    }

    /// `config.json` of a compact checkpoint: every key of [`ModelConfig::to_json`], a `model_type` of its own, and
    /// the plan as `sharp_config`.
    pub fn to_json_with_plan(&self, plan: &Plan) -> Map<String, Value> {
        let family = self.family();
        let mut all = self.to_json();
        all.insert("architectures".into(), json!([family.compact_architecture]));
        all.insert("model_type".into(), json!(family.compact_model_type));
        let mut sharp = object(serde_json::to_value(plan).unwrap_or_default());
        sharp.insert("base_model_type".into(), json!(family.model_type));
        all.insert("sharp_config".into(), Value::Object(sharp));
        all
    }

    /// `num_attention_heads * head_dim`: rows of the query projection.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// `num_key_value_heads * head_dim`: rows of the key projection and of the value projection.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Weights of one layer's MLP, `3 * hidden_size * intermediate_size`. Biases, where there are any, stay with
    /// their layer when an MLP is shared and are not counted.
    pub fn mlp_parameters_per_layer(&self) -> u64 {
        Projection::ALL
            .iter()
            .map(|p| {
                let (rows, cols) = p.shape(self);
                rows as u64 * cols as u64
            })
            .sum()
    }

    /// Weights of the whole dense model; a tied head counts once.
    pub fn total_parameters(&self) -> u64 {
        crate::tensors::TENSORS
            .iter()
            .filter(|r| r.when.holds(self))
            .map(|r| {
                let n: u64 = r.shape.iter().map(|d| d.of(self) as u64).product();
                if r.per_layer() { n * self.num_hidden_layers as u64 } else { n }
            })
            .sum()
    }

    /// RoPE's angles per position, `(head_dim / 2)`, in radians, with the scaling applied: pair `i` of a head at
    /// position `p` turns by `p * inv_freq[i]`. Pair `i` is the dimensions `(i, i + head_dim / 2)`.
    pub fn inv_freq(&self) -> Vec<f64> {
        self.plain_freq(self.rope_theta)
            .map(|freq| {
                match self.rope_scaling {
                    RopeScaling::Default => freq,
                    RopeScaling::Linear { factor } => freq / factor,
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_max_position_embeddings,
                    } => {
                        // How often the pair turns within the original context.
                        let turns = original_max_position_embeddings as f64 * freq / (2.0 * PI);
                        if turns > high_freq_factor {
                            freq
                        } else if turns < low_freq_factor {
                            freq / factor
                        } else {
                            let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                            keep * freq + (1.0 - keep) * freq / factor
                        }
                    }
                }
            })
            .collect()
    }

    /// The same for layers with a RoPE of their own, which is not scaled; `None` where the model has no such layers.
    pub fn local_inv_freq(&self) -> Option<Vec<f64>> {
        self.local_rope_theta.map(|theta| self.plain_freq(theta).collect())
    }

    fn plain_freq(&self, theta: f64) -> impl Iterator<Item = f64> {
        let width = self.head_dim;
        (0..width / 2).map(move |i| theta.powf(-2.0 * i as f64 / width as f64))
    }

    /// What a layer's attention does; Llama's for a layer the model has not.
    pub fn layer_kind(&self, layer: usize) -> LayerKind {
        self.layer_kinds.get(layer).copied().unwrap_or(LayerKind::PLAIN)
    }

    /// What of the model is not as in Llama, in words, for a program that knows Llama's layers only. Sliding windows count only where
    /// sequences of `tokens` outgrow them.
    pub fn departures(&self, tokens: usize) -> Vec<&'static str> {
        shape::departures(self, tokens)
    }

    fn check_sizes(&self, path: &Path) -> Result<()> {
        let fault = |field: &str, what: String| Err(Error::config(path, field, what));
        if self.query_size() > MAX_WIDTH {
            return fault("head_dim", format!("{} heads of {}", self.num_attention_heads, self.head_dim));
        }
        // 2^44 parameters are 70 TB in float32: past that it is not a model.
        let layers = self.num_hidden_layers as u128;
        let (d, f) = (self.hidden_size as u128, self.intermediate_size as u128);
        let total =
            layers * (3 * d * f + 4 * d * self.query_size() as u128) + 2 * d * self.vocab_size as u128;
        if total > 1 << 44 {
            return fault("hidden_size", format!("the model would have {total} parameters"));
        }
        if let Some(token) =
            self.eos_token_ids.iter().chain(&self.bos_token_id).find(|&&t| t as usize >= self.vocab_size)
        {
            return fault("eos_token_id", format!("token {token} in a vocabulary of {}", self.vocab_size));
        }
        Ok(())
    }
}

/// Reads `config.json` (the file or its folder) and, from a compact checkpoint, its plan.
///
/// # Errors
/// As [`parse_with_plan`], and [`Error::Io`].
pub fn load_with_plan(path: &Path) -> Result<(ModelConfig, Option<Plan>)> {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    let text = crate::hf::read_text(&file, 16 << 20)?;
    parse_with_plan(&file, &text)
}

/// Reads the text of a `config.json` and, from a compact checkpoint, its plan, checked against the model.
/// `path` is for messages.
///
/// # Errors
/// [`Error::Json`], [`Error::Config`] with the key at fault, [`Error::Unsupported`] for another architecture,
/// [`Error::Plan`] for a plan that does not fit.
pub fn parse_with_plan(path: &Path, text: &str) -> Result<(ModelConfig, Option<Plan>)> {
    let mut raw: Map<String, Value> = serde_json::from_str(text).map_err(Error::json(path))?;
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

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn family_of(path: &Path, raw: &Map<String, Value>) -> Result<&'static Family> {
    let architecture = raw.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    let model_type = raw.get("model_type").and_then(Value::as_str);
    let found = match (architecture, model_type) {
        (Some(a), _) => Family::by_architecture(a),
        (None, Some(t)) => Family::by_model_type(t),
        (None, None) => return Err(Error::config(path, "architectures", "missing")),
    };
    found.ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|f| f.architecture).collect();
        let name = architecture.or(model_type).unwrap_or_default();
        Error::unsupported(path, format!("architecture `{name}`; known are {}", known.join(", ")))
    })
}

/// Keys of `config.json` with their checks.
pub(crate) struct Keys<'a> {
    pub(crate) path: &'a Path,
    pub(crate) raw: &'a Map<String, Value>,
}

impl Keys<'_> {
    pub(crate) fn fault(&self, field: &str, what: impl std::fmt::Display) -> Error {
        Error::config(self.path, field, what)
    }

    /// A key's value; JSON's null counts as absent, as it does in transformers.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.raw.get(field).filter(|v| !v.is_null())
    }

    pub(crate) fn optional_size(&self, field: &str, most: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok());
        match n {
            Some(n) if n >= 1 && n <= most => Ok(Some(n)),
            _ => Err(self.fault(field, format!("{value} is not a whole number from 1 to {most}"))),
        }
    }

    pub(crate) fn size(&self, field: &str, most: usize) -> Result<usize> {
        self.optional_size(field, most)?.ok_or_else(|| self.fault(field, "missing"))
    }

    pub(crate) fn positive(&self, field: &str, default: Option<f64>) -> Result<f64> {
        match self.get(field) {
            None => default.ok_or_else(|| self.fault(field, "missing")),
            Some(value) => match value.as_f64() {
                Some(x) if x > 0.0 && x.is_finite() => Ok(x),
                _ => Err(self.fault(field, format!("{value} is not a positive number"))),
            },
        }
    }

    pub(crate) fn bool(&self, field: &str) -> Result<Option<bool>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(value) => Err(self.fault(field, format!("{value} is not true or false"))),
        }
    }

    /// One token id, a list of them, or none.
    fn tokens(&self, field: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| {
            let id = value.as_u64().and_then(|n| u32::try_from(n).ok());
            id.ok_or_else(|| self.fault(field, format!("{value} is not a token id")))
        };
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(all)) => all.iter().map(one).collect(),
            // Some files write -1 for "none".
            Some(value) if value.as_i64() == Some(-1) => Ok(Vec::new()),
            Some(value) => Ok(vec![one(value)?]),
        }
    }
}

/// What would run and give wrong numbers in silence.
fn refuse_unsupported(path: &Path, family: &Family, keys: &Keys<'_>) -> Result<()> {
    // Where both are there, the newer key counts.
    let activation = keys.get("hidden_activation").or_else(|| keys.get("hidden_act")).and_then(Value::as_str);
    let known = family.activation.names();
    if let Some(activation) = activation
        && !known.contains(&activation)
    {
        let what =
            format!("activation `{activation}` in a {}; only {}", family.architecture, known.join(", "));
        return Err(Error::unsupported(path, what));
    }
    if keys.get("quantization_config").is_some() {
        return Err(Error::unsupported(
            path,
            "a checkpoint that another tool quantised (`quantization_config`); give the original",
        ));
    }
    let inner = keys.get("rope_parameters").and_then(|r| r.get("partial_rotary_factor"));
    let partial = keys.get("partial_rotary_factor").or(inner).and_then(Value::as_f64);
    if partial.is_some_and(|f| f != 1.0) {
        return Err(Error::unsupported(path, "partial_rotary_factor other than 1"));
    }
    if keys.get("use_bidirectional_attention").and_then(Value::as_bool) == Some(true) {
        return Err(Error::unsupported(path, "use_bidirectional_attention"));
    }
    Ok(())
}

struct Rope {
    theta: f64,
    scaling: RopeScaling,
    local: Option<f64>,
}

/// RoPE's base and scaling, from transformers 4's keys or transformers 5's `rope_parameters`.
fn rope(keys: &Keys<'_>, family: &Family, positions: usize) -> Result<Rope> {
    let field = if keys.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let theta = keys.positive("rope_theta", Some(family.default_rope_theta))?;
    let mut local = match family.default_local_rope_theta {
        None => None,
        default => Some(keys.positive("rope_local_base_freq", default)?),
    };
    let Some(value) = keys.get(field) else {
        return Ok(Rope { theta, scaling: RopeScaling::Default, local });
    };
    let Some(mut map) = value.as_object() else {
        return Err(keys.fault(field, format!("{value} is not an object")));
    };
    // One for layers of each type, in the families that have two.
    if let (Some(_), Some(global)) = (local, map.get("full_attention").and_then(Value::as_object)) {
        if let Some(sliding) = map.get("sliding_attention").and_then(Value::as_object) {
            local = Some(Keys { path: keys.path, raw: sliding }.positive("rope_theta", local)?);
        }
        map = global;
    }
    let inner = Keys { path: keys.path, raw: map };
    let theta = inner.positive("rope_theta", Some(theta))?;
    let kind =
        inner.get("rope_type").or_else(|| inner.get("type")).and_then(Value::as_str).unwrap_or("default");
    let stretch = |key: &str| match inner.positive(key, None) {
        Ok(x) if x >= 1.0 => Ok(x),
        Ok(x) => Err(keys.fault(field, format!("`{key}` is {x}, below 1"))),
        Err(_) => Err(keys.fault(field, format!("`{key}` is missing or not a positive number"))),
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: stretch("factor")? },
        "llama3" => {
            let low_freq_factor = inner.positive("low_freq_factor", None)?;
            let high_freq_factor = inner.positive("high_freq_factor", None)?;
            if high_freq_factor <= low_freq_factor {
                return Err(keys.fault(
                    field,
                    format!(
                        "high_freq_factor {high_freq_factor} is not above low_freq_factor {low_freq_factor}"
                    ),
                ));
            }
            RopeScaling::Llama3 {
                factor: stretch("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: inner
                    .optional_size("original_max_position_embeddings", MAX_POSITIONS)?
                    .unwrap_or(positions),
            }
        }
        other => {
            return Err(Error::unsupported(
                keys.path,
                format!("RoPE scaling `{other}`; known are default, linear, llama3"),
            ));
        }
    };
    Ok(Rope { theta, scaling, local })
}
