//! The two forward passes of the workspace, on the default model: LibTorch's that is differentiated, and the engine's that runs.

use std::path::PathBuf;

use sharp_infer::{Model, Options};
use sharp_model::ModelSource;
use sharp_train::{Compute, Llama};

/// The default model in the project's cache; `None`, with a note, where it has not been fetched.
#[allow(clippy::print_stderr)]
fn smollm2() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = set("SHARP_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("sharp")))
        .or_else(|| set("HOME").map(|p| p.join(".cache/sharp")));
    let path = cache.unwrap_or_default().join("models/smollm2-135m-instruct/model.gguf");
    if path.is_file() {
        return Some(path);
    }
    assert!(
        set("SHARP_REQUIRE_MATERIALS").is_none(),
        "{} is missing: run `cargo xtask setup`",
        path.display()
    );
    eprintln!("skipped: {} is missing; `cargo xtask setup` fetches it", path.display());
    None
}

#[test]
fn both_forward_passes_give_the_same_logits() {
    let Some(path) = smollm2() else { return };
    let source = ModelSource::open(path).unwrap();
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
