//! The hand-written gradient of the whole model against the loss itself.

use std::path::Path;

use sharp_data::TokenBlocks;
use sharp_model::packed::PackedFile;
use sharp_model::{LayerChange, ModelSource, Plan, Projection, Ranks, Recovery, Repair, Treatment};
use sharp_progress::Silent;
use sharp_quant::{PackedFormat, PackedRef, ScaleRule};
use sharp_schema::TrainMlps;
use tch::{Kind, Tensor};

use super::sequences::Sequences;
use super::student::Student;
use super::{FinetuneOptions, Reuse, StartFrom};
use crate::device::Compute;
use crate::head::Loss;
use crate::job::Job;
use crate::tensors::scalar;
use crate::testing::seeded;

/// Builds the model in training for rows of `positions` tokens; the rows themselves are of no matter here.
fn student(
    source: &ModelSource,
    plan: &Plan,
    from: StartFrom<'_>,
    positions: usize,
    threads: usize,
    options: &FinetuneOptions,
) -> Student {
    let rows = TokenBlocks { seq_len: positions, tokens: Vec::new(), mask: Vec::new() };
    let job = Job {
        source,
        plan,
        train: &rows,
        validation: &rows,
        out: Path::new("."),
        compute: Compute::cpu(threads),
        progress: &Silent,
    };
    Student::new(&job, from, options).unwrap()
}

fn golden(case: &str) -> ModelSource {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama");
    ModelSource::open(folder.join(case)).unwrap()
}

/// Sequences of 12 tokens, of which some positions count.
fn some_sequences(source: &ModelSource) -> Vec<Sequences> {
    let vocab = source.config().vocab_size as u32;
    (0..3u32)
        .map(|s| {
            let tokens: Vec<u32> = (0..12).map(|i| (i * 7 + s * 5 + i * i) % vocab).collect();
            let positions: Vec<i64> = (0..11).filter(|i| i % 3 != 1).collect();
            let labels = positions.iter().map(|&p| i64::from(tokens[p as usize + 1])).collect();
            Sequences { rows: 1, tokens, positions, labels }
        })
        .collect()
}

/// Along a random direction and along every parameter's own: the slope of the loss between two points near
/// each other.
fn check(case: &str, treatment: Treatment, loss: Loss, extras: bool) {
    let source = golden(case);
    let plan = Plan::new("explicit", vec![LayerChange::new(1, treatment)]);
    let options = FinetuneOptions {
        loss,
        train_norms: extras,
        train_mlps: if extras { TrainMlps::All } else { TrainMlps::None },
        ..FinetuneOptions::default()
    };
    let student = student(&source, &plan, StartFrom::Zero, 12, 2, &options);
    check_student(&format!("{case} {}", treatment.form()), &source, student, loss);
}

fn check_student(case: &str, source: &ModelSource, mut student: Student, loss: Loss) {
    // Away from B = 0, where half of the gradients vanish.
    let _generator = seeded(5);
    let noise = Tensor::randn(student.params.flat.size(), (Kind::Float, tch::Device::Cpu)) * 0.05;
    let _ = student.params.flat.f_add_(&noise).unwrap();
    student.merge().unwrap();
    let batch = some_sequences(source);
    let (grad, sums) = student.gradient(batch.clone()).unwrap();
    let value = |student: &Student| student.measure(&batch).unwrap().mean(loss);
    student.merge().unwrap();
    assert!((sums.mean(loss) - value(&student)).abs() < 1e-5, "{case}");

    let origin = student.params.flat.copy();
    let mut directions =
        vec![("everything".to_owned(), Tensor::randn(grad.size(), (Kind::Float, tch::Device::Cpu)))];
    for spec in student.params.layout.specs() {
        let range = spec.range();
        let mask = grad.zeros_like();
        let mut part = mask.narrow(0, range.start as i64, range.len() as i64);
        part.copy_(&grad.narrow(0, range.start as i64, range.len() as i64));
        directions.push((spec.name.clone(), mask));
    }
    for (name, direction) in directions {
        let norm = scalar(&direction.norm()).unwrap();
        assert!(norm > 1e-7, "{case}: no gradient at all for {name}");
        let step = 4e-3;
        let unit = direction / norm;
        let mut at = |t: f64| {
            student.params.flat.copy_(&(&origin + &unit * t));
            student.merge().unwrap();
            value(&student)
        };
        // Fourth order, so that the step can be large enough for float32.
        let slope = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
        let expected = scalar(&(&grad * &unit).sum(Kind::Double)).unwrap();
        let size = scalar(&grad.norm()).unwrap();
        assert!(
            (slope - expected).abs() < 0.02 * expected.abs() + 2e-4 * (1.0 + size),
            "{case} {loss:?} {name}: slope {slope}, gradient {expected}"
        );
    }
}

#[test]
fn gradients_are_slopes_of_the_loss() {
    let mixed = Loss::Mixed { weight: 0.4, temperature: 2.0 };
    let ranks = Ranks::uniform(3);
    let share = |repair| Treatment::Share { reference: 0, repair };
    check("gqa_untied", share(Repair::low_rank(ranks)), Loss::Completion, false);
    check("biases", share(Repair::scaled(ranks)), Loss::Distill { temperature: 1.0 }, false);
    check("rope_llama3", share(Repair::row_column_scaled(ranks)), mixed, true);
    check("biases", share(Repair::row_column_scaled(ranks)), Loss::Completion, false);
    check("tied", Treatment::LowRank { ranks }, mixed, false);
    check("tied", Treatment::LowRank { ranks }, mixed, true);
    check("tied", Treatment::Prune { neurons: 7 }, mixed, false);
    check("gqa_untied", Treatment::Prune { neurons: 7 }, Loss::Completion, true);
    check("tied", Treatment::Drop, mixed, true);
    check("tied", share(Repair::None), mixed, true);
    check("biases", share(Repair::scaled(ranks)), mixed, true);
    check("tied", share(Repair::Neurons { neurons: 5 }), mixed, false);
    check("gqa_untied", share(Repair::Neurons { neurons: 5 }), Loss::Completion, true);
}

/// A plan whose layers all keep a part of their neurons, and what a warm-up would have given them.
fn pruned(source: &ModelSource) -> (Plan, Recovery) {
    let layers = source.config().num_hidden_layers;
    let changes = (0..layers).map(|layer| LayerChange::prune(layer, 7 + 3 * layer)).collect();
    let plan = Plan::new("explicit", changes);
    let student = student(source, &plan, StartFrom::Zero, 12, 1, &FinetuneOptions::default());
    let recovery = student.recovery().unwrap().unwrap();
    (plan, recovery)
}

fn reusing(reuse: Reuse) -> FinetuneOptions {
    let loss = Loss::Mixed { weight: 0.4, temperature: 2.0 };
    FinetuneOptions { loss, train_norms: true, reuse, ..FinetuneOptions::default() }
}

fn pool(size: usize) -> Reuse {
    Reuse { pool: Some(size), ..Reuse::default() }
}

fn twice(layers: &[usize]) -> Reuse {
    Reuse { twice: layers.iter().copied().collect(), ..Reuse::default() }
}

#[test]
fn gradients_of_pools_and_second_passes_are_slopes_of_the_loss() {
    for (case, reuse) in [
        ("gqa_untied", pool(2)),
        ("tied", pool(2)),
        ("tied", pool(3)),
        ("gqa_untied", twice(&[0])),
        ("tied", twice(&[1, 2])),
        ("tied", Reuse { pool: Some(2), ..twice(&[0, 1]) }),
    ] {
        let source = golden(case);
        let (plan, recovery) = pruned(&source);
        let options = reusing(reuse);
        let student = student(&source, &plan, StartFrom::Recovery(&recovery), 12, 2, &options);
        check_student(&format!("{case} {:?}", options.reuse), &source, student, options.loss);
    }
}

/// Pools and second passes begin as the model without them: every pool's weights are the pruned layers', and
/// zeros where another layer's neurons are; a second run adds nothing.
#[test]
fn reused_weights_begin_as_the_model_without_them() {
    let source = golden("tied");
    let (plan, recovery) = pruned(&source);
    let batch = some_sequences(&source);
    let begun = |reuse: Reuse| {
        let options = reusing(reuse);
        let student = student(&source, &plan, StartFrom::Recovery(&recovery), 12, 1, &options);
        student.merge().unwrap();
        student
    };
    let plain = begun(Reuse::default());
    let expected = plain.measure(&batch).unwrap();
    assert_eq!(begun(twice(&[0, 2])).measure(&batch).unwrap(), expected);

    let pooled = begun(pool(3));
    let (neurons, all) = ([7, 10, 13], 30);
    for (layer, start) in [(0, 0), (1, 7), (2, 17)] {
        for projection in Projection::ALL {
            let along = i64::from(projection == Projection::Down);
            let own = plain.mlps[&layer].weight(projection).unwrap();
            let weight = pooled.mlps[&layer].weight(projection).unwrap();
            assert_eq!(weight.size()[along as usize], all);
            assert!(weight.narrow(along, start, neurons[layer]) == own, "{layer} {projection:?}");
            if projection == Projection::Down {
                let others = scalar(&weight.abs().sum(Kind::Double)).unwrap();
                assert_eq!(others, scalar(&own.abs().sum(Kind::Double)).unwrap(), "gains of others");
            }
        }
    }
    let found = pooled.measure(&batch).unwrap();
    assert!((found.nll - expected.nll).abs() < 1e-6 * expected.nll, "{found:?} {expected:?}");
    assert!(pooled.recovery().unwrap().is_none(), "no plan names a pool, so no file may claim to hold it");
}

#[test]
fn reuse_that_a_plan_leaves_no_room_for_is_refused() {
    let source = golden("tied");
    let layers = source.config().num_hidden_layers;
    let apart = Plan::new("explicit", vec![LayerChange::prune(0, 7), LayerChange::prune(2, 7)]);
    let refused = |reuse: Reuse| reuse.check(&apart, layers).unwrap_err().to_string();
    assert!(refused(pool(2)).contains("no two neighbouring layers are pruned"));
    assert!(refused(pool(1)).contains("give 2 or more"));
    assert!(refused(twice(&[3])).contains("layer 3 of 3"));
    let dropped = Plan::new("explicit", vec![LayerChange::new(1, Treatment::Drop)]);
    assert!(twice(&[1]).check(&dropped, layers).unwrap_err().to_string().contains("has no MLP"));
}

/// The written model stores a trained MLP once for all layers that run with it; so must the model in
/// training.
#[test]
fn a_layer_that_shares_without_repair_follows_its_trained_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama/tied");
    let source = ModelSource::open(folder).unwrap();
    let plan = Plan::new("explicit", vec![LayerChange::share(1, 0, Repair::None)]);
    let options = FinetuneOptions { train_mlps: TrainMlps::Shared, ..FinetuneOptions::default() };
    let mut student = student(&source, &plan, StartFrom::Zero, 12, 2, &options);
    let _generator = seeded(5);
    let noise = Tensor::randn(student.params.flat.size(), (Kind::Float, tch::Device::Cpu)) * 0.05;
    let _ = student.params.flat.f_add_(&noise).unwrap();
    student.merge().unwrap();
    let tokens: Vec<u32> = (0..12).map(|i| (i * 7 + i * i) % source.config().vocab_size as u32).collect();
    let labels: Vec<i64> = tokens[1..].iter().map(|&t| i64::from(t)).collect();
    let (positions, rows) = ((0..11).collect(), 1);
    let batch = [Sequences { rows, tokens: tokens.clone(), positions, labels: labels.clone() }];
    let found = student.measure(&batch).unwrap().nll;

    let written = ModelSource::overlay(&source, plan, student.recovery().unwrap().as_ref()).unwrap();
    let logits = crate::Llama::load(&written, &Compute::cpu(1), 12).unwrap().logits(&tokens).unwrap();
    let log = Tensor::from_slice(&logits).reshape([12, -1]).log_softmax(-1, Kind::Float).narrow(0, 0, 11);
    let nll = log.gather(1, &Tensor::from_slice(&labels).unsqueeze(1), false).sum(Kind::Double);
    let nll = -scalar(&nll).unwrap();
    assert!((found - nll).abs() < 1e-4 * nll, "{found} in training, {nll} as written");
}

/// As on a GPU: several sequences through the model together give the sums of each by itself. What counts
/// differs from one to another, and the last stack is not full.
#[test]
fn sequences_taken_together_give_what_each_gives_alone() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama/gqa_untied");
    let source = ModelSource::open(folder).unwrap();
    let plan = Plan::new("explicit", vec![LayerChange::prune(1, 7)]);
    let loss = Loss::Mixed { weight: 0.5, temperature: 1.0 };
    let options = FinetuneOptions { loss, train_norms: true, ..FinetuneOptions::default() };
    let mut student = student(&source, &plan, StartFrom::Zero, 12, 2, &options);
    student.merge().unwrap();
    let vocab = source.config().vocab_size as u32;
    let batch: Vec<Sequences> = (0..5u32)
        .map(|s| {
            let tokens: Vec<u32> = (0..12).map(|i| (i * 7 + s * 5 + i * i) % vocab).collect();
            let positions: Vec<i64> = (i64::from(s)..11).collect();
            let labels = positions.iter().map(|&p| i64::from(tokens[p as usize + 1])).collect();
            Sequences { rows: 1, tokens, positions, labels }
        })
        .collect();
    let (alone, sums) = student.gradient(batch.clone()).unwrap();
    let measured = student.measure(&batch).unwrap();
    student.at_once = 2;
    let (together, same) = student.gradient(batch.clone()).unwrap();
    let again = student.measure(&batch).unwrap();
    let apart = scalar(&(&together - &alone).norm()).unwrap() / scalar(&alone.norm()).unwrap();
    assert!(apart > 0.0 && apart < 1e-5, "{apart}");
    for (a, b) in [(sums, same), (measured, again)] {
        assert_eq!(a.tokens, b.tokens);
        assert!((a.nll - b.nll).abs() < 1e-4 * a.nll && (a.kl - b.kl).abs() < 1e-4 * a.kl, "{a:?} {b:?}");
    }
}

/// 4 bits' own numbers for a matrix, by the quantiser itself.
fn stored(shape: &[usize], values: &[f32]) -> Vec<f32> {
    let (rows, cols) = (shape[0], shape[1]);
    let packed = sharp_quant::pack_f32(PackedFormat::Q4, ScaleRule::Max, rows, cols, values).unwrap();
    let mut back = vec![0.0; values.len()];
    sharp_quant::unpack(PackedRef::new(PackedFormat::Q4, rows, cols, &packed).unwrap(), &mut back).unwrap();
    back
}

/// Training onto a runtime file computes with what that file will hold: the same loss and gradient as of a
/// model, made anew from the file and the result, whose weights simply are these numbers. The original's
/// opinion stays that of the unrounded one.
#[test]
fn repair_computes_with_what_the_runtime_file_will_hold() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama/gqa_untied");
    let source = ModelSource::open(folder).unwrap();
    let plan = Plan::new("explicit", vec![LayerChange::prune(1, 7)]);
    let loss = Loss::Mixed { weight: 0.5, temperature: 1.0 };
    let options = FinetuneOptions { loss, train_norms: true, ..FinetuneOptions::default() };
    let new = |from: StartFrom<'_>| {
        let student = student(&source, &plan, from, 12, 2, &options);
        student.merge().unwrap();
        student
    };
    let exact = new(StartFrom::Zero).recovery().unwrap().unwrap();

    // The runtime file, and all that it holds as a checkpoint in float32.
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("model.sharp");
    let compressed = ModelSource::overlay(&source, plan.clone(), Some(&exact)).unwrap();
    let team = sharp_infer::Team::new(1).unwrap();
    sharp_infer::quantize(&compressed, &sharp_infer::Recipe::q4(), &file, &team, &sharp_progress::Silent)
        .unwrap();
    let runtime = PackedFile::open(&file).unwrap();

    let repairing = new(StartFrom::RuntimeFile { recovery: &exact, file: &runtime });
    let saved = repairing.recovery().unwrap().unwrap();
    let mut rounded = 0;
    let before = exact.trained();
    for (name, (shape, values)) in saved.trained() {
        let name = name.as_str();
        let before = before[name].1;
        let held = runtime.tensor(name).unwrap().f32().unwrap();
        assert_eq!(values, held, "{name}");
        if shape.len() == 2 {
            assert_eq!(values, stored(&shape, values), "{name} twice");
            rounded += usize::from(values != before);
        } else {
            assert_eq!(values, before, "{name}");
        }
        // The optimiser has the exact ones.
        let id = repairing.params.layout.find(name).unwrap();
        assert_eq!(repairing.params.get(id).unwrap(), before, "{name}");
    }
    assert_eq!(rounded, 3, "matrices that rounding changed");

    let vocab = source.config().vocab_size as u32;
    let tokens: Vec<u32> = (0..12).map(|i| (i * 7 + i * i) % vocab).collect();
    let labels = tokens[1..].iter().map(|&t| i64::from(t)).collect();
    let batch = vec![Sequences { rows: 1, tokens: tokens.clone(), positions: (0..11).collect(), labels }];
    let (gradient, sums) = repairing.gradient(batch.clone()).unwrap();
    // Again from the rounded values: rounding finds nothing more, and nothing differs.
    let again = new(StartFrom::RuntimeFile { recovery: &saved, file: &runtime });
    let (other, others) = again.gradient(batch).unwrap();
    assert_eq!(sums, others);
    assert_eq!(scalar(&(gradient - other).abs().max()).unwrap(), 0.0);

    // The engine, whose forward pass is another, gives the file the same loss, but for activations in 8 bits.
    let model = sharp_infer::Model::open(&file, &sharp_infer::Options::default()).unwrap();
    let nll: f64 = model.losses(&tokens).unwrap().iter().sum();
    let ours = sums.nll;
    assert!((ours - nll).abs() < 0.02 * nll, "{ours} by training, {nll} by the engine");
}

/// Sequences that take unlike times, several layers on one stored MLP in training: the sums are the same to
/// the bit however many threads add to them.
#[test]
fn gradients_do_not_depend_on_the_threads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama/tied");
    let source = ModelSource::open(folder).unwrap();
    let layers = source.config().num_hidden_layers;
    let targets = (1..layers)
        .map(|layer| LayerChange::share(layer, 0, Repair::row_column_scaled(Ranks::uniform(3))))
        .collect();
    let plan = Plan::new("explicit", targets);
    let options = FinetuneOptions {
        loss: Loss::Mixed { weight: 0.5, temperature: 1.0 },
        train_norms: true,
        train_mlps: TrainMlps::All,
        ..FinetuneOptions::default()
    };
    let vocab = source.config().vocab_size as u32;
    let batch: Vec<Sequences> = (0..24u32)
        .map(|s| {
            let length = if s % 3 == 0 { 64 } else { 5 + s };
            let tokens: Vec<u32> = (0..length).map(|i| (i * 7 + s * 5 + i * i) % vocab).collect();
            let labels = tokens[1..].iter().map(|&t| i64::from(t)).collect();
            Sequences { rows: 1, positions: (0..i64::from(length) - 1).collect(), tokens, labels }
        })
        .collect();
    let gradient = |threads| {
        let student = student(&source, &plan, StartFrom::Zero, 64, threads, &options);
        student.merge().unwrap();
        student.gradient(batch.clone()).unwrap()
    };
    let (one, sums) = gradient(1);
    assert!(scalar(&one.norm()).unwrap() > 0.0);
    for threads in [2, 7] {
        for _ in 0..4 {
            let (many, same) = gradient(threads);
            assert_eq!(sums, same);
            assert!(many == one, "{threads} threads");
        }
    }
}
