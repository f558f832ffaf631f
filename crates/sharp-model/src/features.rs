//! What models of other families have that Llama has not.

use crate::config::{LayerKind, ModelConfig, Multipliers, Rotary};
use crate::family::{Activation, Norms};

impl ModelConfig {
    /// Lists, in English, the features this model has and Llama lacks, for a program that knows Llama's
    /// layers only. Sliding windows count only where sequences of `tokens` outgrow them. Empty: it computes
    /// as Llama does.
    pub fn non_llama_features(&self, tokens: usize) -> Vec<&'static str> {
        let family = self.family();
        let (scales, plain) = (&self.scales, Multipliers::plain(self.head_dim));
        let kind = |test: &dyn Fn(&LayerKind) -> bool| self.layer_kinds.iter().any(test);
        let all = [
            (family.activation != Activation::Silu, "an activation other than SiLU"),
            (family.norms != Norms::Before, "norms after attention and MLP"),
            (family.norm_offset != 0.0, "norms that multiply by 1 + weight"),
            (self.qk_norm && family.qk_norm_whole, "norms over all query heads together"),
            (kind(&|k| k.rotary == Rotary::None), "layers without RoPE"),
            (kind(&|k| k.rotary == Rotary::Local), "layers with a RoPE of their own"),
            (kind(&|k| k.window.is_some_and(|w| w < tokens)), "sliding-window attention"),
            (scales.embedding != plain.embedding, "scaled embeddings"),
            (scales.residual != plain.residual, "scaled residual branches"),
            (scales.attention != plain.attention, "attention scores scaled by a constant of the model's own"),
            (scales.logits != plain.logits, "scaled logits"),
            (scales.attention_cap.is_some(), "capped attention scores"),
            (scales.logit_cap.is_some(), "capped logits"),
        ];
        all.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect()
    }

    /// Says why a program that trains Llama's layers only refuses this model, on rows of `tokens` tokens;
    /// `None` where it can train it.
    pub fn training_refusal(&self, tokens: usize) -> Option<String> {
        let features = self.non_llama_features(tokens);
        let (name, features) = (self.architecture(), (!features.is_empty()).then(|| features.join(", "))?);
        Some(format!("training a {name} is not supported: it has {features}"))
    }
}
