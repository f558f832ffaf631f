//! GGUF files made by the reference package, against what they stand for (tests/golden/gguf/gen.py).

use std::path::Path;

use sharp_model::Rotary;
use sharp_model::gguf::{Gguf, HfView};
use sharp_model::import;
use sharp_model::tokenizer::Tokenizer;
use sharp_model::{DType, HfCheckpoint, ModelConfig, RopeScaling, TensorSource};
use sharp_progress::Silent;

use crate::{golden, json};

const CASES: [&str; 5] = ["llama_mixed", "qwen2", "sentencepiece", "gpt2_pre", "smollm_pre"];

fn imported(case: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("imported");
    import(golden("gguf").join(case).join("model.gguf"), &out, DType::F32, &Silent).unwrap();
    (dir, out)
}

fn same_tensors(found: &dyn TensorSource, expected: &Path) {
    let expected = HfCheckpoint::open(expected).unwrap();
    let names = |s: &dyn TensorSource| s.tensors().into_iter().map(|t| (t.name, t.shape)).collect::<Vec<_>>();
    assert_eq!(names(found), names(&expected));
    for info in expected.tensors() {
        assert_eq!(found.f32(&info.name).unwrap(), expected.f32(&info.name).unwrap(), "{}", info.name);
    }
}

#[test]
fn weights_are_the_reference_packages_in_hugging_face_order() {
    for case in CASES {
        let expected = golden("gguf").join(case).join("expected.safetensors");
        let (_dir, out) = imported(case);
        same_tensors(&HfCheckpoint::open(&out).unwrap(), &expected);
        // The view without writing anything gives the same.
        let gguf = Gguf::open(golden("gguf").join(case).join("model.gguf")).unwrap();
        same_tensors(&HfView::new(gguf.into()).unwrap(), &expected);
    }
}

#[test]
fn a_smollm3_file_has_the_models_weights() {
    let gguf = Gguf::open(golden("gguf_families").join("smollm3.gguf")).unwrap();
    let view = HfView::new(gguf.into()).unwrap();
    same_tensors(&view, &golden("hf_families").join("smollm3"));
    let turned: Vec<bool> = view.config().layer_kinds.iter().map(|k| k.rotary != Rotary::None).collect();
    assert_eq!(turned, [true, true, true, false]);
}

#[test]
fn configurations_are_hugging_faces() {
    for case in CASES {
        let (_dir, out) = imported(case);
        let found = json(out.join("config.json"));
        let expected = json(golden("gguf").join(case).join("expected.json"));
        for (key, value) in expected["config"].as_object().unwrap() {
            let (a, b) = (&found[key], value);
            let same = a == b || (a.is_number() && a.as_f64() == b.as_f64());
            let same = same || (a.is_object() && numbers(a) == numbers(b));
            assert!(same, "{case}: `{key}` is {a}, expected {b}");
        }
        assert_eq!(found["torch_dtype"], "float32");
        ModelConfig::load(&out).unwrap();
    }
}

/// An object with its numbers as floats: 8 and 8.0 are the same setting.
fn numbers(value: &serde_json::Value) -> Vec<(String, String)> {
    let show = |v: &serde_json::Value| v.as_f64().map_or_else(|| v.to_string(), |f| f.to_string());
    let mut all: Vec<_> = value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), show(v))).collect();
    all.sort();
    all
}

#[test]
fn llama_3_scaling_is_recovered_from_its_factors() {
    let (_dir, out) = imported("llama_mixed");
    let config = ModelConfig::load(&out).unwrap();
    assert!(
        matches!(config.rope_scaling, RopeScaling::Llama3 { factor, .. } if factor == 32.0),
        "{config:?}"
    );
}

#[test]
fn tokens_are_those_of_a_plain_tokenizer() {
    for case in CASES {
        let (_dir, out) = imported(case);
        let tokenizer = Tokenizer::load(&out).unwrap();
        let expected = json(golden("gguf").join(case).join("expected.json"));
        for row in expected["texts"].as_array().unwrap() {
            let text = row[0].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(row[1].clone()).unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{case}: {text:?}");
            let bos = expected["begins_with_bos"].as_bool().unwrap();
            let whole: Vec<u32> = bos.then(|| tokenizer.bos_id().unwrap()).into_iter().chain(ids).collect();
            assert_eq!(tokenizer.encode(text, true).unwrap(), whole, "{case}: {text:?} with special tokens");
        }
    }
}

#[test]
fn what_surrounds_the_tokenizer_comes_along() {
    let (_dir, out) = imported("llama_mixed");
    let tokenizer = Tokenizer::load(&out).unwrap();
    let id = |t: &str| tokenizer.token_id(t).unwrap();
    assert_eq!(tokenizer.bos_id(), Some(id("<|begin|>")));
    assert_eq!(tokenizer.eos_ids(), [id("<|end|>"), id("<|turn|>")]);
    assert_eq!(tokenizer.chat_template(), Some("{{ messages[0]['content'] }}"));
    assert_eq!(tokenizer.special_tokens().len(), 3);
    let ids = tokenizer.encode("a<|turn|>b", false).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a<|turn|>b");
    assert_eq!(tokenizer.decode_text(&ids).unwrap(), "ab");
}

#[test]
fn importing_twice_gives_the_same_bytes() {
    let ((_a, first), (_b, second)) = (imported("llama_mixed"), imported("llama_mixed"));
    for name in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(
            std::fs::read(first.join(name)).unwrap(),
            std::fs::read(second.join(name)).unwrap(),
            "{name}"
        );
    }
}
