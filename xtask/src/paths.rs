//! Where things lie: the repository, the cache folder, the runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The root of the repository: where `cargo run` says this package lies, or where it was compiled.
pub(crate) fn repository() -> Result<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .filter(|path| path.ends_with("xtask"))
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    match package.parent() {
        Some(root) if root.join("Cargo.toml").is_file() => Ok(root.to_path_buf()),
        _ => bail!("the repository is no longer at {}; run `cargo xtask` inside a clone", package.display()),
    }
}

/// The folder for downloads that outlive `target/` and are shared by clones: `SHARP_CACHE`, or `sharp` in
/// the user's cache folder.
pub(crate) fn cache() -> Result<PathBuf> {
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

/// A path as a person wants to read it: relative to the repository where it lies inside.
pub(crate) fn shown(path: &Path) -> String {
    let inside = repository().ok().and_then(|root| path.strip_prefix(root).ok().map(Path::to_path_buf));
    inside.unwrap_or_else(|| path.to_path_buf()).display().to_string()
}
