//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sharp_schema::run::UNFINISHED_PREFIX;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Writes a file so that `path` holds either what it held before or everything `write` wrote: into a
/// temporary file beside it, then flushed to the disk, then renamed. Missing parent folders are made.
///
/// # Errors
/// [`Error::Io`] naming `path`, from the system or from `write` (a full disk, for one); the old file is then
/// untouched.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let folder = folder_of(path)?;
    let temp = partial_in(&folder)?;
    let mut buffered = BufWriter::with_capacity(1 << 16, temp);
    write(&mut buffered).map_err(Error::io(path))?;
    let temp = buffered.into_inner().map_err(|e| Error::io(path)(e.into_error()))?;
    publish(temp, path)?;
    sync_folder(&folder);
    Ok(())
}

/// Several files that appear together: each is written beside its place, and [`Staging::commit`] renames them
/// in the order they were added. Dropped without a commit, it leaves the folder as it was.
#[derive(Debug)]
pub(crate) struct Staging {
    folder: PathBuf,
    files: Vec<(NamedTempFile, String)>,
}

impl Staging {
    /// Begins; makes the folder, and removes what a killed process left in it.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        for entry in fs::read_dir(folder).map_err(Error::io(folder))?.flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(is_left_over) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { folder: folder.to_path_buf(), files: Vec::new() })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A new temporary file in the folder, to be given to [`Staging::add`] when it is written.
    pub(crate) fn begin(&self) -> Result<NamedTempFile> {
        partial_in(&self.folder)
    }

    /// Takes a written file; it becomes `name` at the commit. It is flushed to the disk here, so that a full
    /// disk shows before anything is replaced.
    pub(crate) fn add(&mut self, file: NamedTempFile, name: impl Into<String>) -> Result<()> {
        let name = name.into();
        file.as_file().sync_all().map_err(Error::io(self.folder.join(&name)))?;
        self.files.push((file, name));
        Ok(())
    }

    /// Adds a small file of the given content.
    pub(crate) fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.begin()?;
        file.write_all(bytes).map_err(Error::io(self.folder.join(name)))?;
        self.add(file, name)
    }

    /// Adds a copy of a file.
    pub(crate) fn add_copy(&mut self, name: &str, from: &Path) -> Result<()> {
        let mut source = File::open(from).map_err(Error::io(from))?;
        let mut file = self.begin()?;
        io::copy(&mut source, &mut file).map_err(Error::io(self.folder.join(name)))?;
        self.add(file, name)
    }

    /// Puts every file in its place. Before the first rename `stale` files are removed, so that a kill in
    /// between leaves a folder that does not open rather than one that mixes old and new.
    pub(crate) fn commit(self, stale: &[&str]) -> Result<()> {
        for name in stale {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(path)(e)),
                _ => {}
            }
        }
        for (file, name) in self.files {
            publish(file, &self.folder.join(name))?;
        }
        sync_folder(&self.folder);
        Ok(())
    }
}

/// The folder of a file to be written, made if missing.
pub(crate) fn folder_of(path: &Path) -> Result<PathBuf> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    Ok(folder)
}

/// A new temporary file in a folder, which is removed unless it is put in its place.
pub(super) fn partial_in(folder: &Path) -> Result<NamedTempFile> {
    let prefix = format!("{UNFINISHED_PREFIX}{}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    // Temporary files are private by default; these become results, which follow the user's umask.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).map_err(Error::io(folder))
}

fn publish(temp: NamedTempFile, path: &Path) -> Result<()> {
    temp.as_file().sync_all().map_err(Error::io(path))?;
    temp.persist(path).map_err(|e| Error::io(path)(e.error))?;
    Ok(())
}

/// Makes renames in a folder last through a power cut, where the system can.
fn sync_folder(folder: &Path) {
    if let Ok(dir) = File::open(folder) {
        let _ = dir.sync_all();
    }
}

/// Whether a file name is a temporary file of a process that no longer runs (or cannot be asked about).
fn is_left_over(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(UNFINISHED_PREFIX) else { return false };
    let Some(pid) = rest.split('-').next().and_then(|p| p.parse::<u32>().ok()) else { return false };
    if pid == std::process::id() {
        return false;
    }
    // Without /proc nothing is known of other processes: leave the file.
    Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{pid}")).exists()
}
