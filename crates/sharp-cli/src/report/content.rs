//! What the report says, as blocks that both pages are written from.

use serde_json::{Map, Value};
use sharp_model::{DType, Estimate, ModelConfig, Plan, Treatment};

use super::beside::beside;
use super::charts::{self, Curve, Mark};
use super::collect::{Run, number, series};
use super::speed::speed;
use super::text::{count, percent, perplexity, row_name, seconds};
use crate::output::bytes;

/// A part of the report.
#[derive(Debug, Clone)]
pub(super) enum Block {
    Heading(String),
    Subheading(String),
    Text(String),
    Note(String),
    /// Something that is not there and why.
    Missing(String),
    /// An SVG picture.
    Picture(String),
    /// Text as it was written.
    Quote(String),
    /// Long text that few will read.
    Folded {
        summary: String,
        text: String,
    },
    /// A table; the column `wide` holds sentences.
    Table {
        head: Vec<String>,
        rows: Vec<Vec<String>>,
        wide: Option<usize>,
    },
}

/// The whole report.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) title: String,
    pub(super) blocks: Vec<Block>,
}

/// One row of the results.
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    /// The name in words.
    title: String,
    pub(super) values: &'a Map<String, Value>,
}

impl Row<'_> {
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        number(self.values, &[key])
    }

    /// A measurement by text: `{"perplexity": {"boolq": 21.5}}`.
    pub(super) fn of(&self, key: &str, text: &str) -> Option<f64> {
        self.values.get(key)?.get(text)?.as_f64().filter(|v| v.is_finite())
    }
}

/// Writes the report of what was found.
pub(super) fn document(run: &Run) -> Document {
    let mut blocks = Vec::new();
    let rows = rows(run);
    if !run.missing.is_empty() {
        blocks.push(Block::Missing(format!(
            "Not all stages have left their results: {}.",
            run.missing.join("; ")
        )));
    }
    summary(run, &rows, &mut blocks);
    sharing(run, &mut blocks);
    sizes(run, &mut blocks);
    quality(run, &rows, &mut blocks);
    beside(run, &rows, &mut blocks);
    training(run, &mut blocks);
    speed(run, &mut blocks);
    samples(run, &mut blocks);
    similarity(run, &mut blocks);
    making(run, &mut blocks);
    Document { title: format!("SHARP report: {}", run.name), blocks }
}

fn strings(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|c| (*c).to_owned()).collect()
}

fn table(head: &[&str], rows: Vec<Vec<String>>) -> Block {
    Block::Table { head: strings(head), rows, wide: None }
}

pub(super) fn rows(run: &Run) -> Vec<Row<'_>> {
    let listed = run.results.as_ref().and_then(|r| r.get("rows")).and_then(Value::as_array);
    listed
        .into_iter()
        .flatten()
        .filter_map(|row| {
            let values = row.as_object()?;
            let name = values.get("name")?.as_str()?;
            Some(Row { name, title: row_title(run, name), values })
        })
        .collect()
}

/// The name of a row in words: without training, a pruned plan shares nothing.
fn row_title(run: &Run, name: &str) -> String {
    match name {
        "direct" if pruned(run) => "largest neurons, as they are".into(),
        _ => row_name(name),
    }
}

/// Whether the plan shares nothing and keeps a part of layers' own neurons.
fn pruned(run: &Run) -> bool {
    let prunes = |p: &Plan| p.changes.iter().all(|c| matches!(c.treatment, Treatment::Prune { .. }));
    run.plan.as_ref().is_some_and(|p| !p.changes.is_empty() && prunes(p))
}

/// The names under `key` in any row, in the order they are met: texts or tasks.
pub(super) fn names<'a>(rows: &[Row<'a>], key: &str) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        for name in row.values.get(key).and_then(Value::as_object).into_iter().flat_map(|m| m.keys()) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
    }
    names
}

pub(super) fn find<'a, 'b>(rows: &'b [Row<'a>], name: &str) -> Option<&'b Row<'a>> {
    rows.iter().find(|r| r.name == name)
}

fn estimate(run: &Run) -> Option<Estimate> {
    run.plan.as_ref()?.estimate(run.model.as_ref()?, DType::F16).ok()
}

fn summary(run: &Run, rows: &[Row], blocks: &mut Vec<Block>) {
    let mut lines = Vec::new();
    if let (Some(model), Some(plan)) = (&run.model, &run.plan) {
        lines.extend(what_changes(plan, model));
    }
    if let Some(e) = estimate(run) {
        lines.push(format!(
            "{} of the MLP parameters and {} of all parameters are saved.",
            percent(e.saved_fraction),
            percent(1.0 - e.stored_parameters as f64 / e.original_parameters.max(1) as f64)
        ));
    }
    if let (Some(first), Some(last)) = (find(rows, "original"), find(rows, "slw_sft"))
        && let Some(text) = names(rows, "perplexity").first()
        && let (Some(before), Some(after)) = (first.of("perplexity", text), last.of("perplexity", text))
    {
        lines.push(format!(
            "Perplexity on {text}: {} before, {} after recovery.",
            perplexity(before),
            perplexity(after)
        ));
    }
    if !lines.is_empty() {
        blocks.push(Block::Text(lines.join(" ")));
    }
}

/// What the plan does, a sentence for each kind of layer.
fn what_changes(plan: &Plan, model: &ModelConfig) -> Vec<String> {
    let layers = model.num_hidden_layers;
    let mut kept = Vec::new();
    let (mut sharing, mut dropped, mut low_rank) = (0, 0, 0);
    for change in &plan.changes {
        match change.treatment {
            Treatment::Share { .. } => sharing += 1,
            Treatment::LowRank { .. } => low_rank += 1,
            Treatment::Prune { neurons } => kept.push(neurons),
            Treatment::Drop => dropped += 1,
        }
    }
    let mut lines = Vec::new();
    if let (Some(&least), Some(&most)) = (kept.iter().min(), kept.iter().max()) {
        let range = if least == most {
            count(least as u64)
        } else {
            format!("{} to {}", count(least as u64), count(most as u64))
        };
        lines.push(format!(
            "{} of {layers} layers keep {range} of their {} neurons.",
            kept.len(),
            count(model.intermediate_size as u64)
        ));
    }
    for (n, what) in [
        (sharing, "run with another layer's MLP"),
        (dropped, "run without an MLP"),
        (low_rank, "run with a low-rank MLP"),
    ] {
        if n > 0 {
            lines.push(format!("{n} of {layers} layers {what}."));
        }
    }
    lines
}

fn sharing(run: &Run, blocks: &mut Vec<Block>) {
    let heading = if pruned(run) { "What each layer keeps" } else { "Which layer uses whose MLP" };
    blocks.push(Block::Heading(heading.into()));
    let Some(plan) = &run.plan else {
        blocks.push(Block::Missing("There is no plan.".into()));
        return;
    };
    if let Some(model) = &run.model {
        if plan.changes.iter().any(|c| matches!(c.treatment, Treatment::Prune { .. })) {
            let picture = charts::neurons(plan, model.num_hidden_layers, model.intermediate_size);
            blocks.push(Block::Picture(picture));
            blocks.push(Block::Note(
                "Bars: neurons of its own MLP that a layer keeps. Paler: all of them.".into(),
            ));
        }
        if !pruned(run) {
            let picture = charts::plan(plan, model.num_hidden_layers, model.intermediate_size);
            blocks.push(Block::Picture(picture));
            blocks.push(Block::Note(
                "Upper line: layers that keep their MLP, filled as far as they keep its neurons. Lower line: layers that run with the \
                 MLP of the layer they hang from and their own recovery parameters."
                    .into(),
            ));
        }
    }
    let changes = plan
        .changes
        .iter()
        .map(|c| vec![c.layer.to_string(), c.treatment.describe(), c.reason.clone()])
        .collect();
    blocks.push(Block::Text(format!("Chosen by the strategy {}.", plan.strategy)));
    blocks.push(Block::Table {
        head: strings(&["layer", "in place of its MLP", "why"]),
        rows: changes,
        wide: Some(2),
    });
}

fn sizes(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Size".into()));
    match estimate(run) {
        Some(e) => {
            let saved = |before: u64, after: u64| percent(1.0 - after as f64 / before.max(1) as f64);
            let line = |what: &str, before: u64, after: u64, write: &dyn Fn(u64) -> String| {
                vec![what.to_owned(), write(before), write(after), saved(before, after)]
            };
            let rows = vec![
                line("MLP parameters", e.original_mlp_parameters, e.stored_mlp_parameters, &count),
                line("all parameters", e.original_parameters, e.stored_parameters, &count),
                line("bytes in 16 bits", e.original_bytes, e.stored_bytes, &bytes),
            ];
            blocks.push(table(&["", "original", "compressed", "saved"], rows));
            let own = count(e.recovery_parameters);
            blocks.push(Block::Note(if pruned(run) {
                format!("{own} of the compressed model's are the neurons kept in changed layers.")
            } else {
                format!("Recovery parameters are counted: {own} of the compressed model's.")
            }));
        }
        None => blocks.push(Block::Missing(
            "Without a plan and the model's configuration there is nothing to count.".into(),
        )),
    }
    if !run.sizes.is_empty() {
        let files = run.sizes.iter().map(|(name, n)| vec![name.clone(), bytes(*n)]).collect();
        blocks.push(table(&["weights on disk", "size"], files));
    }
}

fn quality(run: &Run, rows: &[Row], blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Quality".into()));
    if rows.is_empty() {
        blocks.push(Block::Missing("No row was evaluated.".into()));
        return;
    }
    let texts = names(rows, "perplexity");
    let mut head = strings(&["row", "MLP parameters", "bytes"]);
    head.extend(texts.iter().map(|t| format!("perplexity, {t}")));
    let lines = rows
        .iter()
        .map(|row| {
            let mut line = vec![
                row.title.clone(),
                row.number("mlp_parameters").map_or("-".into(), |v| count(v.max(0.0) as u64)),
                row.number("bytes").map_or("-".into(), |v| bytes(v.max(0.0) as u64)),
            ];
            line.extend(texts.iter().map(|t| row.of("perplexity", t).map_or("-".into(), perplexity)));
            line
        })
        .collect();
    blocks.push(Block::Table { head, rows: lines, wide: None });
    let mut note = String::new();
    if let Some(settings) = run.results.as_ref().and_then(|r| r.get("settings")) {
        let setting = |key: &str| settings.get(key).and_then(Value::as_u64);
        if let (Some(window), Some(stride)) = (setting("window"), setting("stride")) {
            note = format!("Perplexity in windows of {window} tokens, stride {stride}. ");
        }
    }
    note.push_str("Lower is better. Bytes are the weights as stored for the row.");
    blocks.push(Block::Note(note));
    for text in &texts {
        blocks.extend(quality_by_size(run, rows, text));
    }
    blocks.push(Block::Note(
        "Rings: the original. Dashed: the same model before and after quantisation. Lower left is better."
            .into(),
    ));
    for text in &texts {
        blocks.extend(verdict(rows, text));
    }
    divergence(rows, blocks);
    accuracy(rows, blocks);
    let expected = ["original", "direct", "slw", "sft", "slw_sft"];
    let absent: Vec<String> =
        expected.iter().filter(|name| find(rows, name).is_none()).map(|name| row_title(run, name)).collect();
    if !absent.is_empty() {
        blocks.push(Block::Missing(format!("Not evaluated in this run: {}.", absent.join(", "))));
    }
}

/// What the name of a quantised row ends in.
fn precision(name: &str) -> Option<&'static str> {
    ["_q4", "_q8"].into_iter().find(|ending| name.ends_with(ending))
}

/// Every row by its size and its perplexity, the quantised ones joined to what they were made of.
fn quality_by_size(run: &Run, rows: &[Row], text: &str) -> Option<Block> {
    // Rows that are not quantised were evaluated in the type they happened to lie in; what counts is what they take in 16 bits.
    let rest = estimate(run).map(|e| e.original_parameters.saturating_sub(e.original_mlp_parameters) as f64);
    let bytes = |row: &Row| match (precision(row.name), rest, row.number("mlp_parameters")) {
        (None, Some(rest), Some(mlp)) => Some(2.0 * (rest + mlp)),
        _ => row.number("bytes"),
    };
    let at = |row: &Row| Some((bytes(row)? / 1e6, row.of("perplexity", text)?));
    let marks: Vec<Mark> = rows
        .iter()
        .filter_map(|row| {
            Some(Mark { name: row.title.clone(), at: at(row)?, ring: row.name.starts_with("original") })
        })
        .collect();
    let lines: Vec<Vec<(f64, f64)>> = rows
        .iter()
        .filter_map(|row| {
            let of = row.name.strip_suffix(precision(row.name)?)?;
            Some(vec![at(row)?, at(find(rows, of)?)?])
        })
        .collect();
    let name = format!("perplexity on {text}");
    let title = format!("{name} against size");
    let picture = charts::marks(
        &title,
        ("megabytes, 16-bit weights where not quantised", false),
        (&name, true),
        &marks,
        &lines,
    );
    (!picture.is_empty()).then_some(Block::Picture(picture))
}

/// Whether the full method beats its parts on a text, in figures either way.
fn verdict(rows: &[Row], text: &str) -> Option<Block> {
    let full = find(rows, "slw_sft")?.of("perplexity", text)?;
    let others: Vec<(String, f64)> = ["direct", "slw", "sft"]
        .iter()
        .filter_map(|name| {
            let row = find(rows, name)?;
            Some((row.title.clone(), row.of("perplexity", text)?))
        })
        .collect();
    let better: Vec<&(String, f64)> = others.iter().filter(|(_, v)| *v <= full).collect();
    let list = |rows: Vec<&(String, f64)>| {
        rows.iter().map(|(n, v)| format!("{n} ({})", perplexity(*v))).collect::<Vec<_>>().join(", ")
    };
    if others.is_empty() {
        return None;
    }
    Some(Block::Text(if better.is_empty() {
        format!(
            "On {text} SLW + SFT ({}) is better than {}.",
            perplexity(full),
            list(others.iter().collect())
        )
    } else {
        format!("On {text} SLW + SFT ({}) does not beat {}.", perplexity(full), list(better))
    }))
}

fn divergence(rows: &[Row], blocks: &mut Vec<Block>) {
    let (kl, top1) = (names(rows, "kl"), names(rows, "top1_agreement"));
    if kl.is_empty() && top1.is_empty() {
        return;
    }
    let mut head = strings(&["row"]);
    head.extend(kl.iter().map(|t| format!("KL to the original, {t}")));
    head.extend(top1.iter().map(|t| format!("same first choice, {t}")));
    let lines = rows
        .iter()
        .filter(|row| {
            kl.iter().any(|t| row.of("kl", t).is_some())
                || top1.iter().any(|t| row.of("top1_agreement", t).is_some())
        })
        .map(|row| {
            let mut line = vec![row.title.clone()];
            line.extend(kl.iter().map(|t| row.of("kl", t).map_or("-".into(), |v| format!("{v:.4}"))));
            line.extend(top1.iter().map(|t| row.of("top1_agreement", t).map_or("-".into(), percent)));
            line
        })
        .collect();
    blocks.push(Block::Subheading("How far from the original".into()));
    blocks.push(Block::Table { head, rows: lines, wide: None });
    blocks.push(Block::Note(
        "KL divergence of the next-token distribution in nats, and how often the most likely token is the original's.".into(),
    ));
}

fn accuracy(rows: &[Row], blocks: &mut Vec<Block>) {
    let tasks = names(rows, "tasks");
    if tasks.is_empty() {
        return;
    }
    blocks.push(Block::Subheading("Task accuracy".into()));
    let get = |row: &Row, task: &str, key: &str| row.values.get("tasks")?.get(task)?.get(key)?.as_f64();
    for (measure, title) in [("acc", "accuracy"), ("acc_norm", "accuracy, normalised by length")] {
        let value = |row: &Row, task: &str| get(row, task, &format!("{measure},none"));
        if !rows.iter().any(|r| tasks.iter().any(|t| value(r, t).is_some())) {
            continue;
        }
        let mut head = vec![title.to_owned()];
        head.extend(tasks.iter().map(|t| {
            let n = rows.iter().find_map(|r| {
                let n = r.values.get("tasks")?.get(*t)?.get("n")?;
                n.as_u64()
            });
            n.map_or((*t).to_owned(), |n| format!("{t} (n = {n})"))
        }));
        let lines = rows
            .iter()
            .filter(|r| tasks.iter().any(|t| value(r, t).is_some()))
            .map(|row| {
                let mut line = vec![row.title.clone()];
                line.extend(tasks.iter().map(|task| match value(row, task) {
                    None => "-".into(),
                    Some(v) => match get(row, task, &format!("{measure}_stderr,none")) {
                        Some(e) => format!("{:.1} ± {:.1} %", 100.0 * v, 100.0 * e),
                        None => percent(v),
                    },
                }));
                line
            })
            .collect();
        blocks.push(Block::Table { head, rows: lines, wide: None });
    }
    blocks.push(Block::Note("Mean and standard error over questions.".into()));
}

const STEP: &[&str] = &["step"];
const LOSS: &[&str] = &["loss", "train_loss"];
const HELD_OUT_ERROR: &[&str] = &["held_out_error", "held_out", "held_out_loss", "held_out_relative_error"];
const HELD_OUT_PERPLEXITY: &[&str] = &["held_out_perplexity", "perplexity"];
const HELD_OUT_LOSS: &[&str] = &["held_out_loss", "held_out"];

fn training(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Recovery".into()));
    blocks.push(Block::Subheading("Single-layer warm-up (SLW)".into()));
    warmup(run, blocks);
    blocks.push(Block::Subheading("Fine-tuning (SFT)".into()));
    finetune(run, blocks);
}

fn warmup(run: &Run, blocks: &mut Vec<Block>) {
    let held_out = series(&run.warmup, Some("layer"), STEP, HELD_OUT_ERROR);
    let (errors, what) = if held_out.is_empty() {
        (series(&run.warmup, Some("layer"), STEP, LOSS), "training loss")
    } else {
        (held_out, "error on held-out text")
    };
    if errors.is_empty() {
        blocks.push(Block::Missing("No measurements of a warm-up.".into()));
        return;
    }
    let ends: Vec<(String, f64, f64)> = errors
        .iter()
        .filter_map(|(layer, points)| Some((format!("layer {layer}"), points.first()?.1, points.last()?.1)))
        .collect();
    blocks.push(Block::Picture(charts::from_to("warm-up, first and last measurement", what, &ends)));
    let curves: Vec<Curve> = errors
        .iter()
        .map(|(layer, points)| Curve { name: format!("layer {layer}"), points: points.clone() })
        .collect();
    if curves.iter().any(|c| c.points.len() > 2) {
        blocks.push(Block::Picture(charts::curves("warm-up", "step", what, &curves, false)));
    }
    let rows = errors
        .iter()
        .filter_map(|(layer, points)| {
            let (first, last) = (points.first()?, points.last()?);
            let number = sharp_similarity::number;
            Some(vec![layer.to_string(), number(first.1), number(last.1), count(last.0.max(0.0) as u64)])
        })
        .collect();
    blocks.push(table(&["layer", &format!("{what}: first"), "last", "steps"], rows));
    blocks.push(Block::Note(
        "Each changed MLP alone, against the original MLP's output on the same input. Ring: first measurement, dot: last. \
         Where the error is relative, 1 is as bad as no MLP."
            .into(),
    ));
}

fn finetune(run: &Run, blocks: &mut Vec<Block>) {
    if run.finetune.is_empty() && run.finetune_cold.is_empty() {
        blocks.push(Block::Missing("No measurements of a fine-tuning.".into()));
        return;
    }
    let curves = |y: &[&str]| -> Vec<Curve> {
        [("after warm-up", &run.finetune), ("without warm-up", &run.finetune_cold)]
            .into_iter()
            .filter_map(|(name, records)| {
                let points = series(records, None, STEP, y).remove(&0)?;
                Some(Curve { name: name.into(), points })
            })
            .collect()
    };
    let mut held_out = curves(HELD_OUT_PERPLEXITY);
    if held_out.is_empty() {
        held_out = curves(HELD_OUT_LOSS);
        for point in held_out.iter_mut().flat_map(|c| &mut c.points) {
            point.1 = point.1.exp();
        }
    }
    let loss = curves(LOSS);
    for (what, curves, log) in
        [("training loss", &loss, false), ("perplexity on held-out text", &held_out, true)]
    {
        if curves.is_empty() {
            continue;
        }
        blocks.push(Block::Picture(charts::curves(what, "step", what, curves, log)));
        let rows = curves
            .iter()
            .filter_map(|c| {
                let (first, last) = (c.points.first()?, c.points.last()?);
                let best = c.points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
                let write = if log { perplexity } else { |v: f64| format!("{v:.3}") };
                let steps = count(last.0.max(0.0) as u64);
                Some(vec![c.name.clone(), write(first.1), write(best), write(last.1), steps])
            })
            .collect();
        blocks.push(table(&[what, "first", "best", "last", "steps"], rows));
    }
    if loss.is_empty() && held_out.is_empty() {
        blocks
            .push(Block::Missing("The fine-tuning's measurements hold neither loss nor perplexity.".into()));
    }
}

fn samples(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("Sample text".into()));
    if run.samples.is_empty() {
        blocks.push(Block::Missing("No text was generated for this report.".into()));
        return;
    }
    let mut prompts: Vec<&str> = Vec::new();
    for sample in &run.samples {
        if !prompts.contains(&sample.prompt.as_str()) {
            prompts.push(&sample.prompt);
        }
    }
    for prompt in prompts {
        blocks.push(Block::Subheading(format!("\u{201c}{}\u{201d}", prompt.trim())));
        for sample in run.samples.iter().filter(|s| s.prompt == prompt) {
            let speed = sample
                .tokens_per_second
                .filter(|v| v.is_finite())
                .map(|v| format!(" ({v:.0} tokens/s)"))
                .unwrap_or_default();
            blocks.push(Block::Note(format!("{}{speed}:", row_name(&sample.model))));
            blocks.push(Block::Quote(sample.text.clone()));
        }
    }
    blocks.push(Block::Note("Greedy, not chosen among several.".into()));
}

fn similarity(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("How alike the layers are".into()));
    let Some(report) = &run.similarity else {
        blocks.push(Block::Missing("The layers were not compared.".into()));
        return;
    };
    let marked: Vec<(usize, usize)> = run
        .plan
        .iter()
        .flat_map(|p| &p.changes)
        .filter_map(|c| Some((c.layer, c.treatment.reference()?)))
        .collect();
    for metric in report.telling_metrics() {
        blocks.push(Block::Subheading(metric.title().into()));
        blocks.push(Block::Picture(report.heat_map(metric, &marked)));
        blocks.push(Block::Note(metric.explanation().into()));
    }
    blocks.push(Block::Note(format!(
        "Measured on {} tokens; frames mark the pairs of the plan. All measures: 02-analyze/similarity.html.",
        count(report.tokens)
    )));
}

fn making(run: &Run, blocks: &mut Vec<Block>) {
    blocks.push(Block::Heading("How this was made".into()));
    if run.stages.is_empty() {
        blocks.push(Block::Missing("No stage has left a manifest.".into()));
    } else {
        let total: f64 = run.stages.iter().filter_map(|s| s.wall_s).sum();
        let mut rows: Vec<Vec<String>> = run
            .stages
            .iter()
            .map(|s| {
                let name = if s.done { s.name.to_owned() } else { format!("{} (not finished)", s.name) };
                vec![name, s.wall_s.map_or("-".into(), seconds), s.peak_memory.map_or("-".into(), bytes)]
            })
            .collect();
        rows.push(vec![
            "all".into(),
            seconds(total),
            run.stages.iter().filter_map(|s| s.peak_memory).max().map_or("-".into(), bytes),
        ]);
        blocks.push(table(&["stage", "time", "peak memory"], rows));
        let mut hosts: Vec<&str> = Vec::new();
        for host in run.stages.iter().filter_map(|s| s.host.as_deref()) {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let seed = run.stages.iter().find_map(|s| s.seed).map(|s| format!(" Seed {s}.")).unwrap_or_default();
        if !hosts.is_empty() {
            blocks.push(Block::Text(format!("On {}.{seed}", hosts.join("; "))));
        }
    }
    if let Some(config) = &run.config {
        blocks.push(Block::Folded { summary: "Configuration".into(), text: config.clone() });
    }
    blocks.push(Block::Note(
        "Method: Wang et al., SHARP: Accelerating Language Model Inference by SHaring Adjacent layers with Recovery \
         Parameters, arXiv 2502.07832."
            .into(),
    ));
}
