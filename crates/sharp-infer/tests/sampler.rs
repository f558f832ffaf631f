//! What the filters leave of random logits, against transformers' logits processors (tests/golden/sampler).

use serde_json::Value;
use sharp_infer::{Sampler, SamplerOptions};

fn numbers(v: &Value) -> Vec<f32> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn filters_agree_with_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/sampler/distributions.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for case in &cases {
        let float = |key: &str| case[key].as_f64().unwrap() as f32;
        let options = SamplerOptions {
            temperature: float("temperature"),
            top_k: case["top_k"].as_u64().unwrap() as usize,
            top_p: float("top_p"),
            min_p: float("min_p"),
            repetition_penalty: float("repetition_penalty"),
            seed: 0,
        };
        let mut sampler = Sampler::new(options.clone()).unwrap();
        let mut logits = numbers(&case["logits"]);
        let history: Vec<u32> = numbers(&case["history"]).into_iter().map(|t| t as u32).collect();
        sampler.penalise(&mut logits, &history);
        let expected = numbers(&case["probabilities"]);
        let mut found = vec![0.0; expected.len()];
        for &(token, p) in sampler.distribution(&logits) {
            found[token as usize] = p;
        }
        for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
            assert!((f - e).abs() < 1e-5 && (*f == 0.0) == (*e < 1e-12), "{options:?} token {i}: {f}, {e}");
        }
    }
}
