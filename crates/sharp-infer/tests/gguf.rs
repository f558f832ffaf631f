//! GGUF files run where they lie, against the values that the `gguf` package reads from them
//! (tests/golden/gguf/gen.py).

use std::path::{Path, PathBuf};

use sharp_infer::{DType, Model, Options, Session, Weight};
use sharp_model::{HfCheckpoint, ModelSource, TensorSource};

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf").join(case)
}

fn options() -> Options {
    Options { threads: 2, ..Options::default() }
}

fn values(weight: &Weight) -> Vec<f32> {
    let mut all = vec![0.0; weight.rows() * weight.cols()];
    for (i, row) in all.chunks_exact_mut(weight.cols()).enumerate() {
        weight.row(i, row).unwrap();
    }
    all
}

#[test]
fn blocks_that_the_kernels_know_keep_their_numbers_and_others_round_to_eight_bits() {
    let model = Model::open(folder("llama_mixed").join("model.gguf"), &options()).unwrap();
    let expected = HfCheckpoint::open(folder("llama_mixed").join("expected.safetensors")).unwrap();
    for (i, layer) in model.layers().iter().enumerate() {
        let attention = layer.attention().projections().into_iter().zip(["q", "k", "v", "o"]);
        let mlp = layer.mlp().projections().into_iter().zip(["gate", "up", "down"]);
        let named = attention
            .map(|(l, n)| (l, format!("self_attn.{n}_proj")))
            .chain(mlp.map(|(l, n)| (l, format!("mlp.{n}_proj"))));
        for (linear, name) in named {
            let name = format!("model.layers.{i}.{name}.weight");
            let weight = linear.base().unwrap();
            let (found, truth) = (values(&weight), expected.f32(&name).unwrap());
            // Q4_1 in the file: attention keys and the up projections.
            let rounded = name.contains("k_proj") || name.contains("up_proj");
            let format = match name.split('.').nth_back(1).unwrap() {
                "q_proj" | "gate_proj" => "q4x16",
                "v_proj" => "BF16",
                _ => "q8x16",
            };
            assert_eq!(weight.format_name(), format, "{name}");
            if !rounded {
                assert_eq!(found, truth, "{name}");
                continue;
            }
            for (found, truth) in found.chunks(32).zip(truth.chunks(32)) {
                // Half a step, and what a 16-bit scale adds.
                let step = truth.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
                for (f, t) in found.iter().zip(truth) {
                    assert!((f - t).abs() <= 0.57 * step, "{name}: {f} for {t}");
                }
            }
        }
    }
    assert_eq!(values(model.embedding()), expected.f32("model.embed_tokens.weight").unwrap());
    assert_eq!(values(model.head()), expected.f32("lm_head.weight").unwrap());
}

#[test]
fn a_tied_embedding_is_in_memory_once() {
    for case in ["qwen2", "sentencepiece"] {
        let model = Model::open(folder(case).join("model.gguf"), &options()).unwrap();
        assert!(model.embedding().is_same(model.head()), "{case}");
    }
}

#[test]
fn its_logits_are_those_of_the_exact_values_but_for_rounding() {
    for case in ["llama_mixed", "qwen2", "sentencepiece", "gpt2_pre"] {
        let file = folder(case).join("model.gguf");
        let exact = Model::from_source(&ModelSource::open(&file).unwrap(), &options()).unwrap();
        let run = Model::open(&file, &options()).unwrap();
        let tokens: Vec<u32> = (0..24).map(|i| (i * 7 + 3) % exact.config().vocab_size as u32).collect();
        let logits = |model: &Model| session(model).prefill(&tokens).unwrap().to_vec();
        let (a, b) = (logits(&run), logits(&exact));
        let norm = |v: &[f32]| v.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        let apart: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        let relative = norm(&apart) / norm(&b);
        // The first case's random weights are so large that any 8-bit rounding of activations changes its
        // logits by a third.
        assert!(relative < if case == "llama_mixed" { 0.5 } else { 0.03 }, "{case}: {relative}");
    }
}

fn session(model: &Model) -> Session {
    Session::new(model, 64).unwrap()
}

#[test]
fn keys_and_values_take_half_the_memory_where_the_weights_are_blocks() {
    // One number more in 16 bits would show in the logits: the option says so, and the default is F16.
    let file = folder("llama_mixed").join("model.gguf");
    let logits = |kv: Option<DType>| {
        let model = Model::open(&file, &Options { kv_cache: kv, ..options() }).unwrap();
        let mut session = session(&model);
        session.prefill(&[5, 6, 7, 8, 9, 10, 11]).unwrap().to_vec()
    };
    assert_eq!(logits(None), logits(Some(DType::F16)));
    assert_ne!(logits(None), logits(Some(DType::F32)));
}
