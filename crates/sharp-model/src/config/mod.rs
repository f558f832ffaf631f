//! A model's shape: `config.json` of a Hugging Face checkpoint, read, checked and written back.

mod attention;
mod keys;
mod rope;

use std::path::Path;

use serde_json::{Map, Value, json};

pub use self::attention::{LayerKind, Multipliers, Rotary};
use self::keys::{Keys, MAX_POSITIONS};
use self::rope::Rope;
pub use self::rope::RopeScaling;
use crate::error::{Error, Result};
use crate::family::{FAMILIES, Family, Presence};

/// The shape of a Llama-like model, checked: every size is at least 1 and small enough to multiply.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family's table.
    pub(crate) family: &'static Family,
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
    pub scales: Multipliers,
    /// What each layer's attention does, `(num_hidden_layers)`.
    pub layer_kinds: Vec<LayerKind>,
    /// Base of RoPE's frequencies in layers with a RoPE of their own.
    pub local_rope_theta: Option<f64>,
    /// Token that begins a text, where the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// All keys of `config.json` as found (without `sharp_config`); written back by
    /// [`ModelConfig::to_json`].
    pub(crate) raw: Map<String, Value>,
}

/// Largest sizes believed; past them a file is damaged or hostile.
const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;

impl ModelConfig {
    /// Whether both are the same model: all that a computation depends on is equal. Other keys of the file
    /// may differ, as that of the stored weights' type does between a checkpoint and what is exported of it.
    /// So may the tokens that end a text.
    pub fn same_model(&self, other: &Self) -> bool {
        let bare = |c: &Self| Self { raw: Map::new(), eos_token_ids: Vec::new(), ..c.clone() };
        bare(self) == bare(other)
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
        let layer_kinds = attention::layer_kinds(&keys, family, num_hidden_layers)?;
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
            rope::rope(&keys, family, max_position_embeddings)?;
        let flag = |presence: Presence| presence.resolve(|k| raw.get(k).and_then(Value::as_bool));

        let config = Self {
            family,
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
            scales: attention::scales(&keys, family, hidden_size, head_dim)?,
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
        self.family
    }

    /// `architectures[0]` of `config.json`: `LlamaForCausalLM`.
    pub fn architecture(&self) -> &'static str {
        self.family.architecture
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
        if let Presence::Key(key) = family.qkv_bias {
            put(key, json!(self.attention_bias));
        }
        if let Presence::Key(key) = family.mlp_bias {
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
        all.insert("rope_scaling".into(), self.rope_scaling.to_json());
        // Written by transformers 5; the same facts as the two keys above, which every version reads.
        all.remove("rope_parameters");
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

    /// Weights of one layer's MLP, `3 * hidden_size * intermediate_size`. Biases, where there are any, stay
    /// with their layer when an MLP is shared and are not counted.
    pub fn mlp_parameters_per_layer(&self) -> u64 {
        3 * self.hidden_size as u64 * self.intermediate_size as u64
    }

    /// RoPE's angles per position, `(head_dim / 2)`, in radians, with the scaling applied: pair `i` of a head
    /// at position `p` turns by `p * inv_freq[i]`. Pair `i` is the dimensions `(i, i + head_dim / 2)`.
    pub fn inv_freq(&self) -> Vec<f64> {
        let stretch = |freq| self.rope_scaling.stretch(freq);
        rope::plain_inv_freq(self.rope_theta, self.head_dim).map(stretch).collect()
    }

    /// The angles of layers with a RoPE of their own, which is not scaled; `None` where the model has no such
    /// layers.
    pub fn local_inv_freq(&self) -> Option<Vec<f64>> {
        self.local_rope_theta.map(|theta| rope::plain_inv_freq(theta, self.head_dim).collect())
    }

    /// What a layer's attention does; Llama's for a layer the model has not.
    pub fn layer_kind(&self, layer: usize) -> LayerKind {
        self.layer_kinds.get(layer).copied().unwrap_or(LayerKind::PLAIN)
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

/// Returns the map of a JSON value that this crate has made as an object.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => unreachable!("{other} is not an object"),
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
