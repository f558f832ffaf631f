//! Which tensors a model has under a plan, in which order, and whose bytes they are.

use sharp_model::{
    LayerChange, ModelConfig, ModelLayout, Part, Plan, Projection, Ranks, Repair, Role, names,
};

use crate::{golden, json};

/// A model of this family with two layers; every family is in the table.
fn config(architecture: &str, model_type: &str, extra: serde_json::Value) -> ModelConfig {
    let mut keys = serde_json::json!({
        "architectures": [architecture], "model_type": model_type, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "vocab_size": 16, "tie_word_embeddings": false,
    });
    keys.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    ModelConfig::from_json(&keys.to_string()).unwrap()
}

/// Names without what all of them have in common.
fn short(layout: ModelLayout<'_>) -> Vec<String> {
    let short = |name: &str| name.trim_start_matches("model.").trim_end_matches(".weight").to_owned();
    layout.in_order_of_use().iter().map(|slot| short(&slot.name)).collect()
}

#[test]
fn tensors_come_in_the_order_of_the_computation() {
    let plain =
        config("LlamaForCausalLM", "llama", serde_json::json!({"attention_bias": true, "mlp_bias": true}));
    let ranks = Ranks { gate: 2, up: 0, down: 1 };
    let plan = Plan::new("x", vec![LayerChange::share(1, 0, Repair::row_column_scaled(ranks))]);
    let found = short(ModelLayout::new(&plain, Some(&plan)));
    let mut expected = vec!["embed_tokens".to_owned()];
    let mut layer = |n: usize, parts: &[&str]| {
        expected.extend(parts.iter().map(|part| format!("layers.{n}.{part}")));
    };
    let attention = [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.q_proj.bias",
        "self_attn.k_proj",
        "self_attn.k_proj.bias",
        "self_attn.v_proj",
        "self_attn.v_proj.bias",
        "self_attn.o_proj",
        "self_attn.o_proj.bias",
        "post_attention_layernorm",
    ];
    layer(0, &attention);
    layer(0, &["mlp.gate_proj", "mlp.gate_proj.bias", "mlp.up_proj", "mlp.up_proj.bias"]);
    layer(0, &["mlp.down_proj", "mlp.down_proj.bias"]);
    layer(1, &attention);
    layer(1, &["mlp.gate_proj", "mlp.gate_proj.lora_A", "mlp.gate_proj.lora_B", "mlp.gate_proj.row_scale"]);
    layer(1, &["mlp.gate_proj.col_scale", "mlp.gate_proj.bias"]);
    layer(1, &["mlp.up_proj", "mlp.up_proj.row_scale", "mlp.up_proj.col_scale", "mlp.up_proj.bias"]);
    layer(1, &["mlp.down_proj", "mlp.down_proj.lora_A", "mlp.down_proj.lora_B", "mlp.down_proj.row_scale"]);
    layer(1, &["mlp.down_proj.col_scale", "mlp.down_proj.bias"]);
    expected.extend(["norm".to_owned(), "lm_head".to_owned()]);
    assert_eq!(found, expected);

    let gemma = config("Gemma3ForCausalLM", "gemma3_text", serde_json::json!({}));
    let found = short(ModelLayout::new(&gemma, None));
    let layer: Vec<&str> = found.iter().filter_map(|name| name.strip_prefix("layers.1.")).collect();
    let norms = ["input_layernorm", "post_attention_layernorm"];
    assert_eq!(layer[..2], norms);
    let rest =
        ["self_attn.q_norm", "self_attn.k_norm", "pre_feedforward_layernorm", "post_feedforward_layernorm"];
    assert_eq!(layer[6..10], rest);
    assert_eq!(layer[10..], ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
}

#[test]
fn every_treatment_says_what_a_projection_is_made_of() {
    let config = config("LlamaForCausalLM", "llama", serde_json::json!({"num_hidden_layers": 7}));
    let ranks = Ranks { gate: 2, up: 3, down: 0 };
    let plan = Plan::new(
        "x",
        vec![
            LayerChange::share(1, 0, Repair::None),
            LayerChange::share(2, 0, Repair::scaled(ranks)),
            LayerChange::low_rank(3, Ranks::uniform(2)),
            LayerChange::prune(4, 5),
            LayerChange::drop(5),
            LayerChange::share(6, 0, Repair::Neurons { neurons: 3 }),
        ],
    );
    plan.validate(&config).unwrap();
    let layout = ModelLayout::new(&config, Some(&plan));
    let parts = |layer, projection| -> Vec<(Part, String, Vec<usize>)> {
        let part = |role| match role {
            Role::Mlp(p, part) if p == projection => part,
            other => panic!("{other:?}"),
        };
        let made_of = layout.projection(layer, projection).into_tensors();
        made_of.map(|slot| (part(slot.role), slot.stored_as, slot.shape)).collect()
    };
    let up = Projection::Up;
    let weight = |layer, shape: &[usize]| (Part::Weight, names::mlp_weight(layer, up), shape.to_vec());
    let a = |layer, rank| (Part::LoraA, names::lora_a(layer, up), vec![rank, 8]);
    let b = |layer, rank| (Part::LoraB, names::lora_b(layer, up), vec![12, rank]);
    assert_eq!(parts(0, up), [weight(0, &[12, 8])]);
    assert_eq!(parts(1, up), [weight(0, &[12, 8])]);
    let row = (Part::RowScale, names::row_scale(2, up), vec![12]);
    assert_eq!(parts(2, up), [weight(0, &[12, 8]), a(2, 3), b(2, 3), row]);
    assert_eq!(parts(2, Projection::Down).len(), 2, "no rank, no factors");
    assert_eq!(parts(3, up), [a(3, 2), b(3, 2)]);
    assert_eq!(parts(4, up), [weight(4, &[5, 8])]);
    assert_eq!(parts(5, up), []);
    let neurons = |p, shape: &[usize]| (Part::Neurons, names::neurons(6, p), shape.to_vec());
    assert_eq!(parts(6, up), [weight(0, &[12, 8]), neurons(up, &[3, 8])]);
    let down = (Part::Weight, names::mlp_weight(0, Projection::Down), vec![8, 12]);
    let row = (Part::RowScale, names::row_scale(6, Projection::Down), vec![8]);
    assert_eq!(parts(6, Projection::Down), [down, neurons(Projection::Down, &[8, 3]), row]);
    let shape = |layer, p| {
        let made = layout.projection(layer, p);
        (made.out_features, made.in_features)
    };
    assert_eq!((shape(4, up), shape(4, Projection::Down)), ((5, 8), (8, 5)));
    assert_eq!((shape(6, up), shape(6, Projection::Down)), ((15, 8), (8, 15)));
    assert_eq!(layout.widest_mlp(), 15);

    // What is stored is each of these once, and nothing else.
    let mut stored: Vec<String> = layout.stored().into_iter().map(|slot| slot.stored_as).collect();
    let mut used: Vec<String> = layout.in_order_of_use().into_iter().map(|slot| slot.stored_as).collect();
    stored.sort();
    used.sort();
    used.dedup();
    assert_eq!(stored, used);
}

#[test]
fn the_head_is_the_embedding_where_they_are_tied() {
    let text = json(golden("hf_llama/tied/config.json")).to_string();
    let tied = ModelConfig::from_json(&text).unwrap();
    assert_eq!(ModelLayout::new(&tied, None).head().unwrap().stored_as, names::EMBED);
    assert!(ModelLayout::new(&tied, None).tensor(Role::Head, None).is_none());
    let untied = config("LlamaForCausalLM", "llama", serde_json::json!({}));
    assert_eq!(ModelLayout::new(&untied, None).head().unwrap().stored_as, names::LM_HEAD);
}
