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

/// Identifies contents by a hash of 256 bits.
///
/// As text: 64 hexadecimal digits for blake3, the same after `sha256:` for SHA-256.
///
/// ```
/// use sharp_schema::manifest::Digest;
///
/// let text = format!("sha256:{}", "0f".repeat(32));
/// let digest: Digest = text.parse()?;
/// assert_eq!(digest, Digest::Sha256([0x0f; 32]));
/// assert_eq!(digest.to_string(), text);
/// # Ok::<(), sharp_schema::manifest::NoDigest>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Digest {
    /// Of a file that the pipeline has read.
    Blake3([u8; 32]),
    /// Of a file that is known by the digest its publisher gives.
    Sha256([u8; 32]),
}

/// What stands before the digits of a SHA-256.
const SHA256: &str = "sha256:";

/// A text that is no [`Digest`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no digest: 64 hexadecimal digits, after `sha256:` where it is no blake3")]
pub struct NoDigest(String);

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = match self {
            Self::Blake3(bytes) => bytes,
            Self::Sha256(bytes) => {
                f.write_str(SHA256)?;
                bytes
            }
        };
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl std::str::FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let (kind, digits): (fn([u8; 32]) -> Self, &str) = match text.strip_prefix(SHA256) {
            Some(digits) => (Self::Sha256, digits),
            None => (Self::Blake3, text),
        };
        let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
        let bytes: Option<Vec<u8>> = digits
            .as_bytes()
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(value(*high)? << 4 | value(*low)?),
                _ => None,
            })
            .collect();
        let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(kind).ok_or_else(|| NoDigest(text.to_owned()))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: std::borrow::Cow<'de, str> = Deserialize::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_digits_are_a_digest() {
        let digits = "86c302fbc3dc494062a5f7fc322a0189742aefa59496af51b192afdcf39916fd";
        assert_eq!(digits.parse::<Digest>().unwrap().to_string(), digits);
        for wrong in
            ["", "sha256:", "ab", &digits[1..], &format!("{digits}0"), &digits.replace('8', "x"), "md5:00"]
        {
            let error = wrong.parse::<Digest>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{wrong}` is no digest")), "{error}");
        }
        assert_ne!(digits.parse::<Digest>(), format!("sha256:{digits}").parse());
    }
}
