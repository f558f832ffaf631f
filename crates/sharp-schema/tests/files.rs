//! Files as the programs write them are read, and written again to the same bytes.

use sharp_schema::benchmark::Bench;
use sharp_schema::evaluation::{Request, Results};
use sharp_schema::manifest::{Digest, Manifest, Status};
use sharp_schema::metrics::{FinetuneLine, Line, Validation, read_finetune, read_warmup};
use sharp_schema::{Side, Start};

/// Reads a file of JSON and checks that writing it gives the same bytes.
fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned>(text: &str) -> T {
    let read: T = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string_pretty(&read).unwrap() + "\n", text);
    read
}

#[test]
fn a_manifest_keeps_its_bytes() {
    let manifest: Manifest = round_trip(include_str!("golden/manifest.json"));
    assert_eq!((manifest.stage.as_str(), manifest.status), ("03-plan", Status::Done));
    assert!(matches!(manifest.inputs[0].digest, Digest::Blake3(_)));
}

#[test]
fn results_keep_their_bytes() {
    let results: Results = round_trip(include_str!("golden/results.json"));
    assert_eq!(results.row("direct").unwrap().tasks["tiny_questions"].n, 16);
    assert_eq!((results.settings.window, results.settings.stride), (Some(64), Some(32)));
    assert_eq!(results.settings.texts.unwrap()["tiny_held_out"].split, Side::HeldOut);
}

#[test]
fn a_benchmark_keeps_its_bytes() {
    let bench: Bench = round_trip(include_str!("golden/bench.json"));
    assert_eq!(bench.models[0].runs[0].kv_cache_bytes, 37_632);
}

#[test]
fn a_request_keeps_its_bytes() {
    let text = include_str!("golden/rows.toml");
    let request: Request = toml::from_str(text).unwrap();
    assert_eq!(toml::to_string(&request).unwrap(), text);
    assert_eq!((request.texts[0].split, request.tasks[0].limit), (Side::HeldOut, None));
}

#[test]
fn metrics_keep_their_bytes() {
    let text = include_str!("golden/warmup.jsonl");
    let lines = read_warmup(text);
    assert_eq!((lines[1].step, lines[1].start), (20, Start::Whitened));
    assert_eq!(written(lines.into_iter().map(Line::Warmup)), text);
    let text = include_str!("golden/finetune.jsonl");
    let lines = read_finetune(text);
    assert_eq!(lines.iter().map(FinetuneLine::step).collect::<Vec<_>>(), [0, 1, 6]);
    assert_eq!(lines.iter().map(|line| line.validation().is_some()).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(written(lines.into_iter().map(Line::Finetune)), text);
}

#[test]
fn metrics_of_before_the_validation_side_are_read() {
    let before = |text: &str| text.replace("validation_", "held_out_");
    let (warmup, finetune) = (include_str!("golden/warmup.jsonl"), include_str!("golden/finetune.jsonl"));
    assert_eq!(read_warmup(&before(warmup)), read_warmup(warmup));
    assert_eq!(read_finetune(&before(finetune)), read_finetune(finetune));
    assert_eq!(read_finetune(finetune).len(), 3);
}

fn written(lines: impl Iterator<Item = Line>) -> String {
    lines.map(|line| serde_json::to_string(&line).unwrap() + "\n").collect()
}

#[test]
fn a_line_cut_off_is_left_out_and_one_that_is_not_finite_stays() {
    let text = include_str!("golden/finetune.jsonl");
    assert_eq!(read_finetune(&text[..text.len() - 9]).len(), 2);
    assert!(read_warmup(text).is_empty());
    let validation = Validation { loss: f64::NAN, perplexity: f64::INFINITY, kl: None };
    let line = Line::Finetune(FinetuneLine::Start { step: 0, validation, seconds: 0.0 });
    let read = read_finetune(&written([line].into_iter()));
    assert!(read[0].validation().unwrap().loss.is_nan());
}
