//! The table of tensors: which a model has, of what shape, under which names.

use sharp_quant::DType;

use crate::checkpoint::source::TensorInfo;
use crate::config::ModelConfig;
use crate::family::Norms;
use crate::names::Attention;
use crate::projection::Projection;

/// What a tensor is to the computation. In the order of the computation, within a layer and in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The token embedding.
    Embedding,
    /// The norm before a layer's attention.
    AttentionNorm,
    /// The norm on attention's output.
    AttentionOutputNorm,
    /// A part of one of attention's four maps.
    Attention(Attention, Part),
    /// The norm on queries.
    QueryNorm,
    /// The norm on keys.
    KeyNorm,
    /// The norm before a layer's MLP.
    MlpNorm,
    /// The norm on the MLP's output.
    MlpOutputNorm,
    /// A part of one of the MLP's three maps.
    Mlp(Projection, Part),
    /// The norm before the output head.
    FinalNorm,
    /// The output head.
    Head,
}

impl Role {
    /// 0 before the layers, 1 in a layer, 2 after the layers.
    pub(crate) fn stage(self) -> u8 {
        match self {
            Self::Embedding => 0,
            Self::FinalNorm | Self::Head => 2,
            _ => 1,
        }
    }
}

/// A part of a linear map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The weight `(out, in)`.
    Weight,
    /// `A (r, in)` of a low-rank product.
    LoraA,
    /// `B (out, r)` of a low-rank product.
    LoraB,
    /// Neurons of the layer's own beside another layer's MLP: `(k, d)`, of the down map `(d, k)`.
    Neurons,
    /// A factor for each row, `(out)`.
    RowScale,
    /// A factor for each column, `(in)`.
    ColScale,
    /// The bias, `(out)`.
    Bias,
}

/// A size that shapes are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dim {
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
    pub(crate) fn of(self, config: &ModelConfig) -> usize {
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
pub(crate) enum When {
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
    /// Where each query and key head is normed.
    QkNorm,
    /// Where all query heads, and all key heads, are normed together.
    QkNormWhole,
    /// Where norms come before attention and MLP.
    NormBefore,
    /// Where norms come before them and nowhere else.
    NormBeforeOnly,
    /// Where norms come after them.
    NormAfter,
    /// Where norms come before and after.
    NormBoth,
}

impl When {
    /// Whether it holds for a model.
    pub(crate) fn holds(self, config: &ModelConfig) -> bool {
        match self {
            Self::Always => true,
            Self::Untied => !config.tie_word_embeddings,
            Self::QkvBias => config.attention_bias,
            Self::OutputBias => config.attention_output_bias,
            Self::MlpBias => config.mlp_bias,
            Self::QkNorm => config.qk_norm && !config.family().qk_norm_whole,
            Self::QkNormWhole => config.qk_norm && config.family().qk_norm_whole,
            Self::NormBefore => config.family().norms != Norms::After,
            Self::NormBeforeOnly => config.family().norms == Norms::Before,
            Self::NormAfter => config.family().norms != Norms::Before,
            Self::NormBoth => config.family().norms == Norms::Both,
        }
    }
}

/// Whose head order a GGUF file may have interleaved (see [`crate::Family::gguf_interleaved_rope`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heads {
    /// Rows are not heads.
    None,
    /// Rows are `num_attention_heads` heads of `head_dim`.
    Query,
    /// Rows are `num_key_value_heads` heads of `head_dim`.
    Key,
}

/// One line of the tensor table. `{}` in a name stands for the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TensorRule {
    /// What the tensor is to the computation.
    pub(crate) role: Role,
    /// Hugging Face name.
    pub(crate) name: &'static str,
    /// Name in GGUF files.
    pub(crate) gguf: &'static str,
    /// Row-major shape.
    pub(crate) shape: &'static [Dim],
    /// When the tensor exists.
    pub(crate) when: When,
    /// Whether its rows are RoPE heads.
    pub(crate) heads: Heads,
}

impl TensorRule {
    /// Whether there is one for every layer.
    pub(crate) fn per_layer(&self) -> bool {
        self.name.contains("{}")
    }

    /// The Hugging Face name in a layer, or of the one tensor there is.
    pub(crate) fn name_of(&self, layer: Option<usize>) -> String {
        in_layer(self.name, layer)
    }

    /// The GGUF name in a layer, or of the one tensor there is.
    pub(crate) fn gguf_of(&self, layer: Option<usize>) -> String {
        in_layer(self.gguf, layer)
    }

    /// The shape in a model.
    pub(crate) fn shape_of(&self, config: &ModelConfig) -> Vec<usize> {
        self.shape.iter().map(|d| d.of(config)).collect()
    }
}

fn in_layer(name: &str, layer: Option<usize>) -> String {
    match layer {
        Some(layer) => name.replace("{}", &layer.to_string()),
        None => name.to_owned(),
    }
}

const fn rule(
    role: Role,
    name: &'static str,
    gguf: &'static str,
    shape: &'static [Dim],
    when: When,
    heads: Heads,
) -> TensorRule {
    TensorRule { role, name, gguf, shape, when, heads }
}

/// Every tensor a model of any family may have, in the order of the computation.
#[rustfmt::skip]
pub(crate) static TENSORS: &[TensorRule] = {
    use Dim::*;
    use When::*;
    &[
        rule(Role::Embedding, "model.embed_tokens.weight", "token_embd.weight", &[Vocab, Hidden], Always, Heads::None),
        rule(Role::AttentionNorm, "model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", &[Hidden], NormBefore, Heads::None),
        rule(Role::Attention(Attention::Query, Part::Weight), "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", &[Query, Hidden], Always, Heads::Query),
        rule(Role::Attention(Attention::Key, Part::Weight), "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", &[KeyValue, Hidden], Always, Heads::Key),
        rule(Role::Attention(Attention::Value, Part::Weight), "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", &[KeyValue, Hidden], Always, Heads::None),
        rule(Role::Attention(Attention::Output, Part::Weight), "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", &[Hidden, Query], Always, Heads::None),
        rule(Role::Attention(Attention::Query, Part::Bias), "model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", &[Query], QkvBias, Heads::Query),
        rule(Role::Attention(Attention::Key, Part::Bias), "model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", &[KeyValue], QkvBias, Heads::Key),
        rule(Role::Attention(Attention::Value, Part::Bias), "model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", &[KeyValue], QkvBias, Heads::None),
        rule(Role::Attention(Attention::Output, Part::Bias), "model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias", &[Hidden], OutputBias, Heads::None),
        rule(Role::QueryNorm, "model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", &[Head], QkNorm, Heads::None),
        rule(Role::KeyNorm, "model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", &[Head], QkNorm, Heads::None),
        rule(Role::QueryNorm, "model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", &[Query], QkNormWhole, Heads::None),
        rule(Role::KeyNorm, "model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", &[KeyValue], QkNormWhole, Heads::None),
        rule(Role::MlpNorm, "model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", &[Hidden], NormBeforeOnly, Heads::None),
        rule(Role::AttentionOutputNorm, "model.layers.{}.post_attention_layernorm.weight", "blk.{}.post_attention_norm.weight", &[Hidden], NormAfter, Heads::None),
        rule(Role::MlpNorm, "model.layers.{}.pre_feedforward_layernorm.weight", "blk.{}.ffn_norm.weight", &[Hidden], NormBoth, Heads::None),
        rule(Role::Mlp(Projection::Gate, Part::Weight), "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", &[Intermediate, Hidden], Always, Heads::None),
        rule(Role::Mlp(Projection::Up, Part::Weight), "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", &[Intermediate, Hidden], Always, Heads::None),
        rule(Role::Mlp(Projection::Down, Part::Weight), "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", &[Hidden, Intermediate], Always, Heads::None),
        rule(Role::Mlp(Projection::Gate, Part::Bias), "model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", &[Intermediate], MlpBias, Heads::None),
        rule(Role::Mlp(Projection::Up, Part::Bias), "model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias", &[Intermediate], MlpBias, Heads::None),
        rule(Role::Mlp(Projection::Down, Part::Bias), "model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias", &[Hidden], MlpBias, Heads::None),
        rule(Role::MlpOutputNorm, "model.layers.{}.post_feedforward_layernorm.weight", "blk.{}.post_ffw_norm.weight", &[Hidden], NormAfter, Heads::None),
        rule(Role::FinalNorm, "model.norm.weight", "output_norm.weight", &[Hidden], Always, Heads::None),
        rule(Role::Head, "lm_head.weight", "output.weight", &[Vocab, Hidden], Untied, Heads::None),
    ]
};

/// Every tensor a dense model of this configuration has: `(rule, layer, description)` in the order of the
/// computation; the layer is `None` for tensors there is one of. The type is `dtype`.
pub(crate) fn tensors_of(
    config: &ModelConfig,
    dtype: DType,
) -> Vec<(&'static TensorRule, Option<usize>, TensorInfo)> {
    let info = |rule: &'static TensorRule, layer: Option<usize>| {
        let name = rule.name_of(layer);
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

impl ModelConfig {
    /// Weights of the whole dense model; a tied head counts once.
    pub fn total_parameters(&self) -> u64 {
        TENSORS
            .iter()
            .filter(|r| r.when.holds(self))
            .map(|r| {
                let n: u64 = r.shape.iter().map(|d| d.of(self) as u64).product();
                if r.per_layer() { n * self.num_hidden_layers as u64 } else { n }
            })
            .sum()
    }
}
