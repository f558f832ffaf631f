//! Model families as data: what tensors a Llama-like model has, of what shape, under which names.
//!
//! A new family is one more [`Family`] in [`FAMILIES`]; nothing else asks for a model's name.

use crate::config::ModelConfig;
use crate::source::TensorInfo;
use sharp_quant::DType;

/// Whether a family's tensors of one kind exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// No model of the family has them.
    Never,
    /// Every model of the family has them.
    Always,
    /// Where this boolean of `config.json` is true; absent means false.
    Key(&'static str),
}

impl Presence {
    pub(crate) fn resolve(self, value: impl Fn(&str) -> Option<bool>) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Key(key) => value(key).unwrap_or(false),
        }
    }
}

/// What makes a family of Llama-like models its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    /// `architectures[0]` of `config.json`.
    pub architecture: &'static str,
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// `architectures[0]` of a compact checkpoint.
    pub compact_architecture: &'static str,
    /// `model_type` of a compact checkpoint: unknown to other loaders, so that none fills missing weights with noise.
    pub compact_model_type: &'static str,
    /// `general.architecture` of a GGUF file, where the family has such files.
    pub gguf_architecture: Option<&'static str>,
    /// Whether GGUF files of the family store query and key rows in interleaved RoPE pairs `(2i, 2i + 1)` instead
    /// of halves `(i, i + head_dim / 2)`.
    pub gguf_interleaved_rope: bool,
    /// Biases of the query, key and value projections.
    pub qkv_bias: Presence,
    /// Bias of the attention output projection.
    pub output_bias: Presence,
    /// Biases of the three MLP projections.
    pub mlp_bias: Presence,
    /// RMS norms of each query and key head before RoPE.
    pub qk_norm: Presence,
    /// `rope_theta` where `config.json` has none.
    pub default_rope_theta: f64,
    /// `tie_word_embeddings` where `config.json` has none.
    pub default_tied: bool,
    /// Whether a `sliding_window` in `config.json` narrows attention (some families write it and ignore it).
    pub sliding_window: Presence,
}

/// The families this project runs.
pub static FAMILIES: &[Family] = &[LLAMA, MISTRAL, QWEN2, QWEN3];

/// Llama 1 to 3, SmolLM2, TinyLlama and everything else saved as `LlamaForCausalLM`.
pub const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    compact_architecture: "SharpLlamaForCausalLM",
    compact_model_type: "sharp_llama",
    gguf_architecture: Some("llama"),
    gguf_interleaved_rope: true,
    qkv_bias: Presence::Key("attention_bias"),
    output_bias: Presence::Key("attention_bias"),
    mlp_bias: Presence::Key("mlp_bias"),
    qk_norm: Presence::Never,
    default_rope_theta: 10_000.0,
    default_tied: false,
    sliding_window: Presence::Never,
};

/// Mistral 7B v0.2 and later (full attention).
pub const MISTRAL: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    compact_architecture: "SharpMistralForCausalLM",
    compact_model_type: "sharp_mistral",
    // GGUF files of Mistral models call themselves `llama`.
    gguf_architecture: None,
    qkv_bias: Presence::Never,
    output_bias: Presence::Never,
    mlp_bias: Presence::Never,
    sliding_window: Presence::Always,
    ..LLAMA
};

/// Qwen2 and Qwen2.5: biases on query, key and value.
pub const QWEN2: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    compact_architecture: "SharpQwen2ForCausalLM",
    compact_model_type: "sharp_qwen2",
    gguf_architecture: Some("qwen2"),
    gguf_interleaved_rope: false,
    qkv_bias: Presence::Always,
    output_bias: Presence::Never,
    mlp_bias: Presence::Never,
    sliding_window: Presence::Key("use_sliding_window"),
    ..LLAMA
};

/// Qwen3 (dense): a norm on every query and key head.
pub const QWEN3: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    compact_architecture: "SharpQwen3ForCausalLM",
    compact_model_type: "sharp_qwen3",
    gguf_architecture: Some("qwen3"),
    qkv_bias: Presence::Key("attention_bias"),
    output_bias: Presence::Key("attention_bias"),
    qk_norm: Presence::Always,
    ..QWEN2
};

impl Family {
    /// The family of a `config.json`'s `architectures[0]` (plain or compact).
    pub fn by_architecture(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|f| f.architecture == name || f.compact_architecture == name)
    }

    /// `auto_map` of a compact checkpoint's `config.json`: the classes of `modeling_sharp.py` that transformers runs it with.
    pub(crate) fn auto_map(&self) -> serde_json::Value {
        let model = format!("modeling_sharp.{}", self.compact_architecture);
        let config = model.replace("ForCausalLM", "Config");
        serde_json::json!({ "AutoConfig": config, "AutoModelForCausalLM": model })
    }

    /// The family of a `config.json`'s `model_type` (plain or compact).
    pub fn by_model_type(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|f| f.model_type == name || f.compact_model_type == name)
    }

    /// The family of a GGUF file's `general.architecture`.
    pub fn by_gguf(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|f| f.gguf_architecture == Some(name))
    }
}

/// A size that shapes are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// `vocab_size`
    Vocab,
    /// `hidden_size`
    Hidden,
    /// `intermediate_size`
    Intermediate,
    /// `num_attention_heads * head_dim`
    Query,
    /// `num_key_value_heads * head_dim`
    KeyValue,
    /// `head_dim`
    Head,
}

impl Dim {
    /// The size in a model.
    pub fn of(self, config: &ModelConfig) -> usize {
        match self {
            Self::Vocab => config.vocab_size,
            Self::Hidden => config.hidden_size,
            Self::Intermediate => config.intermediate_size,
            Self::Query => config.query_size(),
            Self::KeyValue => config.key_value_size(),
            Self::Head => config.head_dim,
        }
    }
}

/// When a tensor of the table exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// In every model.
    Always,
    /// Where the output head is not the embedding.
    Untied,
    /// Where query, key and value have biases.
    QkvBias,
    /// Where the attention output has a bias.
    OutputBias,
    /// Where the MLP projections have biases.
    MlpBias,
    /// Where query and key heads are normed.
    QkNorm,
}

impl When {
    /// Whether it holds for a model.
    pub fn holds(self, config: &ModelConfig) -> bool {
        match self {
            Self::Always => true,
            Self::Untied => !config.tie_word_embeddings,
            Self::QkvBias => config.attention_bias,
            Self::OutputBias => config.attention_output_bias,
            Self::MlpBias => config.mlp_bias,
            Self::QkNorm => config.qk_norm,
        }
    }
}

/// Whose head order a GGUF file may have interleaved (see [`Family::gguf_interleaved_rope`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// Rows are not heads.
    None,
    /// Rows are `num_attention_heads` heads of `head_dim`.
    Query,
    /// Rows are `num_key_value_heads` heads of `head_dim`.
    Key,
}

/// One line of the tensor table. `{}` in a name stands for the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorRule {
    /// Hugging Face name.
    pub name: &'static str,
    /// Name in GGUF files.
    pub gguf: &'static str,
    /// Row-major shape.
    pub shape: &'static [Dim],
    /// When the tensor exists.
    pub when: When,
    /// Whether its rows are RoPE heads.
    pub heads: Heads,
}

impl TensorRule {
    /// Whether there is one for every layer.
    pub fn per_layer(&self) -> bool {
        self.name.contains("{}")
    }

    /// The Hugging Face name for a layer.
    pub fn name_of(&self, layer: usize) -> String {
        self.name.replace("{}", &layer.to_string())
    }

    /// The GGUF name for a layer.
    pub fn gguf_of(&self, layer: usize) -> String {
        self.gguf.replace("{}", &layer.to_string())
    }

    /// The shape in a model.
    pub fn shape_of(&self, config: &ModelConfig) -> Vec<usize> {
        self.shape.iter().map(|d| d.of(config)).collect()
    }
}

const fn rule(
    name: &'static str,
    gguf: &'static str,
    shape: &'static [Dim],
    when: When,
    heads: Heads,
) -> TensorRule {
    TensorRule { name, gguf, shape, when, heads }
}

/// Every tensor a model of any family may have, in the order of the computation.
#[rustfmt::skip]
pub static TENSORS: &[TensorRule] = {
    use Dim::*;
    use When::*;
    &[
        rule("model.embed_tokens.weight", "token_embd.weight", &[Vocab, Hidden], Always, Heads::None),
        rule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", &[Hidden], Always, Heads::None),
        rule("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", &[Query, Hidden], Always, Heads::Query),
        rule("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", &[KeyValue, Hidden], Always, Heads::Key),
        rule("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", &[KeyValue, Hidden], Always, Heads::None),
        rule("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", &[Hidden, Query], Always, Heads::None),
        rule("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", &[Query], QkvBias, Heads::Query),
        rule("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", &[KeyValue], QkvBias, Heads::Key),
        rule("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", &[KeyValue], QkvBias, Heads::None),
        rule("model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias", &[Hidden], OutputBias, Heads::None),
        rule("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", &[Head], QkNorm, Heads::None),
        rule("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", &[Head], QkNorm, Heads::None),
        rule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", &[Hidden], Always, Heads::None),
        rule("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", &[Intermediate, Hidden], Always, Heads::None),
        rule("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", &[Intermediate, Hidden], Always, Heads::None),
        rule("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", &[Hidden, Intermediate], Always, Heads::None),
        rule("model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", &[Intermediate], MlpBias, Heads::None),
        rule("model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias", &[Intermediate], MlpBias, Heads::None),
        rule("model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias", &[Hidden], MlpBias, Heads::None),
        rule("model.norm.weight", "output_norm.weight", &[Hidden], Always, Heads::None),
        rule("lm_head.weight", "output.weight", &[Vocab, Hidden], Untied, Heads::None),
    ]
};

/// Every tensor a dense model of this configuration has: `(rule, layer, description)` in the order of the
/// computation; the layer is `None` for tensors there is one of. The type is `dtype`.
pub fn tensors_of(
    config: &ModelConfig,
    dtype: DType,
) -> Vec<(&'static TensorRule, Option<usize>, TensorInfo)> {
    let info = |rule: &'static TensorRule, layer: Option<usize>| {
        let name = rule.name_of(layer.unwrap_or_default());
        (rule, layer, TensorInfo { name, dtype, shape: rule.shape_of(config) })
    };
    let present = || TENSORS.iter().filter(|r| r.when.holds(config));
    let first_layer = TENSORS.iter().position(TensorRule::per_layer).unwrap_or(0);
    let mut all = Vec::new();
    all.extend(TENSORS.iter().take(first_layer).filter(|r| r.when.holds(config)).map(|r| info(r, None)));
    for layer in 0..config.num_hidden_layers {
        all.extend(present().filter(|r| r.per_layer()).map(|r| info(r, Some(layer))));
    }
    all.extend(
        TENSORS
            .iter()
            .skip(first_layer)
            .filter(|r| !r.per_layer() && r.when.holds(config))
            .map(|r| info(r, None)),
    );
    all
}
