//! Section "Speed and memory": the benchmark's figures, and decoding against the roofline.

use sharp_schema::benchmark::{Bench, ModelSpeed};

use crate::output;
use crate::report::blocks::Block;
use crate::report::charts::{self, Mark};
use crate::report::collect::Run;
use crate::report::text::{count, percent, row_name, seconds};

/// A figure of a model: its name, its value where it was measured, and how that is written.
type Figure = (&'static str, fn(&ModelSpeed) -> Option<f64>, fn(f64) -> String);

fn tokens_per_second(value: f64) -> String {
    format!("{value:.1} tokens/s")
}

fn bytes_per_second(value: f64) -> String {
    format!("{:.1} GB/s", value / 1e9)
}

fn bytes(value: f64) -> String {
    output::bytes(value as u64)
}

/// The lines of the table.
const FIGURES: [Figure; 14] = [
    ("file", |model| Some(model.file_bytes as f64), bytes),
    ("load", |model| Some(model.median.load_seconds), seconds),
    ("first token", |model| Some(model.median.first_token_seconds), seconds),
    ("prefill", |model| Some(model.median.prefill_tokens_per_second), tokens_per_second),
    ("decode", |model| Some(model.median.decode_tokens_per_second), tokens_per_second),
    ("bare loop", |model| Some(model.median.bare_loop_tokens_per_second), tokens_per_second),
    ("together", |model| Some(model.median.together_tokens_per_second), tokens_per_second),
    ("peak memory", |model| Some(model.median.peak_memory_bytes as f64), bytes),
    ("kv cache", |model| Some(model.median.kv_cache_bytes as f64), bytes),
    ("per token", |model| Some(model.median.bytes_per_token as f64), bytes),
    ("bytes used per token", |model| Some(model.median.bytes_used_per_token as f64), |n| count(n as u64)),
    ("roofline", |model| Some(model.roofline_fraction), percent),
    ("decode", |model| Some(model.decode_bytes_per_second), bytes_per_second),
    ("bare loop", |model| model.bare_loop_fraction, percent),
];

pub(in crate::report) fn speed(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Speed and memory".into()));
    let Some(bench) = run.bench.as_ref().filter(|bench| !bench.models.is_empty()) else {
        blocks.push(Block::Missing("Speed was not measured.".into()));
        return;
    };
    blocks.push(figures(&bench.models));
    if bench.models.len() == 2 {
        blocks.push(Block::Note("Ratio: the second model's figure divided by the first's.".into()));
    }
    roofline(bench, blocks);
    blocks.push(Block::Note(format!(
        "Measured with: threads {}, prompt tokens {}, decode tokens {}, memory bandwidth {}.",
        count(bench.threads as u64),
        count(bench.prompt_tokens as u64),
        count(bench.decode_tokens as u64),
        bytes_per_second(bench.memory_bandwidth_bytes_per_second)
    )));
}

/// Returns the table of all figures; two models are set in ratio.
fn figures(models: &[ModelSpeed]) -> Block {
    let two = models.len() == 2;
    let mut head = vec![String::new()];
    head.extend(models.iter().map(|model| row_name(&model.name)));
    if two {
        head.push("ratio".into());
    }
    let mut rows = Vec::new();
    for (name, value, write) in FIGURES {
        let values: Vec<Option<f64>> = models.iter().map(value).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let mut line = vec![name.to_owned()];
        line.extend(values.iter().map(|v| v.map_or("-".into(), write)));
        if two {
            line.push(match values[..] {
                [Some(a), Some(b)] if a > 0.0 && b > 0.0 => format!("{:.2}", b / a),
                _ => "-".into(),
            });
        }
        rows.push(line);
    }
    Block::Table { head, rows, wide: None }
}

/// Draws decoding against what the memory allows: bytes of weights a token, and tokens a second.
fn roofline(bench: &Bench, blocks: &mut Vec<Block>) {
    let bandwidth = bench.memory_bandwidth_bytes_per_second;
    let mut marks = Vec::new();
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for model in bench.models.iter().filter(|model| model.median.bytes_per_token > 0) {
        let (name, median) = (row_name(&model.name), &model.median);
        let bytes = median.bytes_per_token as f64;
        (least, most) = (least.min(bytes), most.max(bytes));
        for (speed, what, ring) in [
            (median.decode_tokens_per_second, "", false),
            (median.bare_loop_tokens_per_second, ", bare loop", true),
        ] {
            if speed > 0.0 {
                marks.push(Mark { name: format!("{name}{what}"), at: (bytes / 1e6, speed), ring });
            }
        }
    }
    if !(bandwidth > 0.0 && most > 0.0) {
        return;
    }
    let (from, to) = (0.7 * least, 1.4 * most);
    let roof = (0..=20)
        .map(|i| from * (to / from).powf(f64::from(i) / 20.0))
        .map(|bytes| (bytes / 1e6, bandwidth / bytes))
        .collect();
    let picture = charts::marks(
        "decoding against the roofline of the memory",
        ("megabytes of weights a token", true),
        ("tokens a second", true),
        &marks,
        &[roof],
    );
    if !picture.is_empty() {
        blocks.push(Block::Subheading("Decoding and what the memory allows".into()));
        blocks.push(Block::Picture(picture));
        blocks.push(Block::Note(format!(
            "Dashed: the roofline, {:.1} GB/s of weights read anew for each token; above it caches keep a part of the model. Rings: the \
             same products and nothing else (the bare loop).",
            bandwidth / 1e9
        )));
    }
}
