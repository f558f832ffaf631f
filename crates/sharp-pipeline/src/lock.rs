//! The lock that lets one process at a time work in a folder.

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use sharp_schema::run::LOCK_FILE;

use crate::error::{Context as _, Error, Result, bail};

/// How long a folder's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A folder that is this process's own, as long as this lives and the programs that it was passed on to.
#[derive(Debug)]
pub struct Lock {
    /// The file `.lock`, in which the process's number stands.
    file: File,
    /// The folder itself, which nobody can take the lock from by removing a file; `None` where the system
    /// locks no folders.
    folder: Option<File>,
}

impl Lock {
    /// Returns what a program is to have as its standard input, so that it holds the lock as long as it
    /// lives.
    pub(crate) fn to_pass_on(&self) -> &File {
        self.folder.as_ref().unwrap_or(&self.file)
    }
}

/// Takes a folder for this process and the programs it starts. The lock ends with the last of them, so a
/// program that outlived a killed driver is still seen.
///
/// # Errors
/// [`Error::Locked`] where another process has it; [`Error::Invalid`] where `.lock` is no file of its own;
/// [`Error::Io`] where it cannot be made.
pub fn lock(folder: &Path) -> Result<Lock> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join(LOCK_FILE);
    let whole = File::open(folder).ok();
    let whole = match whole.as_ref().map(locked_soon) {
        Some(Taken::Mine) => whole,
        Some(Taken::Others) => return Err(locked(folder, &path)),
        Some(Taken::Nobodys) | None => None,
    };
    loop {
        refuse_links(&path)?;
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.with_context(|| format!("opening {}", path.display()))?;
        if let Taken::Others = locked_soon(&file) {
            return Err(locked(folder, &path));
        }
        // Somebody may have removed it since it was opened, or put a link in its place.
        if !is_at(&file, &path) {
            continue;
        }
        let signed = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()));
        signed.with_context(|| format!("writing {}", path.display()))?;
        return Ok(Lock { file, folder: whole });
    }
}

/// Refuses a lock that is a link, before what it points to is opened, or anything else but a file.
fn refuse_links(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            let what = if found.is_symlink() { "a link" } else { "not a file" };
            bail!("{} is {what}, and a lock has to be a file of its own: remove it", path.display())
        }
        _ => Ok(()),
    }
}

/// Returns the error that another process has the folder.
fn locked(folder: &Path, path: &Path) -> Error {
    let mut owner = String::new();
    if let Ok(file) = File::open(path) {
        file.take(32).read_to_string(&mut owner).ok();
    }
    Error::Locked { folder: folder.to_path_buf(), owner: owner.trim().to_owned() }
}

/// Whose a lock is after it was tried.
enum Taken {
    Mine,
    Others,
    /// The file system has no locks for it.
    Nobodys,
}

/// Takes a lock, or gives up after a little while: the programs of a run that was just killed hold it until
/// the system has taken their memory back.
fn locked_soon(file: &File) -> Taken {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Taken::Mine,
            Err(TryLockError::Error(_)) => return Taken::Nobodys,
            Err(TryLockError::WouldBlock) if begun.elapsed() > PATIENCE => return Taken::Others,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// True where the path leads to this very file, and not by a link.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => same(&open, &there),
        _ => false,
    }
}

#[cfg(unix)]
fn same(open: &Metadata, there: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

/// Elsewhere a file that is open cannot be removed.
#[cfg(not(unix))]
fn same(_: &Metadata, there: &Metadata) -> bool {
    there.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_works_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let first = lock(&run).unwrap();
        let error = lock(&run).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        // As another build would take it.
        drop(first);
        let file = File::options().write(true).open(run.join(".lock")).unwrap();
        file.try_lock().unwrap();
        assert!(matches!(lock(&run), Err(Error::Locked { .. })));
        drop(file);
        lock(&run).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn a_lock_that_is_removed_is_still_held() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        fs::remove_file(folder.path().join(".lock")).unwrap();
        assert!(matches!(lock(folder.path()), Err(Error::Locked { .. })));
        // A program that was started holds it as well.
        let passed_on = first.to_pass_on().try_clone().unwrap();
        drop(first);
        assert!(matches!(lock(folder.path()), Err(Error::Locked { .. })));
        drop(passed_on);
        lock(folder.path()).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn a_lock_that_is_a_link_is_refused_and_its_target_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (target, path) = (folder.path().join("mine"), folder.path().join("run/.lock"));
        fs::create_dir(folder.path().join("run")).unwrap();
        for there in [true, false] {
            if there {
                fs::write(&target, "precious").unwrap();
            }
            std::os::unix::fs::symlink(&target, &path).unwrap();
            let error = lock(&folder.path().join("run")).unwrap_err().to_string();
            assert!(error.contains("is a link") && error.contains("remove it"), "{error}");
            if there {
                assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
                fs::remove_file(&target).unwrap();
            }
            assert!(!target.exists());
            fs::remove_file(&path).unwrap();
        }
        fs::create_dir(&path).unwrap();
        let error = lock(&folder.path().join("run")).unwrap_err().to_string();
        assert!(error.contains("is not a file"), "{error}");
    }
}
