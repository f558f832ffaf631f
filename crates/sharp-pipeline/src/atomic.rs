//! Files written in one step.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use crate::error::{Context as _, Result};

/// Writes a small file in one step: a reader sees the old contents or the new ones, never a part.
///
/// # Errors
/// Where the system refuses; the old contents are then still there.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<()> {
    let folder = path.parent().context("the path has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let name = path.file_name().context("the path has no file name")?.to_string_lossy().into_owned();
    let temporary = folder.join(format!(".{name}.partial"));
    let result = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if result.is_err() {
        fs::remove_file(&temporary).ok();
    }
    result.with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_replaces_in_one_step_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/file.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
