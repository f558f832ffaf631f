//! The fingerprint of a training: a digest of all that decides its course.

use std::fs;
use std::path::{Path, PathBuf};

use sharp_data::TokenBlocks;

use crate::digests::file_digest;
use crate::error::{Error, Result};
use crate::job::Job;

/// Adds up a blake3 digest, each part with its length, so that no bytes move between parts.
pub(crate) struct Fingerprint(blake3::Hasher);

impl Fingerprint {
    /// Begins with what a job says: the original's files, the plan, both sides of the data and the
    /// arithmetic.
    pub(crate) fn of(job: &Job<'_>) -> Result<Self> {
        let mut print = Self(blake3::Hasher::new());
        for path in model_files(job.source.path())? {
            print.add(path.file_name().unwrap_or_default().as_encoded_bytes());
            print.add(file_digest(&path).map_err(Error::io(&path))?.as_bytes());
        }
        print.add(job.plan.to_toml().as_bytes());
        for rows in [job.train, job.validation] {
            print.add_rows(rows);
        }
        print.add(format!("{:?}", job.compute.precision).as_bytes());
        print.add(&(job.compute.sequences_at_once(job.train.seq_len) as u64).to_le_bytes());
        Ok(print)
    }

    fn add_rows(&mut self, rows: &TokenBlocks) {
        self.add(&(rows.seq_len as u64).to_le_bytes());
        self.add(&rows.tokens.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>());
        self.add(&rows.mask.iter().map(|&m| u8::from(m)).collect::<Vec<u8>>());
    }

    /// Adds a part.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Returns the digest in hexadecimal.
    pub(crate) fn finish(self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// Lists the files that a model is read from, in a fixed order: its configuration and its weights.
fn model_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        let weights = file.extension().is_some_and(|extension| extension == "safetensors");
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if file.is_file() && !hidden && (weights || file.ends_with("config.json")) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}
