//! The file `manifest.json` of a stage: what it was made from, what it made, and what that cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A stage's record of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The stage's folder name.
    pub stage: String,
    /// Version of the stage: raised where its meaning changes.
    pub version: u32,
    /// How far it came.
    pub status: Status,
    /// blake3 of the stage's version, its configuration and the digests of its inputs, in hexadecimal.
    pub fingerprint: String,
    /// The part of the configuration that matters to this stage.
    pub config: BTreeMap<String, serde_json::Value>,
    /// The seed of the run.
    pub seed: u64,
    /// The command lines, with the run's folder shortened.
    pub commands: Vec<Vec<String>>,
    /// What it read.
    pub inputs: Vec<Recorded>,
    /// What it wrote; empty while it runs.
    pub outputs: Vec<Recorded>,
    /// The machine.
    pub host: Host,
    /// Wall time in seconds, of the attempt that ended it.
    pub wall_s: f64,
    /// Largest resident memory of its programs, in bytes, where the system tells (Linux).
    pub peak_memory_bytes: Option<u64>,
}

/// How far a stage came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Started; if no program runs any more, it was stopped.
    Running,
    /// All outputs are there.
    Done,
}

/// A file as it was when it was read or written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Path: relative to the run's folder for files inside it.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of change, in nanoseconds since 1970; saves hashing a large file again.
    pub modified_ns: u64,
    /// Digest of the contents; the key is older than the second kind of digest.
    #[serde(rename = "blake3")]
    pub digest: Digest,
}

/// The digest of a file, in hexadecimal. In a manifest SHA-256 has the prefix `sha256:`, blake3 has none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Digest {
    /// blake3: every file that a run reads or writes.
    Blake3(String),
    /// SHA-256: a file that is pinned by its published hash.
    Sha256(String),
}

impl From<String> for Digest {
    fn from(text: String) -> Self {
        match text.strip_prefix("sha256:") {
            Some(hex) => Self::Sha256(hex.to_owned()),
            None => Self::Blake3(text),
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blake3(hex) => f.write_str(hex),
            Self::Sha256(hex) => write!(f, "sha256:{hex}"),
        }
    }
}

/// The machine a stage ran on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Operating system and architecture.
    pub system: String,
    /// Name of the processor.
    pub cpu: String,
    /// Threads that the process may use.
    pub threads: usize,
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}, {} threads", self.cpu, self.system, self.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_keeps_its_kind_and_its_text() {
        for (text, digest) in [
            ("\"0123ab\"", Digest::Blake3("0123ab".into())),
            ("\"sha256:0123ab\"", Digest::Sha256("0123ab".into())),
        ] {
            assert_eq!(serde_json::from_str::<Digest>(text).unwrap(), digest);
            assert_eq!(serde_json::to_string(&digest).unwrap(), text);
        }
        assert_ne!(Digest::Blake3("ab".into()), Digest::Sha256("ab".into()));
    }
}
