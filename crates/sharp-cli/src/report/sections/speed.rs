//! Section "Speed and memory": the benchmark's figures, and decoding against the roofline.

use serde_json::{Map, Value};

use crate::report::blocks::Block;
use crate::report::charts::{self, Mark};
use crate::report::collect::Run;
use crate::report::metrics::number;
use crate::report::text::{labelled, row_name};

/// The measurements of a benchmark file: an array of objects under whatever name, one a model.
fn benchmark_rows(bench: &Value) -> Vec<&Map<String, Value>> {
    let list =
        |value: &'_ Value| value.as_array().is_some_and(|a| !a.is_empty() && a.iter().all(Value::is_object));
    let found = match bench {
        Value::Array(_) => Some(bench),
        Value::Object(map) => {
            ["rows", "models"].iter().find_map(|key| map.get(*key)).or_else(|| map.values().find(|v| list(v)))
        }
        _ => None,
    };
    found.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object).collect()
}

/// The numbers in an object and in the objects inside it, with joined keys.
fn flat(prefix: &str, map: &Map<String, Value>, out: &mut Vec<(String, f64)>) {
    for (key, value) in map {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}_{key}") };
        match value {
            Value::Number(n) => out.extend(n.as_f64().filter(|v| v.is_finite()).map(|v| (key, v))),
            // Deeper is detail that no table holds.
            Value::Object(inner) if prefix.is_empty() => flat(&key, inner, out),
            _ => {}
        }
    }
}

pub(in crate::report) fn speed(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Speed and memory".into()));
    let measured = run.bench.as_ref().map(benchmark_rows).unwrap_or_default();
    if measured.is_empty() {
        blocks.push(Block::Missing("Speed was not measured.".into()));
        return;
    }
    let mut head = vec![String::new()];
    let mut columns: Vec<Vec<(String, f64)>> = Vec::new();
    for (i, row) in measured.iter().enumerate() {
        head.push(measured_name(row).unwrap_or_else(|| format!("model {}", i + 1)));
        let mut numbers = Vec::new();
        flat("", row, &mut numbers);
        columns.push(numbers);
    }
    let mut keys: Vec<&str> = Vec::new();
    for key in columns.iter().flatten().map(|(k, _)| k.as_str()) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let two = columns.len() == 2;
    if two {
        head.push("ratio".into());
    }
    let rows = keys
        .iter()
        .map(|key| {
            let values: Vec<Option<f64>> =
                columns.iter().map(|c| c.iter().find(|(k, _)| k == key).map(|(_, v)| *v)).collect();
            let mut line = vec![labelled(key, 0.0).0];
            line.extend(values.iter().map(|v| v.map_or("-".into(), |v| labelled(key, v).1)));
            if two {
                line.push(match values[..] {
                    [Some(a), Some(b)] if a > 0.0 && b > 0.0 => format!("{:.2}", b / a),
                    _ => "-".into(),
                });
            }
            line
        })
        .collect();
    blocks.push(Block::Table { head, rows, wide: None });
    if two {
        blocks.push(Block::Note("Ratio: the second model's figure divided by the first's.".into()));
    }
    roofline(run, &measured, blocks);
    let mut facts = Vec::new();
    if let Some(Value::Object(map)) = &run.bench {
        flat("", map, &mut facts);
    }
    if !facts.is_empty() {
        let facts: Vec<String> = facts
            .iter()
            .map(|(k, v)| {
                let (name, value) = labelled(k, *v);
                format!("{name} {value}")
            })
            .collect();
        blocks.push(Block::Note(format!("Measured with: {}.", facts.join(", "))));
    }
}

/// Decoding against what the memory allows: bytes of weights a token, and tokens a second.
fn roofline(run: &Run, measured: &[&Map<String, Value>], blocks: &mut Vec<Block>) {
    let bench = run.bench.as_ref().and_then(Value::as_object);
    let Some(bandwidth) = bench.and_then(|b| number(b, &["memory_bandwidth_bytes_per_second"])) else {
        return;
    };
    let mut marks = Vec::new();
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for row in measured {
        let name = measured_name(row).unwrap_or_else(|| "model".into());
        let Some(bytes) = number(row, &["bytes_per_token"]).filter(|b| *b > 0.0) else { continue };
        (least, most) = (least.min(bytes), most.max(bytes));
        for (key, what, ring) in
            [("decode_tokens_per_second", "", false), ("bare_loop_tokens_per_second", ", bare loop", true)]
        {
            if let Some(speed) = number(row, &[key]).filter(|v| *v > 0.0) {
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

/// What a measured model is called.
fn measured_name(row: &Map<String, Value>) -> Option<String> {
    let name =
        ["name", "row", "model", "path"].iter().find_map(|key| row.get(*key).and_then(Value::as_str))?;
    Some(model_name(name.rsplit(['/', '\\']).next().unwrap_or(name)))
}

/// A packed file by what it holds.
fn model_name(file: &str) -> String {
    match file {
        "model.sharp" => "compressed (model.sharp)".into(),
        "original-q4.sharp" => "original (original-q4.sharp)".into(),
        other => row_name(other),
    }
}
