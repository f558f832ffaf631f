//! Calibrated quantisation of whole models.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sharp_infer::{
    Error, Model, Options, QuantReport, Recipe, Synthetic, Team, quantize, quantize_calibrated,
};
use sharp_model::{ModelConfig, ModelSource, Ranks, RecoveryForm, SharingPlan, Target, packed::PackedFile};
use sharp_progress::Silent;

/// Every form of a target layer at once; layers 2 and 3 use an MLP that comes after them.
fn every_form() -> SharingPlan {
    use RecoveryForm::{LowRank, None, RowColumnScaledLowRank, ScaledLowRank};
    SharingPlan::new(
        "explicit",
        vec![
            Target::sharing(1, 0, LowRank, Ranks::uniform(5)),
            Target::sharing(2, 4, None, Ranks::default()),
            Target::sharing(3, 4, ScaledLowRank, Ranks { gate: 3, up: 0, down: 40 }),
            Target::sharing(5, 4, RowColumnScaledLowRank, Ranks::uniform(7)),
            Target::low_rank_only(6, Ranks::uniform(9)),
            Target::dropped(7),
        ],
    )
}

fn source(plan: Option<&SharingPlan>, layers: usize) -> ModelSource {
    let config = ModelConfig::llama(96, 160, layers, 6, 2, 90).unwrap();
    Synthetic::in_memory(&config, plan, 5).unwrap()
}

fn sequences(count: usize) -> Vec<Vec<u32>> {
    // Tokens repeat, so that inputs lie in few directions.
    (0..count).map(|s| (0..40).map(|t| ((s * s * 31 + t * t * 7 + t) % 23) as u32).collect()).collect()
}

fn calibrated(
    source: &ModelSource,
    recipe: &Recipe,
    folder: &Path,
    threads: usize,
) -> (PathBuf, QuantReport) {
    let out = folder.join(format!("calibrated-{threads}.sharp"));
    let team = Arc::new(Team::new(threads).unwrap());
    let report = quantize_calibrated(source, recipe, &sequences(12), &out, &team, &Silent).unwrap();
    (out, report)
}

fn distance(model: &Path, original: &Model) -> f64 {
    let model = Model::open(model, &Options { threads: 1, ..Options::default() }).unwrap();
    let (mut error, mut size) = (0.0, 0.0);
    for tokens in &sequences(12) {
        let [a, b] = [&model, original].map(|m| m.forward(tokens, &mut ()).unwrap());
        for (a, b) in a.iter().zip(&b) {
            error += f64::from(a - b).powi(2);
            size += f64::from(*b).powi(2);
        }
    }
    (error / size).sqrt()
}

#[test]
fn the_model_comes_nearer_to_its_original_at_the_same_size() {
    let plan = every_form();
    for source in [source(None, 4), source(Some(&plan), 8)] {
        let original = Model::from_source(&source, &Options::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain.sharp");
        let before = quantize(&source, &Recipe::q4(), &plain, &Team::new(2).unwrap(), &Silent).unwrap();
        let (made, after) = calibrated(&source, &Recipe::q4(), folder.path(), 2);
        assert_eq!((before.calibration_tokens, after.calibration_tokens), (0, 480));
        assert_eq!(before.weight_bytes, after.weight_bytes);
        let (plain, made) = (distance(&plain, &original), distance(&made, &original));
        assert!(made < 0.8 * plain, "calibrated {made}, plain {plain}");
    }
}

#[test]
fn bytes_do_not_depend_on_threads_and_the_file_says_what_was_done() {
    let plan = every_form();
    let source = source(Some(&plan), 8);
    let folder = tempfile::tempdir().unwrap();
    let [(one, report), (two, _)] =
        [1, 2].map(|threads| calibrated(&source, &Recipe::q4(), folder.path(), threads));
    assert!(std::fs::read(&one).unwrap() == std::fs::read(two).unwrap());
    let file = PackedFile::open(&one).unwrap();
    assert_eq!(file.recipe()["calibration_tokens"], 480);
    assert_eq!(file.recipe()["name"], "q4");
    assert_eq!(serde_json::to_value(&report).unwrap()["calibration_tokens"], 480);
    for tensor in &report.tensors {
        assert!(tensor.relative_error < 0.3, "{tensor:?}");
    }
}

#[test]
fn recipes_of_every_format_are_calibrated() {
    let plan = every_form();
    let source = source(Some(&plan), 8);
    let original = Model::from_source(&source, &Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (attention, mlp, most) in
        [("q4", "f16", 0.3), ("f16", "q8", 0.05), ("q8", "q8", 0.05), ("f16", "f16", 0.05)]
    {
        let path = folder.path().join("recipe.toml");
        let recipe = format!(
            "name = \"mine\"\nattention = \"{attention}\"\nmlp = \"{mlp}\"\nembedding = \"q8\"\nhead = \"q8\"\nrecovery = \"q8\"\n"
        );
        std::fs::write(&path, recipe).unwrap();
        let recipe = Recipe::load(path.to_str().unwrap()).unwrap();
        let (made, _) = calibrated(&source, &recipe, folder.path(), 2);
        let found = distance(&made, &original);
        assert!(found < most, "{attention} {mlp}: {found}");
    }
}

/// The first layer and its inputs are the same in all of these models; what differs is who else uses its MLP.
#[test]
fn a_shared_matrix_is_rounded_for_all_that_use_it() {
    let folder = tempfile::tempdir().unwrap();
    let matrix = |targets: Vec<Target>, name: &str| {
        let plan = SharingPlan::new("explicit", targets);
        let (path, _) = calibrated(&source(Some(&plan), 4), &Recipe::q4(), folder.path(), 1);
        PackedFile::open(path).unwrap().tensor(name).unwrap().bytes.to_vec()
    };
    let none = RecoveryForm::None;
    let alone = || vec![Target::dropped(2)];
    let twice = || vec![Target::sharing(2, 0, none, Ranks::default())];
    let (gate, down) = ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight");
    let query = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(matrix(alone(), query), matrix(twice(), query));
    for name in [gate, down] {
        assert_ne!(matrix(alone(), name), matrix(twice(), name), "{name}");
        let thrice = vec![
            Target::sharing(2, 0, none, Ranks::default()),
            Target::sharing(3, 0, RecoveryForm::ScaledLowRank, Ranks::uniform(2)),
        ];
        assert_ne!(matrix(thrice, name), matrix(twice(), name), "{name}");
    }
}

#[test]
fn tokens_that_cannot_be_are_refused() {
    let source = source(None, 2);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.sharp");
    let team = Arc::new(Team::new(1).unwrap());
    let refused = |sequences: &[Vec<u32>]| {
        quantize_calibrated(&source, &Recipe::q4(), sequences, &out, &team, &Silent).unwrap_err()
    };
    assert!(refused(&[]).to_string().contains("no tokens to calibrate on"));
    assert!(matches!(refused(&[vec![], vec![]]), Error::Argument { .. }));
    assert!(matches!(refused(&[vec![1, 90]]), Error::Token { token: 90, .. }));
    assert!(!out.exists());
}
