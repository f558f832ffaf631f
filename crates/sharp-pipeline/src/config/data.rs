//! Data as a configuration names it: files, folders and pinned files, with how their rows are read.

use std::path::PathBuf;

use crate::error::{Context as _, Result, refuse};
use crate::provision::cached_path;
use crate::provision::pins::{self, Kind, PinnedFile};
use crate::workspace::Workspace;
use sharp_schema::{Side, suggest};

/// What may follow `synth:` in `model`: models of random weights that `sharp synth` makes.
const PRESETS: &[&str] = &["tiny"];

/// The ways to read the rows of a data file, which follow `#`.
const VIEWS: &[&str] = &["auto", "text", "completion", "messages", "passage"];

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelSource {
    /// `sharp synth --preset`.
    Synth(String),
    /// A file or a folder.
    File(DataFile),
}

impl ModelSource {
    /// Reads the key `model`.
    pub(super) fn parse(workspace: &Workspace, model: &str) -> Result<Self> {
        if model.is_empty() {
            refuse!("model", "missing; a Hugging Face directory, a GGUF file, pinned:NAME or synth:tiny");
        }
        if let Some(preset) = model.strip_prefix("synth:") {
            choice("model", preset, PRESETS)?;
            return Ok(Self::Synth(preset.to_owned()));
        }
        Ok(Self::File(resolve_data(workspace, "model", model)?))
    }
}

/// A data specification with its path resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataFile {
    /// The file or folder.
    pub(crate) path: PathBuf,
    /// What follows `#`: how the rows are to be read.
    pub(crate) view: Option<String>,
    /// The pinned file behind it, if it is one.
    pub(crate) pinned: Option<&'static PinnedFile>,
}

impl DataFile {
    /// As the programs take it: `path#view`.
    pub(crate) fn argument(&self) -> String {
        match &self.view {
            Some(view) => format!("{}#{view}", self.path.display()),
            None => self.path.display().to_string(),
        }
    }
}

/// Resolves `path`, `path#view`, `pinned:NAME` or `pinned:NAME#view`, the value of `key`.
///
/// # Errors
/// Where there is no such file, pinned name or view.
pub(crate) fn resolve_data(workspace: &Workspace, key: &str, typed: &str) -> Result<DataFile> {
    let (place, view) = match typed.rsplit_once('#') {
        Some((place, view)) => (place, Some(view.to_owned())),
        None => (typed, None),
    };
    if let Some(view) = &view {
        let (name, limit) = view.split_once(':').unwrap_or((view, "1"));
        choice(&format!("{key}, the view after #"), name, VIEWS)?;
        if !limit.replace('_', "").parse::<usize>().is_ok_and(|limit| limit > 0) {
            refuse!(key, "{typed}: {limit:?} is not a number of documents");
        }
    }
    if let Some(name) = place.strip_prefix("pinned:") {
        let pinned = pins::find(name).context(key)?;
        if view.is_some() && pinned.kind == Kind::Model {
            refuse!(key, "{typed}: a model has no view");
        }
        return Ok(DataFile { path: cached_path(pinned)?, view, pinned: Some(pinned) });
    }
    let path = workspace.root().join(place);
    if !path.exists() {
        let shown = path.display();
        refuse!(
            key,
            "{place}: no such file or folder (relative paths start at the folder of the project: {shown})"
        );
    }
    Ok(DataFile { path, view, pinned: None })
}

/// A text of `evaluate.texts`: `name=data`, or `name=data@side`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Text<'a> {
    /// Its name in the results.
    pub(crate) name: &'a str,
    /// The data specification.
    pub(crate) data: &'a str,
    /// Side of the split.
    pub(crate) side: Side,
}

impl<'a> Text<'a> {
    /// Takes an entry of `evaluate.texts` apart.
    pub(crate) fn parse(text: &'a str) -> Result<Self> {
        const KEY: &str = "evaluate.texts";
        let Some((name, data)) = text.split_once('=') else {
            refuse!(
                KEY,
                "{text:?} should be name=data, for example \"boolq=pinned:boolq-train#passage@held_out\""
            )
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            refuse!(KEY, "{name:?} is not a name (letters, digits, -, _ and .)");
        }
        let (data, side) = data.rsplit_once('@').unwrap_or((data, Side::All.name()));
        match side.parse() {
            Ok(side) => Ok(Self { name, data, side }),
            Err(error) => refuse!(KEY, "{error}"),
        }
    }
}

/// Takes an entry of `evaluate.tasks` apart: its name and where its questions are.
pub(crate) fn task_parts(task: &str) -> (&str, &str) {
    if let Some((name, source)) = task.split_once('=') {
        return (name, source);
    }
    (task.strip_prefix("pinned:").unwrap_or(task), task)
}

/// Insists on one of these values.
fn choice(key: &str, value: &str, allowed: &[&str]) -> Result<()> {
    if !allowed.contains(&value) {
        refuse!(key, "there is no {value:?}{}", suggest::hint(value, allowed));
    }
    Ok(())
}
