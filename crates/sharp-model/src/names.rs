//! Tensor names, as Hugging Face spells them.
//!
//! All families of [`crate::Family`] use these; which of them a family has, and of what shape, is its table.

use crate::config::ModelConfig;
use crate::projection::Projection;

/// Token embedding, `(vocab_size, hidden_size)`.
pub const EMBED: &str = "model.embed_tokens.weight";
/// Norm before the output head, `(hidden_size)`.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Output head, `(vocab_size, hidden_size)`; absent where it is tied to [`EMBED`].
pub const LM_HEAD: &str = "lm_head.weight";

/// One of the four matrices of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attention {
    /// `(num_attention_heads * head_dim, hidden_size)`.
    Query,
    /// `(num_key_value_heads * head_dim, hidden_size)`.
    Key,
    /// `(num_key_value_heads * head_dim, hidden_size)`.
    Value,
    /// `(hidden_size, num_attention_heads * head_dim)`.
    Output,
}

impl Attention {
    /// In the order of the computation.
    pub const ALL: [Self; 4] = [Self::Query, Self::Key, Self::Value, Self::Output];

    /// `q_proj`, `k_proj`, `v_proj` or `o_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
        }
    }

    /// `(out, in)` of the weight.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (hidden, q, kv) = (config.hidden_size, config.query_size(), config.key_value_size());
        match self {
            Self::Query => (q, hidden),
            Self::Key | Self::Value => (kv, hidden),
            Self::Output => (hidden, q),
        }
    }
}

/// `model.layers.5.mlp.gate_proj.weight`, shape [`Projection::shape`].
pub fn mlp_weight(layer: usize, projection: Projection) -> String {
    format!("{}.weight", mlp(layer, projection))
}

/// `model.layers.5.mlp.gate_proj.bias`, shape `(out)`.
pub fn mlp_bias(layer: usize, projection: Projection) -> String {
    format!("{}.bias", mlp(layer, projection))
}

/// `model.layers.5.mlp.gate_proj.lora_A.weight`, shape `(r, in)`.
pub fn lora_a(layer: usize, projection: Projection) -> String {
    format!("{}.lora_A.weight", mlp(layer, projection))
}

/// `model.layers.5.mlp.gate_proj.lora_B.weight`, shape `(out, r)`.
pub fn lora_b(layer: usize, projection: Projection) -> String {
    format!("{}.lora_B.weight", mlp(layer, projection))
}

/// `model.layers.5.mlp.gate_proj.row_scale`, shape `(out)`.
pub fn row_scale(layer: usize, projection: Projection) -> String {
    format!("{}.row_scale", mlp(layer, projection))
}

/// `model.layers.5.mlp.gate_proj.col_scale`, shape `(in)`.
pub fn col_scale(layer: usize, projection: Projection) -> String {
    format!("{}.col_scale", mlp(layer, projection))
}

/// `model.layers.5.mlp.gate_proj.neurons.weight`: neurons of the layer's own beside another layer's, shape
/// `(k, d)` for gate and up, `(d, k)` for down.
pub fn neurons(layer: usize, projection: Projection) -> String {
    format!("{}.neurons.weight", mlp(layer, projection))
}

/// `model.layers.5.self_attn.q_proj.weight`, shape [`Attention::shape`].
pub fn attention_weight(layer: usize, matrix: Attention) -> String {
    format!("model.layers.{layer}.self_attn.{}.weight", matrix.name())
}

/// `model.layers.5.self_attn.q_proj.bias`, shape `(out)`.
pub fn attention_bias(layer: usize, matrix: Attention) -> String {
    format!("model.layers.{layer}.self_attn.{}.bias", matrix.name())
}

/// `model.layers.5.self_attn.q_norm.weight`, shape `(head_dim)`: RMS norm of each query head before RoPE.
pub fn q_norm(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.q_norm.weight")
}

/// `model.layers.5.self_attn.k_norm.weight`, shape `(head_dim)`: RMS norm of each key head before RoPE.
pub fn k_norm(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.k_norm.weight")
}

/// `model.layers.5.input_layernorm.weight`, shape `(hidden_size)`: before attention.
pub fn input_norm(layer: usize) -> String {
    format!("model.layers.{layer}.input_layernorm.weight")
}

/// `model.layers.5.post_attention_layernorm.weight`, shape `(hidden_size)`: before the MLP. In the families
/// with norms on outputs ([`crate::Norms`]) the same name is the norm on attention's.
pub fn mlp_norm(layer: usize) -> String {
    format!("model.layers.{layer}.post_attention_layernorm.weight")
}

/// The layer and projection an MLP weight's name stands for; `None` for every other name.
///
/// ```
/// use sharp_model::{Projection, names::parse_mlp_weight};
/// assert_eq!(parse_mlp_weight("model.layers.11.mlp.up_proj.weight"), Some((11, Projection::Up)));
/// assert_eq!(parse_mlp_weight("model.layers.11.mlp.up_proj.bias"), None);
/// ```
pub fn parse_mlp_weight(name: &str) -> Option<(usize, Projection)> {
    match parse_mlp(name)? {
        (layer, projection, "weight") => Some((layer, projection)),
        _ => None,
    }
}

/// Layer, projection and the rest (`weight`, `lora_A.weight`, `row_scale`, ...) of any MLP tensor's name.
pub(crate) fn parse_mlp(name: &str) -> Option<(usize, Projection, &str)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once(".mlp.")?;
    let (matrix, rest) = rest.split_once('.')?;
    let projection = Projection::ALL.into_iter().find(|p| p.name() == matrix)?;
    Some((parse_layer(layer)?, projection, rest))
}

/// A layer number as we write it: digits, no sign, no leading zero.
pub(crate) fn parse_layer(text: &str) -> Option<usize> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// `model.layers.5.mlp.gate_proj`
pub(crate) fn mlp(layer: usize, projection: Projection) -> String {
    format!("model.layers.{layer}.mlp.{}", projection.name())
}
