//! What the stages of a run left in its folder, read leniently: a missing or damaged file becomes a line of
//! the report.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use sharp_model::{DType, Estimate, ModelConfig, Plan, Treatment};
use sharp_schema::benchmark::Bench;
use sharp_schema::evaluation::Results;
use sharp_schema::manifest::Manifest;
use sharp_schema::metrics::{self, FinetuneLine, WarmupLine};
use sharp_schema::run::{
    ANALYZE, BENCH_FILE, BENCHMARK, COMPACT, COMPRESSED_MODEL, CONFIG_FILE, DENSE, EVALUATE, EXPORT,
    FINETUNE, FINETUNE_COLD, IMPORT, MANIFEST_FILE, METRICS_FILE, ORIGINAL_MODEL, PLAN, PLAN_FILE, QUANTIZE,
    RESULTS_FILE, SIMILARITY_FILE, StageFolder, WARMUP,
};
use sharp_similarity::Report as Similarity;

use super::Sample;

/// No file of a run that the report reads is believed to be larger.
const MAX_TEXT: u64 = 256 << 20;

/// The stage folders in order, with the names the report gives them.
const STAGES: [(StageFolder, &str); 10] = [
    (IMPORT, "import"),
    (ANALYZE, "analyse"),
    (PLAN, "plan"),
    (WARMUP, "single-layer warm-up (SLW)"),
    (FINETUNE, "fine-tuning (SFT)"),
    (FINETUNE_COLD, "fine-tuning without warm-up"),
    (EXPORT, "export"),
    (QUANTIZE, "quantise"),
    (EVALUATE, "evaluate"),
    (BENCHMARK, "benchmark"),
];

/// What a stage says about itself.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) manifest: Manifest,
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
    pub(super) warmup: Vec<WarmupLine>,
    pub(super) finetune: Vec<FinetuneLine>,
    pub(super) finetune_cold: Vec<FinetuneLine>,
    pub(super) results: Option<Results>,
    pub(super) bench: Option<Bench>,
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
        run.config = text(&folder.join(CONFIG_FILE)).ok();
        run.model = run.part(folder, IMPORT.file("config.json"), |path| ModelConfig::load(path));
        run.plan = run.part(folder, PLAN.file(PLAN_FILE), |path| Plan::load(path));
        run.similarity = run.part(folder, ANALYZE.file(SIMILARITY_FILE), |path| {
            Similarity::from_json(&text(path)?).map_err(|e| e.to_string())
        });
        let warmup = |path: &Path| lines(path, metrics::read_warmup);
        let finetune = |path: &Path| lines(path, metrics::read_finetune);
        run.warmup = run.part(folder, WARMUP.file(METRICS_FILE), warmup).unwrap_or_default();
        run.finetune = run.part(folder, FINETUNE.file(METRICS_FILE), finetune).unwrap_or_default();
        // The row without warm-up is optional; the table of rows says where it is missing.
        run.finetune_cold = finetune(&folder.join(FINETUNE_COLD.file(METRICS_FILE))).unwrap_or_default();
        run.results = run.part(folder, EVALUATE.file(RESULTS_FILE), json);
        run.bench = run.part(folder, BENCHMARK.file(BENCH_FILE), json);
        for (path, name) in [
            (IMPORT.name().to_owned(), "original as imported"),
            (EXPORT.file(COMPACT), "compact checkpoint"),
            (EXPORT.file(DENSE), "dense checkpoint (shared MLPs written out)"),
            (QUANTIZE.file(ORIGINAL_MODEL), "original, quantised"),
            (QUANTIZE.file(COMPRESSED_MODEL), "compressed, quantised"),
        ] {
            if let Some(bytes) = weight_bytes(&folder.join(path)) {
                run.sizes.push((name.into(), bytes));
            }
        }
        Ok(run)
    }

    /// Reads the results of a run to compare with; where they cannot be read, `missing` says why.
    pub(super) fn read_results(folder: &Path) -> Self {
        let mut run = Run::default();
        run.results = run.part(folder, EVALUATE.file(RESULTS_FILE), json);
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

    /// Reads a file of the run; where it cannot be read, `missing` says why.
    fn part<T, E: std::fmt::Display>(
        &mut self,
        folder: &Path,
        name: String,
        read: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Option<T> {
        read(&folder.join(&name)).map_err(|e| self.missing.push(format!("{name}: {e}"))).ok()
    }
}

impl Stage {
    fn read(folder: &Path, name: &'static str) -> Option<Self> {
        json(&folder.join(MANIFEST_FILE)).ok().map(|manifest| Self { name, manifest })
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

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    serde_json::from_str(&text(path)?).map_err(|e| format!("damaged: {e}"))
}

/// Reads the measurements of a training.
fn lines<T>(path: &Path, read: fn(&str) -> Vec<T>) -> Result<Vec<T>, String> {
    let lines = read(&text(path)?);
    if lines.is_empty() { Err("no measurements in it".into()) } else { Ok(lines) }
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
