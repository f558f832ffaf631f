//! What the stages of a run left in its folder, read leniently: a missing or damaged file becomes a line of the report.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::{Map, Value};
use sharp_model::{DType, Estimate, ModelConfig, Plan, Treatment};
use sharp_similarity::Report as Similarity;

use super::Sample;

/// No file of a run that the report reads is believed to be larger.
const MAX_TEXT: u64 = 256 << 20;

/// The stage folders in order, with the names the report gives them.
const STAGES: [(&str, &str); 10] = [
    ("01-import", "import"),
    ("02-analyze", "analyse"),
    ("03-plan", "plan"),
    ("04-warmup", "single-layer warm-up (SLW)"),
    ("05-finetune", "fine-tuning (SFT)"),
    ("05-finetune-cold", "fine-tuning without warm-up"),
    ("06-export", "export"),
    ("07-quantize", "quantise"),
    ("08-evaluate", "evaluate"),
    ("09-benchmark", "benchmark"),
];

/// One line of a `metrics.jsonl`.
pub(super) type Record = Map<String, Value>;

/// What a stage says about itself.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) done: bool,
    pub(super) wall_s: Option<f64>,
    pub(super) peak_memory: Option<u64>,
    pub(super) host: Option<String>,
    pub(super) seed: Option<u64>,
}

/// All that was found in a run's folder.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) stages: Vec<Stage>,
    /// The resolved configuration, as text.
    pub(super) config: Option<String>,
    pub(super) model: Option<ModelConfig>,
    pub(super) plan: Option<Plan>,
    pub(super) similarity: Option<Similarity>,
    pub(super) warmup: Vec<Record>,
    pub(super) finetune: Vec<Record>,
    pub(super) finetune_cold: Vec<Record>,
    pub(super) results: Option<Value>,
    pub(super) bench: Option<Value>,
    /// Bytes of what can be shipped, by a name for the reader.
    pub(super) sizes: Vec<(String, u64)>,
    pub(super) samples: Vec<Sample>,
    /// Other runs that this one is compared with, by name.
    pub(super) compared: Vec<(String, Run)>,
    /// What is not there, as lines for the reader.
    pub(super) missing: Vec<String>,
}

impl Run {
    /// Reads the run in `folder`.
    pub(super) fn read(folder: &Path, samples: &[Sample]) -> Result<Self> {
        if !folder.is_dir() {
            bail!("{}: no such run folder", folder.display());
        }
        let mut run = Run {
            name: folder
                .canonicalize()
                .ok()
                .and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
                .unwrap_or_else(|| "run".into()),
            samples: samples.to_vec(),
            ..Run::default()
        };
        run.stages =
            STAGES.iter().filter_map(|(stage, name)| Stage::read(&folder.join(stage), name)).collect();
        let at = |relative: &str| folder.join(relative);
        run.config = text(&at("config.toml")).ok();
        run.model = run.part("01-import/config.json", ModelConfig::load(at("01-import/config.json")));
        run.plan = run.part("03-plan/plan.toml", Plan::load(at("03-plan/plan.toml")));
        let similarity = text(&at("02-analyze/similarity.json"))
            .and_then(|t| Similarity::from_json(&t).map_err(|e| e.to_string()));
        run.similarity = run.part("02-analyze/similarity.json", similarity);
        let lines = records(&at("04-warmup/metrics.jsonl"));
        run.warmup = run.part("04-warmup/metrics.jsonl", lines).unwrap_or_default();
        let lines = records(&at("05-finetune/metrics.jsonl"));
        run.finetune = run.part("05-finetune/metrics.jsonl", lines).unwrap_or_default();
        // The row without warm-up is optional; the table of rows says where it is missing.
        run.finetune_cold = records(&at("05-finetune-cold/metrics.jsonl")).unwrap_or_default();
        let results = json(&at("08-evaluate/results.json"));
        run.results = run.part("08-evaluate/results.json", results);
        let bench = json(&at("09-benchmark/bench.json"));
        run.bench = run.part("09-benchmark/bench.json", bench);
        for (path, name) in [
            ("01-import", "original as imported"),
            ("06-export/compact", "compact checkpoint"),
            ("06-export/dense", "dense checkpoint (shared MLPs written out)"),
            ("07-quantize/original-q4.sharp", "original, quantised"),
            ("07-quantize/model.sharp", "compressed, quantised"),
        ] {
            if let Some(bytes) = weight_bytes(&at(path)) {
                run.sizes.push((name.into(), bytes));
            }
        }
        Ok(run)
    }

    /// Reads the results of a run to compare with; where they cannot be read, `missing` says why.
    pub(super) fn read_results(folder: &Path) -> Self {
        let mut run = Run::default();
        let results = json(&folder.join("08-evaluate/results.json"));
        run.results = run.part("08-evaluate/results.json", results);
        run
    }

    /// Whether the plan shares nothing and keeps a part of layers' own neurons.
    pub(super) fn only_prunes(&self) -> bool {
        let prunes = |p: &Plan| p.changes.iter().all(|c| matches!(c.treatment, Treatment::Prune { .. }));
        self.plan.as_ref().is_some_and(|p| !p.changes.is_empty() && prunes(p))
    }

    /// Returns parameters and bytes before and after, where both plan and model are there.
    pub(super) fn estimate(&self) -> Option<Estimate> {
        self.plan.as_ref()?.estimate(self.model.as_ref()?, DType::F16).ok()
    }

    fn part<T, E: std::fmt::Display>(&mut self, name: &str, found: Result<T, E>) -> Option<T> {
        found.map_err(|e| self.missing.push(format!("{name}: {e}"))).ok()
    }
}

impl Stage {
    fn read(folder: &Path, name: &'static str) -> Option<Self> {
        let manifest = json(&folder.join("manifest.json")).ok()?;
        let host = manifest.get("host").map(|host| {
            let part = |key: &str| host.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
            let threads = host.get("threads").and_then(Value::as_u64).unwrap_or(0);
            format!("{}, {}, {threads} threads", part("cpu"), part("system"))
        });
        Some(Self {
            name,
            done: manifest.get("status").and_then(Value::as_str) == Some("done"),
            wall_s: manifest.get("wall_s").and_then(Value::as_f64),
            peak_memory: manifest.get("peak_memory_bytes").and_then(Value::as_u64),
            host,
            seed: manifest.get("seed").and_then(Value::as_u64),
        })
    }
}

fn text(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => "not there; this stage has not run".to_owned(),
        _ => e.to_string(),
    })?;
    let mut text = String::new();
    let read = file.take(MAX_TEXT + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if read as u64 > MAX_TEXT {
        return Err(format!("larger than {MAX_TEXT} bytes"));
    }
    Ok(text)
}

fn json(path: &Path) -> Result<Value, String> {
    serde_json::from_str(&text(path)?).map_err(|e| format!("damaged: {e}"))
}

/// The lines that are JSON objects. A run that was killed may have left half a line; it is skipped.
fn records(path: &Path) -> Result<Vec<Record>, String> {
    let records: Vec<Record> =
        text(path)?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if records.is_empty() { Err("no measurements in it".into()) } else { Ok(records) }
}

/// Bytes of a file, or of the safetensors files of a folder (links followed).
fn weight_bytes(path: &Path) -> Option<u64> {
    let meta = std::fs::metadata(path).ok()?;
    if meta.is_file() {
        return Some(meta.len());
    }
    let files: Vec<PathBuf> =
        std::fs::read_dir(path).ok()?.filter_map(|e| e.ok().map(|e| e.path())).collect();
    let bytes: u64 = files
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .filter_map(|p| std::fs::metadata(p).ok().map(|m| m.len()))
        .sum();
    (bytes > 0).then_some(bytes)
}
