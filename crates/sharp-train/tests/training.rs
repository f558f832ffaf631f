//! Both trainings end to end on a small random model: they learn, they resume bit-equal, threads do not show.

mod common;

use std::path::Path;

use common::{Run, blocks, bytes, folder, model, plan, trainable};
use sharp_model::{LayerChange, ModelSource, Plan, Projection, Recovery, Treatment};
use sharp_progress::Silent;
use sharp_train::finetune::{FinetuneOptions, StartFrom, finetune};
use sharp_train::forms::ScaledLowRank;
use sharp_train::warmup::{LayerSummary, WarmupOptions, fit_form, warmup};
use sharp_train::{Compute, Error, Job, Loss, Start, TrainMlps};

/// Both trainings refuse it before they read a weight or write anything.
#[test]
fn a_model_of_other_layers_is_refused_by_both_trainings() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_families/gemma3");
    let source = ModelSource::open(folder).unwrap();
    let vocab = source.config().vocab_size as u32;
    let (train, validation) = (blocks(4, vocab, 1), blocks(2, vocab, 2));
    let plan = Plan::new("explicit", vec![LayerChange::new(1, Treatment::Prune { neurons: 8 })]);
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let job = Job {
        source: &source,
        plan: &plan,
        train: &train,
        validation: &validation,
        out: &out,
        compute: Compute::cpu(1),
        progress: &Silent,
    };
    let warm = warmup(&job, &WarmupOptions::default()).map(drop);
    let tuned = finetune(&job, StartFrom::Zero, &FinetuneOptions::default()).map(drop);
    for refused in [warm, tuned] {
        let what = refused.unwrap_err().to_string();
        assert!(what.contains("training a Gemma3ForCausalLM is not supported: it has"), "{what}");
    }
    assert!(!out.exists());
}

#[test]
fn warm_up_improves_every_form_from_every_start_and_resumes() {
    let source = model("tied");
    let (train, held) = (blocks(40, 61, 1), blocks(12, 61, 2));
    for treatment in trainable(1) {
        let form = treatment.form();
        let mut started = Vec::new();
        for start in [Start::Zero, Start::Whitened] {
            let out = tempfile::tempdir().unwrap();
            let mut options = WarmupOptions {
                start,
                steps: 60,
                eval_every: 20,
                batch_tokens: 128,
                lr: 5e-3,
                ..WarmupOptions::default()
            };
            let run = |threads, out: &Path, options: &WarmupOptions| {
                let job = Job {
                    source: &source,
                    plan: &plan(treatment),
                    train: &train,
                    validation: &held,
                    out,
                    compute: Compute::cpu(threads),
                    progress: &Silent,
                };
                warmup(&job, options)
            };
            let summary = run(2, out.path(), &options).unwrap();
            let layer = &summary.layers[0];
            assert!(layer.error < layer.start_error, "{form} {}: {layer:?}", start.name());
            assert_eq!(layer.layer, 2);
            started.push(layer.start_error);
            let recovery = Recovery::load(out.path()).unwrap();
            recovery.check(source.config(), &plan(treatment)).unwrap();
            // What is there is not done again; threads and files instead of memory change nothing.
            assert_eq!(run(2, out.path(), &options).unwrap().skipped, [2]);
            // A damaged file is done again, and its lines of metrics are replaced.
            let lines = || std::fs::read_to_string(out.path().join("metrics.jsonl")).unwrap().lines().count();
            let before = lines();
            std::fs::write(out.path().join("layer-02.safetensors"), b"cut off").unwrap();
            assert!(run(2, out.path(), &options).unwrap().skipped.is_empty());
            assert_eq!(lines(), before);
            assert!(Recovery::load(out.path()).unwrap() == recovery);
            let other = tempfile::tempdir().unwrap();
            options.memory_bytes = 0;
            run(1, other.path(), &options).unwrap();
            assert!(Recovery::load(other.path()).unwrap() == recovery, "{form}: threads show");
        }
        assert!(started[1] < started[0], "{form}: whitened {} zero {}", started[1], started[0]);
    }
}

#[test]
fn stopped_and_resumed_is_bit_equal_to_uninterrupted_and_threads_do_not_show() {
    for (loss, extras) in [(Loss::Completion, false), (Loss::Mixed { weight: 0.3, temperature: 2.0 }, true)] {
        let mut run = Run::new("tied", trainable(1)[1]);
        run.options.loss = loss;
        run.options.train_norms = extras;
        run.options.train_mlps = if extras { TrainMlps::Shared } else { TrainMlps::None };
        let (_a, whole) = folder();
        let done = run.go(&whole).unwrap();
        assert!(done.perplexity < done.start_perplexity, "{done:?}");
        assert!(!whole.join("step-000005").exists() && whole.join("step-000010").exists());

        let (_b, parts) = folder();
        run.options.stop_after = Some(7); // dies two steps after its checkpoint
        run.go(&parts).unwrap();
        assert!(!parts.join("recovery.safetensors").exists());
        run.options.stop_after = None;
        run.threads = 1;
        let resumed = run.go(&parts).unwrap();
        assert_eq!(resumed.resumed_from, Some(5));
        assert!(bytes(&parts) == bytes(&whole), "{loss:?}: resumed training differs");
        let losses = |out: &Path| -> Vec<String> {
            let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
            text.lines()
                .map(|l| {
                    let v: serde_json::Value = serde_json::from_str(l).unwrap();
                    format!("{} {} {}", v["step"], v["train_loss"], v["validation_loss"])
                })
                .collect()
        };
        assert_eq!(losses(&parts), losses(&whole));
        assert_eq!(losses(&whole).len(), 13);
        let saved = Recovery::load(whole.join("recovery.safetensors")).unwrap();
        saved.check(run.source.config(), &run.plan).unwrap();
        assert_eq!(saved.trained().is_empty(), !extras);

        // A checkpoint of other settings is refused, not continued.
        run.options.lr *= 2.0;
        assert!(matches!(run.go(&parts), Err(Error::State { .. })));
    }
}

/// A rate that ruins the model must not ruin the result: the best state by validation loss is what is
/// written.
#[test]
fn training_that_diverges_goes_back_and_never_ends_worse_than_it_began() {
    let mut run = Run::new("tied", trainable(1)[1]);
    run.options.train_mlps = TrainMlps::All;
    run.options.train_norms = true;
    run.options.steps = 24;
    run.options.lr = 10.0;
    run.options.save_every = 7;
    let (_a, whole) = folder();
    let done = run.go(&whole).unwrap();
    assert!(done.setbacks > 0, "{done:?}");
    assert!(done.perplexity <= done.start_perplexity, "{done:?}");
    let text = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let measured = |line: &serde_json::Value| line["validation_perplexity"].as_f64();
    let best = lines.iter().filter_map(measured).fold(f64::INFINITY, f64::min);
    assert!((done.perplexity / best - 1.0).abs() < 1e-9, "{done:?}, measured {best}");
    let worst = lines.iter().filter_map(measured).fold(0.0, f64::max);
    assert!(worst > 1.5 * done.start_perplexity, "the rate is no danger: {worst}");
    // The best state is part of a checkpoint: resumed, the run ends with the same bytes.
    let (_b, parts) = folder();
    run.options.stop_after = Some(16);
    run.go(&parts).unwrap();
    run.options.stop_after = None;
    let resumed = run.go(&parts).unwrap();
    assert_eq!((resumed.resumed_from, resumed.setbacks), (Some(14), done.setbacks));
    assert_eq!(resumed.kept_step, done.kept_step);
    assert!(bytes(&parts) == bytes(&whole));
}

/// The rate ruins the model at every measurement: what training began with is what is written.
#[test]
fn training_that_makes_nothing_better_writes_what_it_began_with() {
    let mut run = Run::new("tied", trainable(1)[1]);
    run.options.train_mlps = TrainMlps::All;
    run.options.train_norms = true;
    run.options.lr = 0.1;
    let (_a, first) = folder();
    let done = run.go(&first).unwrap();
    assert_eq!(done.kept_step, run.options.steps, "{done:?}");
    let good = Recovery::load(first.join("recovery.safetensors")).unwrap();

    run.options.steps = 4;
    run.options.lr = 30.0;
    let (_b, second) = folder();
    let ruined = run.go_from(StartFrom::Recovery(&good), &second).unwrap();
    assert!((ruined.start_perplexity / done.perplexity - 1.0).abs() < 1e-6, "{ruined:?} after {done:?}");
    assert_eq!((ruined.kept_step, ruined.perplexity), (0, ruined.start_perplexity));
    assert!(bytes(&second) == bytes(&first));
}

/// Every MLP is trained, from the first layer on, and training begins with the original, its own teacher.
#[test]
fn the_original_is_fine_tuned_where_a_plan_changes_nothing() {
    let mut run = Run::new("tied", trainable(1)[0]);
    run.plan.changes.clear();
    run.options.train_mlps = TrainMlps::All;
    run.options.train_norms = true;
    run.options.loss = Loss::Mixed { weight: 0.5, temperature: 1.0 };
    let (_dir, out) = folder();
    let done = run.go(&out).unwrap();
    assert!(done.perplexity < done.start_perplexity, "{done:?}");
    let trained = Recovery::load(out.join("recovery.safetensors")).unwrap();
    let mlps = trained.trained().keys().filter(|name| name.contains(".mlp.")).count();
    assert_eq!(mlps, 3 * run.source.config().num_hidden_layers);
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let start: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert!(start["validation_kl"].as_f64().unwrap().abs() < 1e-6, "{start}");
}

#[test]
fn a_fitted_form_is_what_the_warm_up_makes_of_a_plan_that_names_it() {
    let source = model("tied");
    let [low_rank, scaled, ..] = trainable(1).map(plan);
    let (fit, warm) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (train, validation) = (blocks(40, 61, 1), blocks(12, 61, 2));
    let job = |plan, out| Job {
        source: &source,
        plan,
        train: &train,
        validation: &validation,
        out,
        compute: Compute::cpu(2),
        progress: &Silent,
    };
    let options = WarmupOptions { steps: 20, eval_every: 10, batch_tokens: 128, ..WarmupOptions::default() };
    let fitted = fit_form(&job(&low_rank, fit.path()), 2, &ScaledLowRank, &options).unwrap();
    let named = warmup(&job(&scaled, warm.path()), &options).unwrap();
    let timeless = |summary: &LayerSummary| LayerSummary { seconds: 0.0, ..summary.clone() };
    assert_eq!(timeless(&fitted.summary), timeless(&named.layers[0]));
    let saved = Recovery::load(warm.path()).unwrap();
    for projection in Projection::ALL {
        let row = Vec::<f32>::try_from(fitted.pieces[projection].row.as_ref().unwrap()).unwrap();
        assert_eq!(Some(row), saved.layers[&2][projection].as_ref().unwrap().row_scale);
    }
    assert!(std::fs::read_dir(fit.path()).unwrap().next().is_none(), "nothing is kept");

    let job = job(&low_rank, fit.path());
    assert!(matches!(fit_form(&job, 0, &ScaledLowRank, &options), Err(Error::Invalid(_))));
    let whitened = WarmupOptions { start: Start::Whitened, ..options };
    assert!(matches!(fit_form(&job, 2, &ScaledLowRank, &whitened), Err(Error::Invalid(_))));
}

#[test]
fn every_form_trains_on_every_kind_of_model() {
    for treatment in trainable(0) {
        let form = treatment.form();
        // Pruned MLPs have no biases.
        let cases =
            if treatment.stores_weights() { ["gqa_untied", "tied"] } else { ["gqa_untied", "biases"] };
        for case in cases {
            let (_dir, out) = folder();
            let summary = Run::new(case, treatment).go(&out).unwrap();
            assert!(summary.perplexity < summary.start_perplexity, "{form} {case}: {summary:?}");
        }
    }
}

#[test]
fn senseless_settings_are_refused() {
    let refused = |change: &dyn Fn(&mut Run)| {
        let mut run = Run::new("tied", trainable(1)[0]);
        change(&mut run);
        let (_dir, out) = folder();
        let error = run.go(&out).unwrap_err();
        assert!(matches!(error, Error::Invalid(_) | Error::Model(_)), "{error}");
    };
    refused(&|r| r.options.lr = f64::NAN);
    refused(&|r| r.options.lr_floor = -0.1);
    refused(&|r| r.options.loss = Loss::Distill { temperature: 0.0 });
    refused(&|r| r.options.loss = Loss::Mixed { weight: 2.0, temperature: 1.0 });
    refused(&|r| r.plan.changes[0].layer = 99);
    refused(&|r| r.plan.changes.clear());
}

#[test]
fn a_machine_too_small_is_told_before_anything_is_read() {
    let mut run = Run::new("tied", trainable(1)[0]);
    run.options.train_mlps = TrainMlps::All;
    let compute = Compute::cpu(run.threads);
    let needed =
        |run: &Run| sharp_train::finetune::memory_needed(&run.source, &run.plan, 16, &compute, &run.options);
    let all = needed(&run);
    run.options.train_mlps = TrainMlps::None;
    let none = needed(&run);
    assert!(none < all, "{none} {all}");
    run.options.train_mlps = TrainMlps::All;
    let needed = all;

    run.options.memory_bytes = Some(needed - 1);
    let (_dir, out) = folder();
    let refused = run.go(&out).unwrap_err();
    assert!(matches!(refused, Error::Memory { .. }), "{refused}");
    assert!(std::fs::read_dir(&out).unwrap().next().is_none());
    run.options.memory_bytes = Some(needed);
    run.go(&out).unwrap();
}
