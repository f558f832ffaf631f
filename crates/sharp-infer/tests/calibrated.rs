//! Calibrated quantisation of whole models.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sharp_infer::{
    Error, Model, Options, QuantReport, Recipe, Synthetic, Team, quantize, quantize_calibrated, quantize_onto,
};
use sharp_model::{
    LayerChange, ModelConfig, ModelSource, Plan, Projection, Ranks, Repair, packed::PackedFile,
};
use sharp_progress::Silent;
use sharp_quant::{Feedback, Gram, PackedFormat, float, pack_calibrated};

/// Every form of a target layer at once; layers 2 and 3 use an MLP that comes after them.
fn every_form() -> Plan {
    Plan::new(
        "explicit",
        vec![
            LayerChange::share(1, 0, Repair::low_rank(Ranks::uniform(5))),
            LayerChange::share(2, 4, Repair::None),
            LayerChange::share(3, 4, Repair::scaled(Ranks { gate: 3, up: 0, down: 40 })),
            LayerChange::share(5, 4, Repair::row_column_scaled(Ranks::uniform(7))),
            LayerChange::low_rank(6, Ranks::uniform(9)),
            LayerChange::drop(7),
            LayerChange::share(8, 4, Repair::Neurons { neurons: 32 }),
        ],
    )
}

fn source(plan: Option<&Plan>, layers: usize) -> ModelSource {
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
    for source in [source(None, 4), source(Some(&plan), 9)] {
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
    let source = source(Some(&plan), 9);
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

/// What training changed is rounded, the rest lies as it lay in the calibrated file.
#[test]
fn only_what_is_new_is_rounded_onto_a_file() {
    let plan = every_form();
    let source = source(Some(&plan), 9);
    let folder = tempfile::tempdir().unwrap();
    let (base, _) = calibrated(&source, &Recipe::q4(), folder.path(), 2);
    let base = PackedFile::open(base).unwrap();
    let plain = folder.path().join("plain.sharp");
    let team = Team::new(2).unwrap();
    quantize(&source, &Recipe::q4(), &plain, &team, &Silent).unwrap();
    let plain = PackedFile::open(plain).unwrap();
    let anew = ["model.layers.4.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.lora_A.weight"];
    let out = folder.path().join("onto.sharp");
    let names = anew.iter().map(|name| (*name).to_owned()).collect();
    let report = quantize_onto(&source, &base, &names, &out, &team, &Silent).unwrap();
    assert_eq!(report.calibration_tokens, 480);
    let onto = PackedFile::open(&out).unwrap();
    assert_eq!(onto.recipe(), base.recipe());
    let mut differ = 0;
    for (name, _) in onto.names() {
        let [onto, base, plain] =
            [&onto, &base, &plain].map(|file| file.tensor(name).unwrap().bytes.to_vec());
        differ += usize::from(base != plain);
        // Layers 2, 3, 5 and 8 use layer 4's.
        let new = anew.contains(&name)
            || (name.ends_with("mlp.up_proj.weight")
                && ["2", "3", "5", "8"].iter().any(|l| name.contains(&format!("layers.{l}."))));
        assert!(onto == if new { plain } else { base }, "{name}");
    }
    assert!(differ > 20, "calibration changed {differ} matrices");

    let other = Synthetic::in_memory(&ModelConfig::llama(96, 192, 8, 6, 2, 90).unwrap(), None, 5).unwrap();
    let error = quantize_onto(&other, &base, &names, &out, &team, &Silent).unwrap_err();
    assert!(
        matches!(error, Error::Argument { .. }) && error.to_string().contains("another model"),
        "{error}"
    );
    assert!(PackedFile::open(&out).is_ok(), "the file that was there stays");
}

#[test]
fn recipes_of_every_format_are_calibrated() {
    let plan = every_form();
    let source = source(Some(&plan), 9);
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

/// Layer 0's MLP serves layers 2 and 3 too: its matrices are rounded by the sum of what they get in all
/// three, row scales counted.
#[test]
fn a_shared_matrix_is_rounded_for_all_that_use_it() {
    let plan = Plan::new(
        "explicit",
        vec![
            LayerChange::share(2, 0, Repair::None),
            LayerChange::share(3, 0, Repair::scaled(Ranks::uniform(2))),
        ],
    );
    let source = source(Some(&plan), 4);
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = calibrated(&source, &Recipe::q4(), folder.path(), 2);
    let file = PackedFile::open(path).unwrap();

    let team = Team::new(1).unwrap();
    let model = Model::from_source(&source, &Options { threads: 1, ..Options::default() }).unwrap();
    let sequences = sequences(12);
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let mut inputs = vec![Vec::new(); 4];
    model.stream(&sequences, &mut |_, view| inputs[view.layer].extend_from_slice(view.mlp_input)).unwrap();
    for projection in [Projection::Gate, Projection::Up] {
        let mut sum: Option<Gram> = None;
        for layer in [0, 2, 3] {
            let scales = source.projection(layer, projection).unwrap().row_scale;
            let weight = scales.map_or(1.0, |scales| {
                let scales = scales.f32().unwrap();
                scales.iter().map(|r| f64::from(*r).powi(2)).sum::<f64>() / scales.len() as f64
            });
            assert_eq!(layer == 3, weight != 1.0);
            let mut evened = inputs[layer].clone();
            for x in evened.chunks_mut(96) {
                let factor = 1.0 / (float::dot(team.isa(), x, x) / 96.0).sqrt();
                x.iter_mut().for_each(|v| *v *= factor);
            }
            let mut gram = Gram::new(96).unwrap();
            gram.add(&team, &evened, weight).unwrap();
            if let Some(sum) = sum {
                gram.merge(&sum).unwrap();
            }
            sum = Some(gram);
        }
        let feedback = Feedback::new(&team, sum.unwrap(), 0.01).unwrap();
        let base = source.projection(0, projection).unwrap().base.unwrap();
        let weights = base.f32().unwrap();
        let mut expected = vec![0; PackedFormat::Q4.nbytes(160, 96).unwrap()];
        pack_calibrated(&team, PackedFormat::Q4, (160, 96), &weights, &feedback, &mut expected).unwrap();
        assert!(file.tensor(base.name()).unwrap().bytes.to_vec() == expected, "{}", base.name());
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
