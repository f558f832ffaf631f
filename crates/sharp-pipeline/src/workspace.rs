//! The folder that a person works in, and the cache of downloads.

use std::path::{Path, PathBuf};

use crate::error::{Context as _, Result, bail};

/// The folder that relative paths of configurations start at, and that holds `runs/`: a clone of the
/// repository, or any folder of a person's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Takes this folder; a relative path starts at the current one.
    ///
    /// # Errors
    /// Where the path is relative and there is no current folder.
    pub fn new(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let root = std::path::absolute(root).with_context(|| format!("the folder {}", root.display()))?;
        Ok(Self { root })
    }

    /// Returns the folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the folder of runs.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// Formats a path for a person: relative to this folder where it is inside.
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// Resolves a file that a person named: as it is where it exists, otherwise inside this folder.
    pub fn find(&self, file: &Path) -> PathBuf {
        if file.is_relative() && !file.exists() { self.root.join(file) } else { file.to_path_buf() }
    }

    /// Lists the TOML files in a folder of the workspace, in order, for messages about one that is not
    /// there.
    pub(crate) fn listed(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.root.join(folder)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "toml"))
            .map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy()))
            .collect();
        names.sort();
        names
    }
}

/// Returns the folder of downloads, which outlive a build and are shared by clones: `SHARP_CACHE`, or `sharp`
/// in the user's cache folder.
///
/// # Errors
/// Where no variable names a place.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = if let Some(path) = set("SHARP_CACHE") {
        path
    } else if let Some(path) = set("XDG_CACHE_HOME") {
        path.join("sharp")
    } else if let Some(home) = set("HOME") {
        home.join(".cache/sharp")
    } else {
        bail!("no place for the cache: set SHARP_CACHE to a folder with 1.5 GB free");
    };
    std::path::absolute(&path).with_context(|| format!("cache folder {}", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The repository.
    pub(crate) fn workspace() -> Workspace {
        Workspace::new(Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()).unwrap()
    }

    #[test]
    fn paths_inside_are_shown_from_the_root() {
        let workspace = Workspace::new("/repository").unwrap();
        assert_eq!(workspace.shown(&workspace.runs().join("tiny")), "runs/tiny");
        assert_eq!(workspace.shown(Path::new("/other/file")), "/other/file");
        assert_eq!(
            workspace.find(Path::new("no such file.toml")),
            Path::new("/repository/no such file.toml")
        );
    }
}
