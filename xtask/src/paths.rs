//! Where the repository is.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use sharp_pipeline::Workspace;

/// Finds the root of the repository: where `cargo run` says this package is, or where it was compiled.
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

/// Returns the repository as the folder that the pipeline works in.
pub(crate) fn workspace() -> Result<Workspace> {
    Ok(Workspace::new(repository()?)?)
}

/// Formats a path for a person: relative to the repository where it is inside.
pub(crate) fn shown(path: &Path) -> String {
    workspace().map_or_else(|_| path.display().to_string(), |workspace| workspace.shown(path))
}
