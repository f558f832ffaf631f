//! Digests of the files that a stopped training left, which are compared before a file is used again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sharp_model::write_atomic;

use crate::error::{Error, Result};

/// The file's name.
pub(crate) const FILE: &str = "digests.json";
/// Version of the format, to be raised as well where other things go into a fingerprint.
const VERSION: u32 = 1;

/// Records what was written to a folder, and by which training.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Digests {
    /// Digest of all that decides the training.
    pub(crate) fingerprint: String,
    /// The blake3 digest of each part, by name; most parts are files.
    parts: BTreeMap<String, String>,
}

/// `digests.json`: the record, and a digest of the record itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    fingerprint: String,
    parts: BTreeMap<String, String>,
    digest: String,
}

impl Stored {
    fn new(record: &Digests) -> Self {
        let Digests { fingerprint, parts } = record.clone();
        // Each text with its length, so that no bytes move between them.
        let mut hash = blake3::Hasher::new();
        let texts = [&fingerprint].into_iter().chain(parts.iter().flat_map(|(name, digest)| [name, digest]));
        for text in texts {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        Self { version: VERSION, fingerprint, parts, digest: hash.finalize().to_hex().to_string() }
    }
}

impl Digests {
    /// Makes an empty record.
    pub(crate) fn new(fingerprint: &str) -> Self {
        Self { fingerprint: fingerprint.to_owned(), parts: BTreeMap::new() }
    }

    /// Reads a folder's record, or says why it cannot be used.
    pub(crate) fn read(folder: &Path) -> Result<Result<Self, String>> {
        let path = folder.join(FILE);
        let bytes = match fs::read(&path) {
            Err(e) if is_absence(e.kind()) => return Ok(Err(format!("{FILE} is gone"))),
            result => result.map_err(Error::io(&path))?,
        };
        Ok(match serde_json::from_slice::<Stored>(&bytes) {
            Ok(stored) if stored.version != VERSION => {
                let found = stored.version;
                Err(format!("{FILE} has version {found}, and this program reads version {VERSION}"))
            }
            Ok(stored) => {
                let record = Self { fingerprint: stored.fingerprint, parts: stored.parts };
                match Stored::new(&record).digest == stored.digest {
                    true => Ok(record),
                    false => Err(format!("{FILE} changed after it was written")),
                }
            }
            Err(e) => Err(format!("{FILE} cannot be read: {e}")),
        })
    }

    /// Writes the record into a folder in one step.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(&Stored::new(self))
            .map_err(|e| Error::state(&path, e.to_string()))?;
        Ok(write_atomic(&path, |w| writeln!(w, "{text}"))?)
    }

    /// Records a part that is no file by its digest.
    pub(crate) fn add(&mut self, name: String, digest: String) {
        self.parts.insert(name, digest);
    }

    /// Records a file as it lies in the folder.
    pub(crate) fn add_file(&mut self, folder: &Path, name: &str) -> Result<()> {
        let path = folder.join(name);
        let digest = file_digest(&path).map_err(Error::io(&path))?;
        self.add(name.to_owned(), digest);
        Ok(())
    }

    /// True where the record has a part of this name.
    pub(crate) fn lists(&self, name: &str) -> bool {
        self.parts.contains_key(name)
    }

    /// Removes a part from the record.
    pub(crate) fn forget(&mut self, name: &str) {
        self.parts.remove(name);
    }

    /// Compares a part's digest with the recorded one; returns what is wrong.
    pub(crate) fn compare(&self, name: &str, digest: &str) -> Result<(), String> {
        match self.parts.get(name) {
            None => Err(format!("{FILE} does not list {name}")),
            Some(recorded) if recorded == digest => Ok(()),
            Some(_) => Err(format!("{name} changed after it was written")),
        }
    }

    /// Compares a file of the folder with its record; returns what is wrong with it.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that is there and cannot be read.
    pub(crate) fn compare_file(&self, folder: &Path, name: &str) -> Result<Result<(), String>> {
        let path = folder.join(name);
        match file_digest(&path) {
            Ok(digest) => Ok(self.compare(name, &digest)),
            Err(e) if is_absence(e.kind()) => Ok(Err(format!("{name} is gone"))),
            Err(e) => Err(Error::io(&path)(e)),
        }
    }
}

/// True where there is no file of that name: nothing, or a folder.
fn is_absence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::NotADirectory)
}

/// Hashes a file in pieces, so that memory does not grow with it.
pub(crate) fn file_digest(path: &Path) -> std::io::Result<String> {
    let mut hash = blake3::Hasher::new();
    hash.update_reader(File::open(path)?)?;
    Ok(hash.finalize().to_hex().to_string())
}

/// Removes a file or a folder with all that is in it; it need not be there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_of_a_file_or_of_the_record_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(Digests::read(path).unwrap(), Err("digests.json is gone".to_owned()));
        fs::write(path.join("a"), "contents").unwrap();
        let mut record = Digests::new("print");
        record.add_file(path, "a").unwrap();
        record.write(path).unwrap();
        let read = Digests::read(path).unwrap().unwrap();
        assert_eq!(read, record);
        assert_eq!(read.compare_file(path, "a").unwrap(), Ok(()));
        assert_eq!(read.compare_file(path, "b").unwrap(), Err("b is gone".to_owned()));
        fs::write(path.join("a"), "contentz").unwrap();
        assert_eq!(read.compare_file(path, "a").unwrap(), Err("a changed after it was written".to_owned()));
        remove(&path.join("a")).unwrap();
        fs::create_dir(path.join("a")).unwrap();
        assert_eq!(read.compare_file(path, "a").unwrap(), Err("a is gone".to_owned()));
        remove(&path.join("a")).unwrap();
        remove(&path.join("a")).unwrap();

        let whole = fs::read(path.join(FILE)).unwrap();
        for place in 0..whole.len() {
            let mut spoilt = whole.clone();
            spoilt[place] ^= 1;
            fs::write(path.join(FILE), spoilt).unwrap();
            // Space between the parts says nothing, so it may be another.
            if let Ok(read) = Digests::read(path).unwrap() {
                assert_eq!(read, record, "byte {place}");
            }
        }
        for end in 0..whole.len() - 2 {
            fs::write(path.join(FILE), &whole[..end]).unwrap();
            assert!(Digests::read(path).unwrap().is_err(), "cut after {end}");
        }
    }
}
