//! Logits against transformers' on small random models (tests/golden/hf_llama).

use std::path::Path;

use sharp_model::{HfCheckpoint, ModelSource, TensorSource};
use sharp_train::{Compute, Llama};

#[test]
fn logits_agree_with_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama");
    for case in ["gqa_untied", "tied", "rope_linear", "rope_llama3", "biases"] {
        let source = ModelSource::open(folder.join(case)).unwrap();
        let expected = HfCheckpoint::open(folder.join(case).join("expected.safetensors")).unwrap();
        // The golden file's tokens are int64, which is no type this project computes with: read by hand.
        let tokens = tokens(&folder.join(case).join("expected.safetensors"));
        let model = Llama::load(&source, &Compute::cpu(1), tokens.len()).unwrap();
        let found = model.logits(&tokens).unwrap();
        let want = expected.f32("logits").unwrap();
        assert_eq!(found.len(), want.len(), "{case}");
        let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let error = found.iter().zip(&want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale;
        assert!(error < 1e-4, "{case}: relative error {error}");
        assert!(model.logits(&[]).is_err() && model.logits(&vec![1; tokens.len() + 1]).is_err());
        assert!(model.logits(&[u32::MAX]).is_err());
    }
}

fn tokens(path: &Path) -> Vec<u32> {
    let bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = |i: usize| json["tokens"]["data_offsets"][i].as_u64().unwrap() as usize + 8 + header;
    bytes[at(0)..at(1)].chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}
