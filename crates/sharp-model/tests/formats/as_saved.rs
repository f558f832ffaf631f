//! Checkpoints as tools leave them: read as the model that they are, or refused by every command alike.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sharp_model::{DType, ModelSource, import};
use sharp_progress::Silent;

use crate::golden;
use crate::raw::complaint;

const UP: &str = "model.layers.0.mlp.up_proj.weight";

/// A copy of a small model, its file's names and keys changed.
fn saved(
    case: &str,
    names: impl Fn(&str) -> Option<String>,
    more: &[(&str, &[usize])],
    keys: &Value,
) -> tempfile::TempDir {
    let (dir, from) = (tempfile::tempdir().unwrap(), golden("hf_llama").join(case));
    let mut config = crate::json(from.join("config.json"));
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let old: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let mut data = Vec::new();
    let mut table = serde_json::Map::new();
    for (name, entry) in old.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        let Some(new) = names(name) else { continue };
        let range = |i: usize| 8 + header + entry["data_offsets"][i].as_u64().unwrap() as usize;
        let begin = data.len();
        data.extend_from_slice(&bytes[range(0)..range(1)]);
        let mut entry = entry.clone();
        entry["data_offsets"] = json!([begin, data.len()]);
        table.insert(new, entry);
    }
    for (name, shape) in more {
        let begin = data.len();
        data.resize(begin + 4 * shape.iter().product::<usize>(), 0);
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        table.insert((*name).to_owned(), entry);
    }
    let text = Value::Object(table).to_string();
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    out.extend(data);
    fs::write(dir.path().join("model.safetensors"), out).unwrap();
    dir
}

/// Refused by opening and importing alike.
fn refused(folder: &Path, words: &[&str]) {
    let name = folder.to_str().unwrap();
    complaint(ModelSource::open(folder), name, words);
    complaint(import(folder, folder.join("out"), DType::F32, &Silent), name, words);
}

#[test]
fn names_that_a_wrapper_made_longer_are_the_models_own() {
    let plain = ModelSource::open(golden("hf_llama/tied")).unwrap();
    let wrappers: [fn(&str) -> String; 6] = [
        |name| format!("_orig_mod.{name}"),
        |name| format!("module.{name}"),
        |name| format!("module._orig_mod.{name}"),
        |name| format!("base_model.model.{name}"),
        |name| name.replace("layers.0.", "layers.0._orig_mod."),
        |name| name.replace("mlp.", "_fsdp_wrapped_module.mlp._checkpoint_wrapped_module."),
    ];
    for wrapper in wrappers {
        let dir = saved("tied", |name| Some(wrapper(name)), &[], &json!({}));
        let found = ModelSource::open(dir.path()).unwrap_or_else(|e| panic!("{}: {e}", wrapper("x")));
        for info in plain.stored_tensors().unwrap() {
            let (a, b) = (plain.tensor(&info.name).unwrap(), found.tensor(&info.name).unwrap());
            assert_eq!(a.f32().unwrap(), b.f32().unwrap(), "{}", info.name);
        }
        import(dir.path(), dir.path().join("out"), DType::F32, &Silent).unwrap();
    }
    // Names that would meet stay apart, and what is missing is named.
    let meet = |name: &str| Some(name.replace("layers.1.mlp.up_proj", "_orig_mod.layers.0.mlp.up_proj"));
    refused(saved("tied", meet, &[], &json!({})).path(), &["no tensor", "layers.1.mlp.up_proj"]);
}

#[test]
fn a_tied_pair_may_have_the_heads_name_alone() {
    let plain = ModelSource::open(golden("hf_llama/tied")).unwrap();
    let embed = "model.embed_tokens.weight";
    let head = |name: &str| Some(name.replace(embed, "lm_head.weight"));
    let dir = saved("tied", head, &[], &json!({}));
    let found = ModelSource::open(dir.path()).unwrap();
    assert_eq!(found.tensor(embed).unwrap().f32().unwrap(), plain.tensor(embed).unwrap().f32().unwrap());
    import(dir.path(), dir.path().join("out"), DType::F32, &Silent).unwrap();
    // A head of its own beside a tied embedding is not dropped.
    let shape = plain.tensor(embed).unwrap().shape().to_vec();
    let differs = saved("tied", |name| Some(name.to_owned()), &[("lm_head.weight", &shape)], &json!({}));
    refused(differs.path(), &["lm_head.weight", "tie_word_embeddings", "false"]);
    // Untied, the head alone is no embedding.
    refused(saved("tied", head, &[], &json!({"tie_word_embeddings": false})).path(), &["no tensor", embed]);
}

#[test]
fn weights_that_would_not_be_used_are_refused_with_what_to_do() {
    let same = |name: &str| Some(name.to_owned());
    let config = crate::json(golden("hf_llama/tied/config.json"));
    let width = config["hidden_size"].as_u64().unwrap() as usize;
    let layers = config["num_hidden_layers"].as_u64().unwrap();
    let surplus = format!("model.layers.{layers}.input_layernorm.weight");
    for (name, word) in [
        ("model.layers.0.self_attn.o_proj.bias", "attention_bias"),
        ("model.layers.0.mlp.up_proj.bias", "mlp_bias"),
        (surplus.as_str(), "num_hidden_layers"),
        ("score.weight", "LlamaForCausalLM"),
        ("model.layers.0.mlp.gate.expert.weight", "write the checkpoint again"),
    ] {
        let dir = saved("tied", same, &[(name, &[width])], &json!({}));
        refused(dir.path(), &[name, word]);
    }
    // Tables that nothing computes with.
    let tables = [("model.layers.0.self_attn.rotary_emb.inv_freq", &[4][..]), ("rotary_emb.inv_freq", &[4])];
    let dir = saved("tied", same, &tables, &json!({}));
    ModelSource::open(dir.path()).unwrap().tensor(UP).unwrap();
}
