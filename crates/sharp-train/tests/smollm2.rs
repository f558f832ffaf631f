//! The two forward passes of the workspace, on the default model: LibTorch's that is differentiated, and the
//! engine's that runs.

use sharp_infer::{Model, Options};
use sharp_model::{DType, ModelSource, import};
use sharp_progress::Silent;
use sharp_train::{Compute, Llama};

#[test]
fn both_forward_passes_give_the_same_logits() {
    let Some(path) = sharp_tests::smollm2() else { return };
    let folder = tempfile::tempdir().unwrap();
    let imported = folder.path().join("model");
    import(&path, &imported, DType::F32, &Silent).unwrap();
    let source = ModelSource::open(&imported).unwrap();
    let engine = Model::from_source(&source, &Options::default()).unwrap();
    // Any tokens do: the model is asked what it computes, not whether it is right.
    let tokens: Vec<u32> = (0..48u32).map(|i| (i * i * 997 + 4177 * i + 11) % 49_152).collect();
    let trained = Llama::load(&source, &Compute::cpu(2), tokens.len()).unwrap().logits(&tokens).unwrap();
    let hidden = engine.hidden(&tokens, &mut ()).unwrap();
    let run = engine.logits(&hidden).unwrap();
    assert_eq!(trained.len(), run.len());
    let scale = run.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let error = run.iter().zip(&trained).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale;
    assert!(error < 1e-4, "relative error {error}");
}
