//! Names the folders and files of a run, for the programs that write them and those that read them.

/// The folder of a stage inside a run's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageFolder(&'static str);

impl StageFolder {
    /// The folder's name, such as `03-plan`.
    pub const fn name(self) -> &'static str {
        self.0
    }

    /// The path of a file in it, relative to the run's folder, with `/` between the parts.
    pub fn file(self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
}

impl std::fmt::Display for StageFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.0)
    }
}

impl AsRef<std::path::Path> for StageFolder {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

/// The original as a plain Hugging Face directory.
pub const IMPORT: StageFolder = StageFolder("01-import");
/// Similarity of the layers.
pub const ANALYZE: StageFolder = StageFolder("02-analyze");
/// The plan.
pub const PLAN: StageFolder = StageFolder("03-plan");
/// Parameters of each changed layer, fitted alone (SLW).
pub const WARMUP: StageFolder = StageFolder("04-warmup");
/// Parameters of all changed layers, trained together (SFT).
pub const FINETUNE: StageFolder = StageFolder("05-finetune");
/// Fine-tuning without the warm-up, for comparison.
pub const FINETUNE_COLD: StageFolder = StageFolder("05-finetune-cold");
/// Checkpoints for other programs.
pub const EXPORT: StageFolder = StageFolder("06-export");
/// Packed files that the engine runs.
pub const QUANTIZE: StageFolder = StageFolder("07-quantize");
/// Perplexity and accuracy.
pub const EVALUATE: StageFolder = StageFolder("08-evaluate");
/// Speed and memory.
pub const BENCHMARK: StageFolder = StageFolder("09-benchmark");
/// The report's manifest.
pub const REPORT: StageFolder = StageFolder("10-report");

/// All stage folders, in the order in which they are made.
pub const FOLDERS: [StageFolder; 11] =
    [IMPORT, ANALYZE, PLAN, WARMUP, FINETUNE, FINETUNE_COLD, EXPORT, QUANTIZE, EVALUATE, BENCHMARK, REPORT];

/// The beginning of the names of files that are not yet finished, in any folder.
pub const UNFINISHED_PREFIX: &str = ".sharp-partial-";
/// What a stage was made from and what it wrote, in each stage folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The resolved configuration, in the run's folder.
pub const CONFIG_FILE: &str = "config.toml";
/// The report's page, in the run's folder.
pub const REPORT_PAGE: &str = "report.html";
/// The report as Markdown, in the run's folder.
pub const REPORT_MARKDOWN: &str = "report.md";
/// The analysis, in [`ANALYZE`].
pub const SIMILARITY_FILE: &str = "similarity.json";
/// The plan, in [`PLAN`].
pub const PLAN_FILE: &str = "plan.toml";
/// One line a measurement, in [`WARMUP`] and the fine-tuning folders.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// All trained parameters, in the fine-tuning folders.
pub const RECOVERY_FILE: &str = "recovery.safetensors";
/// The folder of the compact checkpoint, in [`EXPORT`].
pub const COMPACT: &str = "compact";
/// The folder of the dense checkpoint, in [`EXPORT`].
pub const DENSE: &str = "dense";
/// The compressed model, in [`QUANTIZE`].
pub const COMPRESSED_MODEL: &str = "model.sharp";
/// The compressed model before its rounding was repaired, in [`QUANTIZE`].
pub const UNREPAIRED_MODEL: &str = "unrepaired.sharp";
/// The original, rounded as the compressed model, in [`QUANTIZE`].
pub const ORIGINAL_MODEL: &str = "original-q4.sharp";
/// What was rounded to what, in [`QUANTIZE`].
pub const QUANT_REPORT: &str = "quant_report.json";
/// What `sharp evaluate` is asked to measure, in [`EVALUATE`].
pub const ROWS_FILE: &str = "rows.toml";
/// The texts that the fine-tuning measures its result on, in [`FINETUNE`].
pub const TEXTS_FILE: &str = "texts.toml";
/// What was measured, in [`EVALUATE`].
pub const RESULTS_FILE: &str = "results.json";
/// Speed and memory, in [`BENCHMARK`].
pub const BENCH_FILE: &str = "bench.json";
/// The file that one process at a time holds, in the run's folder.
pub const LOCK_FILE: &str = ".lock";

/// Files that hold times, memory or paths, and so differ between two runs that compute the same.
pub const VARYING_FILES: [&str; 7] =
    [MANIFEST_FILE, BENCH_FILE, METRICS_FILE, ROWS_FILE, REPORT_PAGE, REPORT_MARKDOWN, LOCK_FILE];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_sort_as_they_are_made() {
        assert!(FOLDERS.is_sorted());
        assert_eq!(PLAN.file(PLAN_FILE), "03-plan/plan.toml");
        assert_eq!(std::path::Path::new("run").join(PLAN), std::path::Path::new("run/03-plan"));
    }
}
