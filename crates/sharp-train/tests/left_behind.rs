//! What a stopped training left is used again only as it was written: damage of any kind ends with the bytes
//! of a training that was never stopped.

mod common;

use std::fs;
use std::path::Path;

use common::{RANKS, Run, blocks, bytes, folder, model, trainable};
use sharp_model::{LayerChange, ModelSource, Plan, Repair, Treatment};
use sharp_progress::Silent;
use sharp_train::finetune::StartFrom;
use sharp_train::warmup::{WarmupOptions, WarmupSummary, warmup};
use sharp_train::{Compute, Error, Job};

type Damage = fn(&Path);

/// Ways in which a disk, a kill or a person damages a file.
const DAMAGES: [(&str, Damage); 5] = [
    ("a bit flipped", |path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }),
    ("cut", |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("empty", |path| fs::write(path, "").unwrap()),
    ("deleted", |path| fs::remove_file(path).unwrap()),
    ("a folder", |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }),
];

/// Lays a stopped fine-tuning's folder out again.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let place = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &place),
            false => assert!(fs::copy(&path, place).is_ok()),
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_set_aside_and_training_ends_with_the_same_bytes() {
    let mut run = Run::new("tied", trainable(1)[1]);
    let (_whole, whole) = folder();
    run.go(&whole).unwrap();
    let (_stopped, stopped) = folder();
    run.options.stop_after = Some(7);
    run.go(&stopped).unwrap();
    run.options.stop_after = None;

    let resumed = |damage: &dyn Fn(&Path)| {
        let (_dir, out) = folder();
        copy(&stopped, &out);
        damage(&out);
        let summary = run.go(&out).unwrap();
        assert!(bytes(&out) == bytes(&whole));
        summary.resumed_from
    };
    assert_eq!(resumed(&|_| ()), Some(5));
    for (what, damage) in DAMAGES {
        for file in ["optimizer.safetensors", "state.json", "digests.json"] {
            let from = resumed(&|out| damage(&out.join("step-000005").join(file)));
            assert_eq!(from, None, "{file} {what}");
        }
    }
    assert_eq!(resumed(&|out| fs::remove_dir_all(out.join("step-000005")).unwrap()), None);
    let emptied = |out: &Path| {
        fs::remove_dir_all(out.join("step-000005")).unwrap();
        fs::write(out.join("step-000005"), "").unwrap();
    };
    assert_eq!(resumed(&emptied), None);
    let emptied = |out: &Path| {
        fs::remove_dir_all(out.join("step-000005")).unwrap();
        fs::create_dir(out.join("step-000005")).unwrap();
    };
    assert_eq!(resumed(&emptied), None);
    // Lines of metrics decide nothing: the training that they tell of is not lost with them.
    for (_, damage) in &DAMAGES[..4] {
        assert_eq!(resumed(&|out| damage(&out.join("metrics.jsonl"))), Some(5));
    }
    let text = |out: &Path| fs::write(out.join("metrics.jsonl"), b"\xff\xfe").unwrap();
    assert_eq!(resumed(&text), Some(5));
}

#[test]
fn training_goes_on_from_the_checkpoint_before_a_damaged_one() {
    let mut run = Run::new("tied", trainable(1)[1]);
    let (_whole, whole) = folder();
    run.go(&whole).unwrap();
    let (_stopped, stopped) = folder();
    run.options.stop_after = Some(5);
    run.go(&stopped).unwrap();
    run.options.stop_after = None;
    let (_dir, out) = folder();
    copy(&stopped, &out);
    copy(&whole.join("step-000010"), &out.join("step-000010"));
    fs::write(out.join("step-000010/optimizer.safetensors"), "").unwrap();
    let summary = run.go(&out).unwrap();
    assert_eq!(summary.resumed_from, Some(5));
    assert!(bytes(&out) == bytes(&whole));
}

/// The original, the validation rows and the steps between measurements decide which state is kept.
#[test]
fn a_checkpoint_of_another_model_or_measurement_is_refused() {
    let mut run = Run::new("tied", trainable(1)[1]);
    let (_stopped, stopped) = folder();
    run.options.stop_after = Some(7);
    run.go(&stopped).unwrap();
    let refused = |run: &Run| {
        let error = run.go_from(StartFrom::Zero, &stopped).unwrap_err();
        assert!(matches!(error, Error::State { .. }), "{error}");
        assert!(stopped.join("step-000005/state.json").is_file(), "another training's work is kept");
    };
    run.options.eval_every = 3;
    refused(&run);
    run.options.eval_every = 4;
    let (_other, other) = folder();
    run.source = another_model(&other);
    refused(&run);
}

/// Makes a model of the same shapes with one other weight.
fn another_model(folder: &Path) -> ModelSource {
    copy(model("tied").path(), folder);
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    ModelSource::open(folder).unwrap()
}

/// A warm-up of the layers 1 and 2 of three.
struct Warmup {
    source: ModelSource,
    plan: Plan,
    options: WarmupOptions,
    rows: usize,
}

impl Warmup {
    fn new() -> Self {
        let share = Treatment::Share { reference: 0, repair: Repair::low_rank(RANKS) };
        let changes = vec![LayerChange::new(1, share), LayerChange::new(2, share)];
        let options =
            WarmupOptions { steps: 20, eval_every: 10, batch_tokens: 128, ..WarmupOptions::default() };
        Self { source: model("tied"), plan: Plan::new("explicit", changes), options, rows: 40 }
    }

    fn go(&self, out: &Path) -> Result<WarmupSummary, Error> {
        let job = Job {
            source: &self.source,
            plan: &self.plan,
            train: &blocks(self.rows, 61, 1),
            validation: &blocks(12, 61, 2),
            out,
            compute: Compute::cpu(2),
            progress: &Silent,
        };
        warmup(&job, &self.options)
    }
}

const FILES: [&str; 3] = ["layer-01.safetensors", "layer-02.safetensors", "digests.json"];

fn files(out: &Path) -> [Vec<u8>; 3] {
    FILES.map(|name| fs::read(out.join(name)).unwrap())
}

#[test]
fn a_damaged_layer_is_fitted_again_and_ends_with_the_same_bytes() {
    let run = Warmup::new();
    let (_whole, whole) = folder();
    run.go(&whole).unwrap();
    let again = |damage: &dyn Fn(&Path)| {
        let (_dir, out) = folder();
        copy(&whole, &out);
        damage(&out);
        let summary = run.go(&out).unwrap();
        assert!(files(&out) == files(&whole));
        let lines = |out: &Path| fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().count();
        assert_eq!(lines(&out), lines(&whole));
        summary.skipped
    };
    assert_eq!(again(&|_| ()), [1, 2]);
    for (what, damage) in DAMAGES {
        assert_eq!(again(&|out| damage(&out.join("layer-01.safetensors"))), [2], "{what}");
        assert_eq!(again(&|out| damage(&out.join("digests.json"))), [0usize; 0], "{what}");
    }
    // A figure of the second layer's lines.
    let figure = |out: &Path| {
        let path = out.join("metrics.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        let at = text.rfind("validation_error\":").unwrap() + "validation_error\":".len();
        let digit = if &text[at..=at] == "1" { "2" } else { "1" };
        fs::write(path, format!("{}{digit}{}", &text[..at], &text[at + 1..])).unwrap();
    };
    assert_eq!(again(&figure), [1]);
}

#[test]
fn a_warm_up_takes_no_layer_of_another_one() {
    let (_whole, whole) = folder();
    Warmup::new().go(&whole).unwrap();
    let before = files(&whole);
    let refused = |run: &Warmup| {
        let error = run.go(&whole).unwrap_err();
        assert!(matches!(error, Error::State { .. }), "{error}");
        assert!(error.to_string().contains("another model, plan, data or settings"), "{error}");
        assert!(files(&whole) == before);
    };
    refused(&Warmup { rows: 39, ..Warmup::new() });
    refused(&Warmup { plan: common::plan(trainable(1)[0]), ..Warmup::new() });
    let mut options = Warmup::new().options;
    options.lr *= 2.0;
    refused(&Warmup { options: options.clone(), ..Warmup::new() });
    let (_other, other) = folder();
    refused(&Warmup { source: another_model(&other), ..Warmup::new() });
    // Where activations are held decides nothing.
    options = WarmupOptions { memory_bytes: 0, ..Warmup::new().options };
    assert_eq!(Warmup { options, ..Warmup::new() }.go(&whole).unwrap().skipped, [1, 2]);
    // A file from before there were digests, or of somebody else, is nobody's to use.
    fs::remove_file(whole.join("digests.json")).unwrap();
    assert!(Warmup::new().go(&whole).unwrap().skipped.is_empty());
    assert!(files(&whole) == before);
}
