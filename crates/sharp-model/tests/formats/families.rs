//! What a family's table accepts and refuses of a `config.json`.

use serde_json::{Value, json};
use sharp_model::ModelConfig;
use sharp_model::{LayerKind, Rotary};

use crate::{golden, json as read};

/// A golden configuration with some keys replaced.
fn config(case: &str, changes: Value) -> sharp_model::Result<ModelConfig> {
    let mut all = read(golden("hf_families").join(case).join("config.json"));
    for (key, value) in changes.as_object().unwrap() {
        all[key] = value.clone();
    }
    ModelConfig::from_json(&all.to_string())
}

fn refused(case: &str, changes: Value, words: &[&str]) {
    let message = config(case, changes.clone()).unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "{case} {changes}: {message}");
    }
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.layer_kinds.iter().map(|k| k.window).collect()
}

#[test]
fn what_is_unknown_is_named() {
    let unknown = json!({"architectures": ["FalconForCausalLM"]});
    refused("gemma", unknown, &["FalconForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM"]);
    refused("gemma", json!({"hidden_act": "relu"}), &["`relu`", "GemmaForCausalLM", "gelu_pytorch_tanh"]);
    refused("qwen3", json!({"hidden_act": "gelu"}), &["`gelu`", "silu"]);
    refused(
        "qwen2_window",
        json!({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}),
        &["chunked_attention"],
    );
    refused(
        "phi3",
        json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "longrope"}}),
        &["`longrope`"],
    );
    refused(
        "phi3",
        json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.75}}),
        &["partial_rotary_factor"],
    );
    refused("gemma3", json!({"use_bidirectional_attention": true}), &["use_bidirectional_attention"]);
}

#[test]
fn values_that_cannot_be_are_refused() {
    refused(
        "qwen2_window",
        json!({"layer_types": ["full_attention"]}),
        &["layer_types", "1 types for 3 layers"],
    );
    refused("smollm3", json!({"no_rope_layers": [1, 0]}), &["no_rope_layers", "4 layers"]);
    refused("smollm3", json!({"no_rope_layers": [1, 0, 7, 1]}), &["no_rope_layers"]);
    refused("mistral_window", json!({"sliding_window": -3}), &["sliding_window"]);
    refused("granite", json!({"logits_scaling": 0}), &["logits_scaling", "not a positive number"]);
    refused("gemma2", json!({"attn_logit_softcapping": "x"}), &["attn_logit_softcapping"]);
    refused(
        "gemma3",
        json!({"rope_parameters": {
        "full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": -1}}}),
        &["rope_theta"],
    );
}

#[test]
fn windows_fall_on_the_layers_that_transformers_gives_them() {
    assert_eq!(windows(&config("mistral_window", json!({})).unwrap()), [Some(7); 3]);
    assert_eq!(windows(&config("mistral_window", json!({"sliding_window": null})).unwrap()), [None; 3]);
    // Without `layer_types`, as older checkpoints are, the pattern decides.
    let without = json!({"layer_types": null});
    assert_eq!(windows(&config("qwen2_window", without.clone()).unwrap()), [None, Some(5), Some(5)]);
    assert_eq!(windows(&config("qwen2_window", json!({"use_sliding_window": false})).unwrap()), [None; 3]);
    assert_eq!(windows(&config("gemma2", without.clone()).unwrap()), [Some(6), None, Some(6)]);
    let gemma3 = config("gemma3", without).unwrap();
    assert_eq!(gemma3.layer_kinds[5], LayerKind { rotary: Rotary::Global, window: None });
    assert_eq!(gemma3.layer_kinds[6], LayerKind { rotary: Rotary::Local, window: Some(6) });
}

#[test]
fn a_configuration_written_is_the_configuration_read() {
    for case in
        ["mistral_window", "qwen2_window", "smollm3", "granite", "olmo2", "phi3", "gemma", "gemma2", "gemma3"]
    {
        let read = config(case, json!({})).unwrap();
        let text = Value::Object(read.to_json()).to_string();
        let again = ModelConfig::from_json(&text).unwrap();
        assert!(again.same_model(&read), "{case}: {again:?} {read:?}");
    }
}

#[test]
fn what_differs_from_llama_is_told() {
    let told = |case: &str, tokens| config(case, json!({})).unwrap().non_llama_features(tokens).join(", ");
    assert_eq!(told("qwen3", 1 << 20), "");
    assert_eq!(
        (told("mistral_window", 7), told("mistral_window", 8)),
        (String::new(), "sliding-window attention".into())
    );
    assert_eq!(told("smollm3", 8), "layers without RoPE");
    assert!(told("gemma2", 8).contains("capped attention scores"));
    let refused = |case: &str| config(case, json!({})).unwrap().training_refusal(8);
    assert_eq!(refused("qwen3"), None);
    let text = "training a SmolLM3ForCausalLM is not supported: it has layers without RoPE";
    assert_eq!(refused("smollm3").as_deref(), Some(text));
}
