//! The report page of a run: what was shared, what it saved, what it cost, how fast it runs.
//!
//! [`write_report`] reads what the stages of a run left in its folder and writes `report.html` (one
//! self-contained page) and `report.md` (the same in Markdown). Stages that have not run are said to be
//! missing; nothing is made up.

mod blocks;
mod charts;
mod collect;
mod html;
mod markdown;
mod metrics;
mod rows;
mod sections;
mod text;

use std::path::{Path, PathBuf};

use anyhow::Result;

/// A piece of text that a model wrote, for the report.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Sample {
    /// Which model: a row's name, `original` or `slw_sft_q4` for example.
    pub(crate) model: String,
    /// What it was given.
    pub(crate) prompt: String,
    /// What it wrote.
    pub(crate) text: String,
    /// How fast, in tokens a second, where measured.
    #[serde(default)]
    pub(crate) tokens_per_second: Option<f64>,
}

/// The files that were written.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Written {
    /// The page.
    pub(crate) html: PathBuf,
    /// Its twin.
    pub(crate) markdown: PathBuf,
    /// Stages whose results were not there.
    pub(crate) missing: Vec<String>,
}

/// Writes the report of the run in folder `run`: to `out` (`report.html` in the run folder where `None`), and
/// its Markdown twin beside it with the ending `.md`. Both replace an older report at once or not at all.
/// `compared` are other runs' folders by name, whose rows are set beside this run's.
///
/// # Errors
/// When the run folder does not exist or the files cannot be written. Files of the run that are missing or
/// damaged are no error: the report says so.
pub(crate) fn write_report(
    run: &Path,
    out: Option<&Path>,
    samples: &[Sample],
    compared: &[(String, PathBuf)],
) -> Result<Written> {
    let mut found = collect::Run::read(run, samples)?;
    found.compared =
        compared.iter().map(|(name, folder)| (name.clone(), collect::Run::read_results(folder))).collect();
    let html = out.map_or_else(|| run.join("report.html"), Path::to_path_buf);
    let markdown = html.with_extension("md");
    let document = sections::document(&found);
    let page = html::page(&document);
    let twin = markdown::page(&document);
    sharp_model::write_atomic(&html, |w| w.write_all(page.as_bytes()))?;
    sharp_model::write_atomic(&markdown, |w| w.write_all(twin.as_bytes()))?;
    Ok(Written { html, markdown, missing: found.missing })
}
