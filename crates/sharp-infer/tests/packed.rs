//! Packed models: quantising, sharing, recovery, determinism.

use std::path::Path;

use proptest::prelude::*;
use sharp_infer::{
    Batch, Error, Load, Model, Options, QuantReport, Recipe, Session, Synthetic, Team, quantize,
};
use sharp_model::{ExportOptions, export_dense};
use sharp_model::{
    LayerChange, ModelConfig, ModelSource, Plan, Projection, Ranks, Repair,
    packed::{BlobFormat, PackedFile, PackedWriter},
};
use sharp_progress::Silent;
use sharp_quant::DType;

fn config(hidden: usize, intermediate: usize, layers: usize, heads: usize, kv: usize) -> ModelConfig {
    ModelConfig::llama(hidden, intermediate, layers, heads, kv, 90).unwrap()
}

/// Every form of a target layer at once, on a model of nine layers.
fn every_form() -> Plan {
    Plan::new(
        "explicit",
        vec![
            LayerChange::share(1, 0, Repair::low_rank(Ranks::uniform(5))),
            LayerChange::share(2, 0, Repair::None),
            LayerChange::share(3, 0, Repair::scaled(Ranks { gate: 3, up: 0, down: 40 })),
            LayerChange::share(5, 4, Repair::row_column_scaled(Ranks::uniform(7))),
            LayerChange::low_rank(6, Ranks::uniform(9)),
            LayerChange::drop(7),
            LayerChange::share(8, 4, Repair::Neurons { neurons: 32 }),
        ],
    )
}

fn open(path: &Path, threads: usize) -> Model {
    Model::open(path, &Options { threads, ..Options::default() }).unwrap()
}

fn pack(source: &ModelSource, recipe: &Recipe, folder: &Path) -> (std::path::PathBuf, QuantReport) {
    let out = folder.join("model.sharp");
    let report = quantize(source, recipe, &out, &Team::new(2).unwrap(), &Silent).unwrap();
    (out, report)
}

fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let (mut error, mut size) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        error += f64::from(a - b).powi(2);
        size += f64::from(*b).powi(2);
    }
    (error / size).sqrt()
}

const TOKENS: [u32; 12] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 89];

#[test]
fn quantised_models_stay_near_their_originals() {
    let config = config(96, 160, 9, 6, 2);
    let source = Synthetic::in_memory(&config, Some(&every_form()), 3).unwrap();
    let original =
        Model::from_source(&source, &Options::default()).unwrap().forward(&TOKENS, &mut ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (recipe, weights, logits) in [("f16", 4e-4, 2e-3), ("q8", 7e-3, 0.05), ("q4", 0.11, 0.6)] {
        let (path, report) = pack(&source, &Recipe::load(recipe).unwrap(), folder.path());
        for t in &report.tensors {
            assert!(t.relative_error < weights, "{recipe} {t:?}");
            assert_eq!(t.format == "f32", t.relative_error == 0.0, "{t:?}");
        }
        let found = open(&path, 2).forward(&TOKENS, &mut ()).unwrap();
        let d = difference(&found, &original);
        assert!(d < logits, "{recipe}: {d}");
        assert!(recipe == "f16" || d > 1e-4, "{recipe}: {d}: nothing was quantised");
    }
}

#[test]
fn a_recovery_form_in_a_packed_file_is_what_it_is_in_a_checkpoint() {
    // F16 leaves the weights almost as they are, so each form's arithmetic shows.
    let config = config(64, 96, 9, 4, 2);
    let source = Synthetic::in_memory(&config, Some(&every_form()), 11).unwrap();
    let plain = Model::from_source(&source, &Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = pack(&source, &Recipe::f16(), folder.path());
    let packed = open(&path, 2);
    let x: Vec<f32> = (0..64 * 70).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
    for layer in 0..9 {
        let (a, b) = (plain.mlp(layer, &x).unwrap(), packed.mlp(layer, &x).unwrap());
        if layer == 7 {
            assert!(a.iter().chain(&b).all(|v| *v == 0.0) && packed.layers()[7].mlp().is_zero());
            continue;
        }
        let d = difference(&b, &a);
        assert!(d < 2e-3, "layer {layer}: {d}");
        // Against the effective weights, multiplied out.
        let s = |p| source.projection(layer, p).unwrap().effective_f32().unwrap();
        let (gate, up, down) = (s(Projection::Gate), s(Projection::Up), s(Projection::Down));
        let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(a, b)| f64::from(a * b)).sum::<f64>() as f32;
        let row = &x[..64];
        let inner: Vec<f32> = (0..up.len() / 64)
            .map(|i| {
                let g = dot(&gate[i * 64..(i + 1) * 64], row);
                g / (1.0 + (-g).exp()) * dot(&up[i * 64..(i + 1) * 64], row)
            })
            .collect();
        let expected: Vec<f32> =
            (0..64).map(|i| dot(&down[i * inner.len()..(i + 1) * inner.len()], &inner)).collect();
        let d = difference(&a[..64], &expected);
        assert!(d < 1e-5, "layer {layer}: {d}");
    }
}

#[test]
fn shared_matrices_are_one_in_memory_and_on_disk() {
    let config = config(64, 128, 9, 4, 2);
    let source = Synthetic::in_memory(&config, Some(&every_form()), 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (path, report) = pack(&source, &Recipe::q4(), folder.path());
    for model in [open(&path, 1), Model::from_source(&source, &Options::default()).unwrap()] {
        let mlp =
            |i: usize| model.layers()[i].mlp().projections().map(|p| p.base().unwrap().bytes().as_ptr());
        assert_eq!(mlp(0), mlp(1));
        assert_eq!(mlp(0), mlp(2));
        assert_eq!(mlp(4), mlp(5));
        assert_ne!(mlp(0), mlp(4));
        let bytes = model.weight_bytes();
        assert!(bytes.per_token < bytes.per_token_unshared);
    }
    // Gate of layer 0 serves layers 1, 2 and 3.
    let gate = report.tensors.iter().find(|t| t.name == "model.layers.0.mlp.gate_proj.weight").unwrap();
    assert_eq!((gate.shared_by, gate.bytes), (3, 128 * 64 / 32 * 18));
    assert_eq!(report.weight_bytes, report.tensors.iter().map(|t| t.bytes).sum::<u64>());
    assert_eq!(report.weight_bytes, sharp_infer::quantized_bytes(&source, &Recipe::q4()).unwrap());
    let model = open(&path, 1);
    assert_eq!(model.weight_bytes().total, report.weight_bytes);
    let [map, read] = [Load::Map, Load::Read]
        .map(|load| Model::open(&path, &Options { threads: 1, load, ..Options::default() }).unwrap());
    assert_eq!(read.forward(&TOKENS, &mut ()).unwrap(), map.forward(&TOKENS, &mut ()).unwrap());
    assert!(report.file_bytes >= report.weight_bytes && report.file_bytes < report.weight_bytes + 64 * 1024);
    let file = PackedFile::open(&path).unwrap();
    assert_eq!(file.plan(), source.plan());
    let blob = |name: &str| file.tensor(name).unwrap().blob;
    assert_eq!(blob("model.layers.2.mlp.up_proj.weight"), blob("model.layers.0.mlp.up_proj.weight"));
}

#[test]
fn models_over_one_base_share_it() {
    let config = config(64, 96, 4, 4, 2);
    let base = Synthetic::in_memory(&config, None, 1).unwrap();
    let options = Options { team: Some(std::sync::Arc::new(Team::new(1).unwrap())), ..Options::default() };
    let original = Model::from_source(&base, &options).unwrap();
    let plan = Plan::new("explicit", vec![LayerChange::share(2, 1, Repair::low_rank(Ranks::uniform(4)))]);
    let direct = Model::from_source(&ModelSource::overlay(&base, plan, None).unwrap(), &options).unwrap();
    let at = |m: &Model, l: usize| m.layers()[l].mlp().projections()[0].base().unwrap().bytes().as_ptr();
    assert_eq!(at(&original, 1), at(&direct, 1));
    assert_eq!(at(&original, 1), at(&direct, 2));
    assert_eq!(original.head().bytes().as_ptr(), direct.head().bytes().as_ptr());
    let mapped = original.with_mlp_map(|l| if l == 2 { 1 } else { l }).unwrap();
    assert_eq!(direct.forward(&TOKENS, &mut ()).unwrap(), mapped.forward(&TOKENS, &mut ()).unwrap());
    assert_ne!(original.forward(&TOKENS, &mut ()).unwrap(), mapped.forward(&TOKENS, &mut ()).unwrap());
    let without = original.without_mlps(&[2]).unwrap();
    let plan = Plan::new("explicit", vec![LayerChange::drop(2)]);
    let dropped = Model::from_source(&ModelSource::overlay(&base, plan, None).unwrap(), &options).unwrap();
    assert_eq!(without.forward(&TOKENS, &mut ()).unwrap(), dropped.forward(&TOKENS, &mut ()).unwrap());
}

#[test]
fn quantising_refuses_what_is_not_finite_and_leaves_the_old_file() {
    let config = config(64, 96, 2, 4, 2);
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("model");
    Synthetic::write(&config, None, 1, &checkpoint, &Silent).unwrap();
    let file = checkpoint.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let out = folder.path().join("model.sharp");
    std::fs::write(&out, b"old").unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    let error =
        quantize(&source, &Recipe::q4(), &out, &Team::new(1).unwrap(), &Silent).unwrap_err().to_string();
    assert!(error.contains("model.") && error.contains("NaN"), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"old");
}

#[test]
fn recipes_are_read_strictly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    let good = "name = \"mine\"\nattention = \"q8\"\nmlp = \"q4\"\nembedding = \"q8\"\nhead = \"f16\"\nrecovery = \"f16\"\n";
    std::fs::write(&path, good).unwrap();
    let recipe = Recipe::load(path.to_str().unwrap()).unwrap();
    assert_eq!((recipe.name.as_str(), recipe.least_squares), ("mine", false));
    for bad in [good.replace("q4", "q3"), good.replace("mlp", "mpl"), format!("{good}more = 1\n")] {
        std::fs::write(&path, bad).unwrap();
        assert!(Recipe::load(path.to_str().unwrap()).is_err());
    }
    assert!(Recipe::load("q5").is_err());
}

#[test]
fn a_batch_refuses_what_a_session_would_and_leaves_all_as_they_were() {
    let source = Synthetic::in_memory(&config(64, 96, 2, 4, 2), None, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = pack(&source, &Recipe::q4(), folder.path());
    let model = open(&path, 2);
    let mut batch = Batch::new(&model, 2).unwrap();
    let session = |room, tokens: &[u32]| {
        let mut session = Session::new(&model, room).unwrap();
        session.prefill(tokens).unwrap();
        session
    };
    let (mut a, mut full, mut c) = (session(8, &[1, 2]), session(2, &[3, 4]), session(8, &[5]));
    let before = [a.logits().to_vec(), full.logits().to_vec()];
    assert!(matches!(
        batch.decode(&mut [&mut a, &mut full], &[1, 1]),
        Err(Error::Full { capacity: 2, wanted: 3 })
    ));
    assert!(matches!(
        batch.decode(&mut [&mut a, &mut c], &[1, 90]),
        Err(Error::Token { token: 90, position: 1, .. })
    ));
    assert!(matches!(batch.decode(&mut [&mut a, &mut c], &[1]), Err(Error::Argument { .. })));
    assert!(batch.decode(&mut [&mut a, &mut c, &mut full], &[1, 1, 1]).is_err());
    let other = open(&path, 1);
    assert!(batch.decode(&mut [&mut a, &mut Session::new(&other, 4).unwrap()], &[1, 1]).is_err());
    assert_eq!((a.tokens(), full.tokens(), c.tokens()), (&[1, 2][..], &[3, 4][..], &[5][..]));
    assert_eq!([a.logits(), full.logits()], [&before[0][..], &before[1][..]]);
    batch.decode(&mut [], &[]).unwrap();
    batch.decode(&mut [&mut a], &[7]).unwrap();
    assert_eq!(a.logits(), session(8, &[1, 2, 7]).logits());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Sessions of different lengths decoded together: each as if it were alone, to the bit, and able to go
    /// on alone.
    #[test]
    fn sessions_decoded_together_are_as_if_alone(
        seed: u64, lengths in prop::collection::vec(0usize..30, 1..12), q4: bool, threads in 1usize..4,
    ) {
        let config = config(64, 96, 3, 4, 2);
        let plan = Plan::new("explicit", vec![LayerChange::share(1, 0, Repair::low_rank(Ranks::uniform(6)))]);
        let source = Synthetic::in_memory(&config, Some(&plan), seed).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = pack(&source, &if q4 { Recipe::q4() } else { Recipe::q8() }, folder.path());
        let model = open(&path, threads);
        let token = |i: usize, t: usize| ((seed >> (i % 16)) as u32).wrapping_add(t as u32 * 7) % 90;
        let mut together = Vec::new();
        let mut alone = Vec::new();
        for (i, &length) in lengths.iter().enumerate() {
            let prompt: Vec<u32> = (0..length).map(|t| token(i, t)).collect();
            for sessions in [&mut together, &mut alone] {
                let mut session = Session::new(&model, length + 4).unwrap();
                session.prefill(&prompt).unwrap();
                sessions.push(session);
            }
        }
        let mut batch = Batch::new(&model, lengths.len()).unwrap();
        for step in 0..3 {
            let tokens: Vec<u32> = (0..lengths.len()).map(|i| token(i, 100 + step)).collect();
            batch.decode(&mut together.iter_mut().collect::<Vec<_>>(), &tokens).unwrap();
            for ((together, alone), &token) in together.iter().zip(&mut alone).zip(&tokens) {
                alone.decode(token).unwrap();
                prop_assert_eq!(together.logits(), alone.logits());
                prop_assert_eq!(together.tokens(), alone.tokens());
            }
        }
        for (together, alone) in together.iter_mut().zip(&mut alone) {
            prop_assert_eq!(together.decode(3).unwrap(), alone.decode(3).unwrap());
        }
    }

    /// A token decoded alone is the same, to the bit, as one among many, for any number of threads and any
    /// cut of the prompt.
    #[test]
    fn decode_equals_prefill_bit_for_bit(
        seed: u64, heads in 1usize..5, group in 1usize..4, hidden in 1usize..5, intermediate in 33usize..200,
        cut in 1usize..20, q4: bool,
    ) {
        let config = ModelConfig::llama(hidden * 32 * heads * group / (heads * group).max(1), intermediate, 3, 1, 1, 90).unwrap();
        let mut config = config;
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (heads * group, heads, 10);
        let plan = Plan::new("explicit", vec![LayerChange::share(1, 0, Repair::scaled(Ranks::uniform(6)))]);
        let source = Synthetic::in_memory(&config, Some(&plan), seed).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = pack(&source, &if q4 { Recipe::q4() } else { Recipe::q8() }, folder.path());
        let tokens: Vec<u32> = (0..20).map(|i| (seed.rotate_left(i * 3) % 90) as u32).collect();
        let mut all: Option<Vec<Vec<f32>>> = None;
        for threads in [1, 3] {
            let model = open(&path, threads);
            let mut whole = Vec::new();
            let mut session = Session::new(&model, 20).unwrap();
            session.prefill_each(&tokens, &mut |_, l| whole.push(l.to_vec())).unwrap();
            let mut pieces = Session::new(&model, 20).unwrap();
            prop_assert_eq!(pieces.prefill(&tokens[..cut]).unwrap(), &whole[cut - 1][..]);
            for (i, &t) in tokens.iter().enumerate().skip(cut) {
                prop_assert_eq!(pieces.decode(t).unwrap(), &whole[i][..]);
            }
            prop_assert_eq!(all.get_or_insert_with(|| whole.clone()), &whole);
        }
    }

    /// Plain models: equal to rounding, and to the bit for any number of threads.
    #[test]
    fn plain_models_do_not_depend_on_threads(seed: u64, intermediate in 1usize..300, n in 1usize..40) {
        let config = ModelConfig::llama(48, intermediate, 2, 6, 3, 90).unwrap();
        let source = Synthetic::in_memory(&config, None, seed).unwrap();
        let tokens: Vec<u32> = (0..n).map(|i| (seed.rotate_left(i as u32) % 90) as u32).collect();
        let model = |threads| Model::from_source(&source, &Options { threads, ..Options::default() }).unwrap();
        let (one, three) = (model(1), model(3));
        let whole = one.forward(&tokens, &mut ()).unwrap();
        prop_assert_eq!(&whole, &three.forward(&tokens, &mut ()).unwrap());
        let mut session = Session::new(&three, n).unwrap();
        for (i, &t) in tokens.iter().enumerate() {
            let d = difference(session.decode(t).unwrap(), &whole[i * 90..(i + 1) * 90]);
            prop_assert!(d < 1e-5, "{}", d);
        }
    }
}

#[test]
fn a_pruned_model_computes_what_the_dense_one_with_zeros_does() {
    let config = config(96, 160, 4, 6, 2);
    // A whole number of blocks, one that is none, and a layer that keeps all.
    let plan = Plan::new(
        "explicit",
        vec![LayerChange::prune(1, 96), LayerChange::prune(2, 37), LayerChange::prune(3, 160)],
    );
    let source = Synthetic::in_memory(&config, Some(&plan), 4).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dense = folder.path().join("dense");
    export_dense(&source, &dense, &ExportOptions::new(DType::F32), &Silent).unwrap();
    let dense = Model::open(&dense, &Options::default()).unwrap();
    assert_eq!(dense.layers()[2].mlp().projections()[0].rows(), 160);
    let expected = dense.forward(&TOKENS, &mut ()).unwrap();

    let model = Model::from_source(&source, &Options::default()).unwrap();
    assert_eq!(
        model.layers()[2].mlp().projections().map(|p| (p.rows(), p.cols())),
        [(37, 96), (37, 96), (96, 37)]
    );
    let found = model.forward(&TOKENS, &mut ()).unwrap();
    assert!(difference(&found, &expected) < 1e-5);

    for (recipe, bound) in [("f16", 2e-3), ("q8", 0.05), ("q4", 0.6)] {
        let (path, report) = pack(&source, &Recipe::load(recipe).unwrap(), folder.path());
        let down = |t: &&sharp_infer::TensorReport| t.name == "model.layers.1.mlp.down_proj.weight";
        assert_eq!(report.tensors.iter().find(down).map(|t| (t.rows, t.cols)), Some((96, 96)));
        let found = open(&path, 1).forward(&TOKENS, &mut ()).unwrap();
        let d = difference(&found, &expected);
        assert!(d < bound, "{recipe}: {d}");
        assert_eq!(found, open(&path, 3).forward(&TOKENS, &mut ()).unwrap(), "{recipe}: threads show");
        assert_eq!(
            report.weight_bytes,
            sharp_infer::quantized_bytes(&source, &Recipe::load(recipe).unwrap()).unwrap()
        );
    }
}

#[test]
fn a_head_beside_the_embedding_that_it_is_tied_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.sharp");
    let mut tied = config(32, 64, 1, 2, 1);
    tied.tie_word_embeddings = true;
    let mut writer = PackedWriter::new(tied.to_json());
    let head = writer.blob(BlobFormat::F32, 1, 4).unwrap();
    writer.name("lm_head.weight", head).unwrap();
    let fill = |_, buffer: &mut Vec<u8>| -> Result<(), sharp_model::Error> {
        buffer.extend([0; 16]);
        Ok(())
    };
    writer.write(&path, &Silent, fill).unwrap();
    let error = Model::open(&path, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight is stored, though"), "{error}");
}
