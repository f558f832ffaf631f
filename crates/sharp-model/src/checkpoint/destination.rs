//! Whether a result can be written, asked before the work that it takes.

use std::path::Path;

use super::atomic::partial_in;
use crate::error::{Error, Result};

/// Checks that [`crate::write_atomic`] can put a file at `path`, whose folders may have yet to be made.
///
/// # Errors
/// [`Error::Malformed`] where a folder is, and for a place that cannot be written.
pub fn check_file(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::malformed(
            path,
            "is a folder, and a file is to be written here: name a file in it",
        ));
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => writable(folder, path),
        _ => writable(Path::new("."), path),
    }
}

/// Checks that files can be put into the folder `path`, which may have yet to be made.
///
/// # Errors
/// [`Error::Malformed`] where a file is, and for a place that cannot be written.
pub fn check_folder(path: &Path) -> Result<()> {
    if path.exists() && !path.is_dir() {
        return Err(Error::malformed(path, "is a file, and a folder is to be written here: name another"));
    }
    writable(path, path)
}

/// Makes a file in the nearest folder that is there, and removes it.
fn writable(folder: &Path, wanted: &Path) -> Result<()> {
    let there = folder.ancestors().find(|p| !p.as_os_str().is_empty() && p.exists());
    let there = there.unwrap_or(Path::new("."));
    if !there.is_dir() {
        return Err(Error::malformed(wanted, format!("{} is a file, not a folder", there.display())));
    }
    match partial_in(there) {
        Ok(_) => Ok(()),
        // The temporary file's name, which is in the cause, would help nobody.
        Err(Error::Io { cause, .. }) => {
            let what = format!("nothing can be written in {}: {}", there.display(), cause.kind());
            Err(Error::malformed(wanted, what))
        }
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_decides_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        check_file(&at("new/deep/result.json")).unwrap();
        check_file(&at("file")).unwrap();
        check_folder(&at("new/deep")).unwrap();
        check_folder(dir.path()).unwrap();
        for (checked, word) in [
            (check_file(dir.path()), "is a folder"),
            (check_folder(&at("file")), "is a file"),
            (check_file(&at("file/result.json")), "is a file, not a folder"),
            (check_folder(&at("file/deep")), "is a file, not a folder"),
        ] {
            let text = checked.unwrap_err().to_string();
            assert!(text.contains(word) && text.contains(dir.path().to_str().unwrap()), "{text}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
