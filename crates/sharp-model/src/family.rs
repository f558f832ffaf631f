//! Model families as data: what tensors a Llama-like model has, of what shape, under which names.
//!
//! A new family is one more [`Family`] in [`FAMILIES`]; nothing else asks for a model's name.

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

/// What the gate's output passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`
    Silu,
    /// The GELU approximated by a hyperbolic tangent.
    GeluTanh,
}

impl Activation {
    /// Its names in `config.json`, the one to be written first.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Silu => &["silu", "swish"],
            // Gemma's first configurations say `gelu` and mean this.
            Self::GeluTanh => &["gelu_pytorch_tanh", "gelu_new", "gelu"],
        }
    }
}

/// Where a layer's norms are. In any case there is one before the output head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and before the MLP.
    Before,
    /// On the outputs of attention and of the MLP.
    After,
    /// Both.
    Both,
}

/// Which layers see a window of `sliding_window` positions. `layer_types`, where the family has it, says it
/// layer by layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// None, whatever `config.json` says.
    Never,
    /// Every one.
    Every,
    /// Where `use_sliding_window` is true, those from `max_window_layers` on (this by default).
    FromLayer(usize),
    /// Where `use_sliding_window` is true, those without RoPE.
    Unrotated,
    /// All but every `sliding_window_pattern`th (this by default).
    AllButEvery(usize),
}

/// Where a constant factor comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// As in Llama.
    Plain,
    /// This key of `config.json`, by default 1.
    Key(&'static str),
    /// `sqrt(hidden_size)`
    RootOfHidden,
    /// `1 / sqrt` of this key, with its default.
    InverseRootOf(&'static str, f64),
}

/// Caps where `config.json` names none.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Caps {
    /// Of attention scores, `attn_logit_softcapping`.
    pub attention: Option<f64>,
    /// Of logits, `final_logit_softcapping`.
    pub logits: Option<f64>,
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
    /// `model_type` of a compact checkpoint: unknown to other loaders, so that none fills missing weights
    /// with noise.
    pub compact_model_type: &'static str,
    /// `general.architecture` of a GGUF file, where the family has such files.
    pub gguf_architecture: Option<&'static str>,
    /// Whether GGUF files of the family store query and key rows in interleaved RoPE pairs `(2i, 2i + 1)`
    /// instead of halves `(i, i + head_dim / 2)`.
    pub gguf_interleaved_rope: bool,
    /// Metadata of the family's GGUF files without the architecture before it, and what `config.json` calls
    /// it.
    pub gguf_keys: &'static [(&'static str, &'static str)],
    /// Number of layers of the one model of the family whose scores llama.cpp scales by `sqrt(hidden_size /
    /// heads)` instead of `sqrt(head_dim)`: its GGUF files do not say it.
    pub gguf_wide_scores: Option<u64>,
    /// Biases of the query, key and value projections.
    pub qkv_bias: Presence,
    /// Bias of the attention output projection.
    pub output_bias: Presence,
    /// Biases of the three MLP projections.
    pub mlp_bias: Presence,
    /// RMS norms of query and key heads before RoPE.
    pub qk_norm: Presence,
    /// Whether those norm all heads together, not each by itself.
    pub qk_norm_whole: bool,
    /// Where the layers' norms are.
    pub norms: Norms,
    /// What is added to norm weights: 1 where the model multiplies by `1 + weight`.
    pub norm_offset: f32,
    /// What the gate's output passes through.
    pub activation: Activation,
    /// `rope_theta` where `config.json` has none.
    pub default_rope_theta: f64,
    /// `tie_word_embeddings` where `config.json` has none.
    pub default_tied: bool,
    /// RoPE base of the layers with windows (`rope_local_base_freq`), in the families where they have one of
    /// their own.
    pub default_local_rope_theta: Option<f64>,
    /// Every `n`-th layer skips RoPE (`no_rope_layer_interval`) where `no_rope_layers` does not list them;
    /// `None`: no layer does.
    pub unrotated_every: Option<usize>,
    /// Which layers see a window.
    pub windows: Windows,
    /// `sliding_window` where `config.json` has no such key.
    pub default_window: Option<usize>,
    /// What embeddings are multiplied by.
    pub embedding_scale: Scale,
    /// What the outputs of attention and MLP are multiplied by.
    pub residual_scale: Scale,
    /// What attention scores are multiplied by.
    pub attention_scale: Scale,
    /// What logits are divided by.
    pub logits_scale: Scale,
    /// Soft caps, in the families that have them.
    pub caps: Option<Caps>,
    /// The family whose layout and mathematics its models have once their fused tensors are cut
    /// apart.
    pub read_as: Option<&'static str>,
}

/// The families this project runs.
pub static FAMILIES: &[Family] =
    &[LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, GRANITE, OLMO2, PHI3, GEMMA, GEMMA2, GEMMA3];

/// Llama 1 to 3, SmolLM2, TinyLlama and everything else saved as `LlamaForCausalLM`.
pub(crate) const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    compact_architecture: "SharpLlamaForCausalLM",
    compact_model_type: "sharp_llama",
    gguf_architecture: Some("llama"),
    gguf_interleaved_rope: true,
    gguf_keys: &[],
    gguf_wide_scores: None,
    qkv_bias: Presence::Key("attention_bias"),
    output_bias: Presence::Key("attention_bias"),
    mlp_bias: Presence::Key("mlp_bias"),
    qk_norm: Presence::Never,
    qk_norm_whole: false,
    norms: Norms::Before,
    norm_offset: 0.0,
    activation: Activation::Silu,
    default_rope_theta: 10_000.0,
    default_tied: false,
    default_local_rope_theta: None,
    unrotated_every: None,
    windows: Windows::Never,
    default_window: None,
    embedding_scale: Scale::Plain,
    residual_scale: Scale::Plain,
    attention_scale: Scale::Plain,
    logits_scale: Scale::Plain,
    caps: None,
    read_as: None,
};

/// Mistral 7B: a window in every layer where the configuration has one.
pub(crate) const MISTRAL: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    compact_architecture: "SharpMistralForCausalLM",
    compact_model_type: "sharp_mistral",
    // GGUF files of Mistral models call themselves `llama`.
    gguf_architecture: None,
    qkv_bias: Presence::Never,
    output_bias: Presence::Never,
    mlp_bias: Presence::Never,
    windows: Windows::Every,
    default_window: Some(4096),
    ..LLAMA
};

/// Qwen2 and Qwen2.5: biases on query, key and value.
pub(crate) const QWEN2: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    compact_architecture: "SharpQwen2ForCausalLM",
    compact_model_type: "sharp_qwen2",
    gguf_architecture: Some("qwen2"),
    gguf_interleaved_rope: false,
    qkv_bias: Presence::Always,
    output_bias: Presence::Never,
    mlp_bias: Presence::Never,
    windows: Windows::FromLayer(28),
    default_window: Some(4096),
    ..LLAMA
};

/// Qwen3 (dense): a norm on every query and key head.
pub(crate) const QWEN3: Family = Family {
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

/// SmolLM3: every fourth layer without RoPE.
pub(crate) const SMOLLM3: Family = Family {
    architecture: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    compact_architecture: "SharpSmolLM3ForCausalLM",
    compact_model_type: "sharp_smollm3",
    gguf_architecture: Some("smollm3"),
    default_rope_theta: 2_000_000.0,
    default_tied: true,
    unrotated_every: Some(4),
    windows: Windows::Unrotated,
    ..LLAMA
};

/// Granite 3 (dense): Llama with four constant factors.
pub(crate) const GRANITE: Family = Family {
    architecture: "GraniteForCausalLM",
    model_type: "granite",
    compact_architecture: "SharpGraniteForCausalLM",
    compact_model_type: "sharp_granite",
    gguf_architecture: Some("granite"),
    gguf_keys: &[
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("attention.scale", "attention_multiplier"),
        ("logit_scale", "logits_scaling"),
    ],
    embedding_scale: Scale::Key("embedding_multiplier"),
    residual_scale: Scale::Key("residual_multiplier"),
    attention_scale: Scale::Key("attention_multiplier"),
    logits_scale: Scale::Key("logits_scaling"),
    ..LLAMA
};

/// OLMo 2: norms on the outputs of attention and MLP, and on all query and all key heads together.
pub(crate) const OLMO2: Family = Family {
    architecture: "Olmo2ForCausalLM",
    model_type: "olmo2",
    compact_architecture: "SharpOlmo2ForCausalLM",
    compact_model_type: "sharp_olmo2",
    gguf_architecture: Some("olmo2"),
    gguf_interleaved_rope: false,
    mlp_bias: Presence::Never,
    qk_norm: Presence::Always,
    qk_norm_whole: true,
    norms: Norms::After,
    ..LLAMA
};

/// Phi-3 mini and medium with short contexts: Mistral with fused projections.
pub(crate) const PHI3: Family = Family {
    architecture: "Phi3ForCausalLM",
    model_type: "phi3",
    compact_architecture: "SharpPhi3ForCausalLM",
    compact_model_type: "sharp_phi3",
    gguf_architecture: Some("phi3"),
    gguf_interleaved_rope: false,
    gguf_keys: &[("attention.sliding_window", "sliding_window")],
    default_window: None,
    read_as: Some("MistralForCausalLM"),
    ..MISTRAL
};

/// Gemma: GELU, norms that multiply by `1 + weight`, scaled embeddings.
pub(crate) const GEMMA: Family = Family {
    architecture: "GemmaForCausalLM",
    model_type: "gemma",
    compact_architecture: "SharpGemmaForCausalLM",
    compact_model_type: "sharp_gemma",
    gguf_architecture: Some("gemma"),
    gguf_interleaved_rope: false,
    mlp_bias: Presence::Never,
    norm_offset: 1.0,
    activation: Activation::GeluTanh,
    default_tied: true,
    embedding_scale: Scale::RootOfHidden,
    ..LLAMA
};

/// Gemma 2: norms on both sides, a window in every second layer, capped scores and logits.
pub(crate) const GEMMA2: Family = Family {
    architecture: "Gemma2ForCausalLM",
    model_type: "gemma2",
    compact_architecture: "SharpGemma2ForCausalLM",
    compact_model_type: "sharp_gemma2",
    gguf_architecture: Some("gemma2"),
    gguf_keys: &[
        ("attention.sliding_window", "sliding_window"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ],
    gguf_wide_scores: Some(46),
    norms: Norms::Both,
    windows: Windows::AllButEvery(2),
    default_window: Some(4096),
    attention_scale: Scale::InverseRootOf("query_pre_attn_scalar", 256.0),
    caps: Some(Caps { attention: Some(50.0), logits: Some(30.0) }),
    ..GEMMA
};

/// Gemma 3 (text): query and key norms, windows in five of six layers, which have a RoPE of their own.
pub(crate) const GEMMA3: Family = Family {
    architecture: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    compact_architecture: "SharpGemma3TextForCausalLM",
    compact_model_type: "sharp_gemma3_text",
    gguf_architecture: Some("gemma3"),
    gguf_keys: &[
        ("attention.sliding_window", "sliding_window"),
        ("rope.freq_base_swa", "rope_local_base_freq"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ],
    gguf_wide_scores: Some(62),
    qk_norm: Presence::Always,
    default_rope_theta: 1_000_000.0,
    default_local_rope_theta: Some(10_000.0),
    windows: Windows::AllButEvery(6),
    caps: Some(Caps { attention: None, logits: None }),
    ..GEMMA2
};

/// Tensors that some checkpoints store one below the other as one, and what they are cut into. `{}` stands
/// for the layer.
pub(crate) static FUSED: &[(&str, &[&str])] = &[
    (
        "model.layers.{}.self_attn.qkv_proj.weight",
        &[
            "model.layers.{}.self_attn.q_proj.weight",
            "model.layers.{}.self_attn.k_proj.weight",
            "model.layers.{}.self_attn.v_proj.weight",
        ],
    ),
    (
        "model.layers.{}.mlp.gate_up_proj.weight",
        &["model.layers.{}.mlp.gate_proj.weight", "model.layers.{}.mlp.up_proj.weight"],
    ),
];

/// Fused tensors of GGUF files and what they are cut into.
pub(crate) static GGUF_FUSED: &[(&str, &[&str])] = &[
    ("blk.{}.attn_qkv.weight", &["blk.{}.attn_q.weight", "blk.{}.attn_k.weight", "blk.{}.attn_v.weight"]),
    // Phi-3's gate lies above what is called `up`.
    ("blk.{}.ffn_up.weight", &["blk.{}.ffn_gate.weight", "blk.{}.ffn_up.weight"]),
];

impl Family {
    /// The family of a `config.json`'s `architectures[0]` (plain or compact).
    pub fn by_architecture(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|f| f.architecture == name || f.compact_architecture == name)
    }

    /// `auto_map` of a compact checkpoint's `config.json`: the classes of `modeling_sharp.py` that
    /// transformers runs it with.
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
