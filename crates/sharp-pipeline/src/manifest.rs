//! Reads, writes and compares manifests, a stage's records of what it was made from, what it made and what
//! that cost.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sharp_schema::manifest::{Digest, Host, Manifest, Recorded};
use sharp_schema::run::MANIFEST_FILE;

use crate::atomic::write_atomic;
use crate::error::{Context as _, Result};

/// Files up to this size are always read again to compare their digest; larger ones only where size or time
/// of change differ.
pub(crate) const ALWAYS_HASHED: u64 = 4 << 20;

/// Reads the manifest of a stage's folder; `None` where there is none that can be read.
pub(crate) fn read(folder: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(folder.join(MANIFEST_FILE)).ok()?).ok()
}

/// Writes the manifest of a stage's folder in one step.
pub(crate) fn write(manifest: &Manifest, folder: &Path) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(manifest).context("the manifest as JSON")?;
    text.push(b'\n');
    write_atomic(&folder.join(MANIFEST_FILE), &text)
}

/// Describes this machine, as manifests do.
pub fn this_machine() -> Host {
    Host {
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: sharp_host::processor().unwrap_or_else(|| "unknown".to_owned()),
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

/// Hashes all that decides the outputs of a stage: same fingerprint, same outputs.
pub(crate) fn fingerprint(
    stage: &str,
    version: u32,
    config: &BTreeMap<String, serde_json::Value>,
    inputs: &[Recorded],
) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    // Each part is followed by a byte that cannot be in it, so that parts cannot run into each other.
    let mut part = |text: &str| {
        hash.update(text.as_bytes());
        hash.update(&[0xff]);
    };
    part(stage);
    part(&version.to_string());
    part(&serde_json::to_string(config).context("the configuration as JSON")?);
    for input in inputs {
        part(&input.digest.to_string());
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// Hashes a file's contents.
pub(crate) fn digest(path: &Path) -> Result<Digest> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = blake3::Hasher::new();
    hash.update_reader(file).with_context(|| format!("reading {}", path.display()))?;
    Ok(Digest::Blake3(hash.finalize().into()))
}

/// How closely files that stages have written are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Look {
    /// Large files are read again only where size or time of change differ.
    #[default]
    Quick,
    /// Every file is read again: what changed on the disk under its old time is noticed.
    Whole,
}

/// Records a file; where a quick look suffices, the digest of a large one is taken over from `known` if size
/// and time of change are still the same.
pub(crate) fn record(path: &Path, shown: String, known: &[Recorded], look: Look) -> Result<Recorded> {
    let (bytes, modified_ns) = size_and_time(path)?;
    let same = |old: &&Recorded| old.path == shown && old.bytes == bytes && old.modified_ns == modified_ns;
    let digest = match known.iter().find(same) {
        Some(old) if bytes > ALWAYS_HASHED && look == Look::Quick => old.digest,
        _ => digest(path)?,
    };
    Ok(Recorded { path: shown, bytes, modified_ns, digest })
}

fn size_and_time(path: &Path) -> Result<(u64, u64)> {
    let found = fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified_ns = modified.and_then(|time| u64::try_from(time.as_nanos()).ok()).unwrap_or(0);
    Ok((found.len(), modified_ns))
}

/// How a recorded file compares with the file that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OutputState {
    /// As it was.
    Intact,
    /// Not there any more.
    Missing,
    /// Other contents; the record of what is there now.
    Changed(Recorded),
}

/// Looks at a recorded file again.
pub(crate) fn output_state(recorded: &Recorded, path: &Path, look: Look) -> Result<OutputState> {
    if !path.is_file() {
        return Ok(OutputState::Missing);
    }
    let now = record(path, recorded.path.clone(), std::slice::from_ref(recorded), look)?;
    Ok(if now.digest == recorded.digest { OutputState::Intact } else { OutputState::Changed(now) })
}

/// Lists every file under a folder that a stage wrote, in a fixed order: no manifests, no hidden or
/// half-written files, nothing whose path begins with one of `scratch`.
pub(crate) fn written(folder: &Path, scratch: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(place) = waiting.pop() {
        for entry in fs::read_dir(&place).with_context(|| format!("reading {}", place.display()))? {
            let path = entry.with_context(|| format!("reading {}", place.display()))?.path();
            let inside = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let passing = name.starts_with('.') || name.ends_with(".partial") || name.ends_with(".tmp");
            if passing || inside == MANIFEST_FILE || scratch.iter().any(|prefix| inside.starts_with(prefix)) {
                continue;
            }
            if path.is_dir() { waiting.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(path: &Path) -> Recorded {
        record(path, "file".into(), &[], Look::Quick).unwrap()
    }

    #[test]
    fn a_fingerprint_tells_apart_every_ingredient() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "contents").unwrap();
        let input = recorded(&path);
        let other = Recorded { digest: Digest::Blake3([0; 32]), ..input.clone() };
        let slice = |value: i32| BTreeMap::from([("seed".to_owned(), serde_json::json!(value))]);
        let base = fingerprint("plan", 1, &slice(1), std::slice::from_ref(&input)).unwrap();
        assert_eq!(base, fingerprint("plan", 1, &slice(1), std::slice::from_ref(&input)).unwrap());
        assert_ne!(base, fingerprint("plan", 2, &slice(1), std::slice::from_ref(&input)).unwrap());
        assert_ne!(base, fingerprint("plan", 1, &slice(2), std::slice::from_ref(&input)).unwrap());
        assert_ne!(base, fingerprint("plan", 1, &slice(1), &[other]).unwrap());
        assert_ne!(base, fingerprint("planx", 1, &slice(1), std::slice::from_ref(&input)).unwrap());
    }

    #[test]
    fn a_changed_file_is_noticed_even_with_its_old_size_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "contents").unwrap();
        let before = recorded(&path);
        assert_eq!(output_state(&before, &path, Look::Quick).unwrap(), OutputState::Intact);
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "contentz").unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
        assert!(matches!(output_state(&before, &path, Look::Quick).unwrap(), OutputState::Changed(_)));
        fs::remove_file(&path).unwrap();
        assert_eq!(output_state(&before, &path, Look::Quick).unwrap(), OutputState::Missing);
    }

    #[test]
    fn a_bit_of_a_large_file_that_rots_is_noticed_where_all_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut bytes = vec![0u8; ALWAYS_HASHED as usize + 1];
        fs::write(&path, &bytes).unwrap();
        let before = recorded(&path);
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        bytes[99] ^= 1;
        fs::write(&path, &bytes).unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
        assert_eq!(output_state(&before, &path, Look::Quick).unwrap(), OutputState::Intact);
        assert!(matches!(output_state(&before, &path, Look::Whole).unwrap(), OutputState::Changed(_)));
    }

    #[test]
    fn touching_a_file_does_not_change_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "contents").unwrap();
        let before = recorded(&path);
        File::options().append(true).open(&path).unwrap().set_modified(UNIX_EPOCH).unwrap();
        assert_eq!(output_state(&before, &path, Look::Quick).unwrap(), OutputState::Intact);
    }

    #[test]
    fn half_written_files_and_scratch_are_no_outputs() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b", "a", ".hidden", "x.partial", "manifest.json", "step-1/state.json", "deep/c"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let names: Vec<PathBuf> = written(folder.path(), &["step-"])
            .unwrap()
            .into_iter()
            .map(|path| path.strip_prefix(folder.path()).unwrap().to_path_buf())
            .collect();
        assert_eq!(names, [PathBuf::from("a"), "b".into(), "deep/c".into()]);
    }
}
