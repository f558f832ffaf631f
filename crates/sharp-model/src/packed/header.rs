//! The header of a `model.sharp`: parsing, with every number checked.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value as Json};

use super::{BLOB_ALIGN, Blob, BlobFormat, DATA_ALIGN, MAGIC, MAX_HEADER};
use crate::error::{Error, Result};

/// The header as JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct RawHeader {
    pub(super) config: Map<String, Json>,
    #[serde(default)]
    pub(super) tokenizer: String,
    #[serde(default)]
    pub(super) tokenizer_config: Map<String, Json>,
    #[serde(default)]
    pub(super) recipe: Json,
    pub(super) blobs: Vec<RawBlob>,
    #[serde(deserialize_with = "no_duplicates")]
    pub(super) tensors: BTreeMap<String, usize>,
}

/// A blob as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBlob {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) format: String,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// The header, checked.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) config: Map<String, Json>,
    pub(super) tokenizer: String,
    pub(super) tokenizer_config: Map<String, Json>,
    pub(super) recipe: Json,
    pub(super) blobs: Vec<Blob>,
    pub(super) tensors: BTreeMap<String, usize>,
}

/// Where the data begins, after a header of this length.
pub(super) fn data_start(header_len: u64) -> u64 {
    (16 + header_len).next_multiple_of(DATA_ALIGN)
}

/// Reads the header; also returns where the data begins.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<(Header, usize)> {
    let bad = |what: String| Error::malformed(path, what);
    let Some((magic, rest)) = file.split_first_chunk::<8>() else {
        return Err(bad(format!("{} bytes are too short for a packed model", file.len())));
    };
    if magic != MAGIC {
        if magic.starts_with(b"SHARPKD") {
            return Err(Error::unsupported(path, "a packed model of another version; export it again"));
        }
        return Err(bad("not a packed model: it does not begin with `SHARPKD1`".into()));
    }
    let Some((len, rest)) = rest.split_first_chunk::<8>() else {
        return Err(bad("the file ends before the length of its header".into()));
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER {
        return Err(bad(format!("a header of {len} bytes (at most {MAX_HEADER})")));
    }
    let Some(json) = rest.get(..len as usize) else {
        return Err(bad(format!("the file ends within its header: {len} bytes, {} are there", rest.len())));
    };
    let raw: RawHeader = crate::json::parse(path, json)?;
    let start = data_start(len);
    let blobs = check_blobs(path, raw.blobs, (file.len() as u64).saturating_sub(start))?;
    if let Some((name, blob)) = raw.tensors.iter().find(|(_, b)| **b >= blobs.len()) {
        return Err(Error::tensor(path, name.as_str(), format!("is blob {blob} of {}", blobs.len())));
    }
    let end = blobs.iter().map(|b| start + b.offset + b.len).max().unwrap_or(file.len() as u64);
    if end != file.len() as u64 {
        return Err(bad(format!("{} bytes after the last blob", file.len() as u64 - end)));
    }
    let header = Header {
        config: raw.config,
        tokenizer: raw.tokenizer,
        tokenizer_config: raw.tokenizer_config,
        recipe: raw.recipe,
        blobs,
        tensors: raw.tensors,
    };
    Ok((header, start as usize))
}

/// Checks each blob against its shape and the `available` bytes of data, and that none overlap.
fn check_blobs(path: &Path, raw: Vec<RawBlob>, available: u64) -> Result<Vec<Blob>> {
    let mut blobs = Vec::with_capacity(raw.len());
    for (i, b) in raw.into_iter().enumerate() {
        let bad = |what: String| Error::malformed(path, format!("blob {i}: {what}"));
        let format: BlobFormat = b.format.parse().map_err(|e: Error| bad(e.to_string()))?;
        let need = format.nbytes(b.rows, b.cols).map_err(|e| bad(e.to_string()))?;
        if b.len != need as u64 {
            return Err(bad(format!(
                "{} bytes, a {format} matrix of ({}, {}) has {need}",
                b.len, b.rows, b.cols
            )));
        }
        if !b.offset.is_multiple_of(BLOB_ALIGN) {
            return Err(bad(format!("offset {} is not a multiple of {BLOB_ALIGN}", b.offset)));
        }
        if b.offset.checked_add(b.len).is_none_or(|end| end > available) {
            let (offset, len) = (b.offset, b.len);
            return Err(bad(format!(
                "{len} bytes at {offset} end after the data, which has {available} bytes: is the file cut short?"
            )));
        }
        blobs.push(Blob { offset: b.offset, len: b.len, format, rows: b.rows, cols: b.cols });
    }
    let mut order: Vec<_> = blobs.iter().enumerate().map(|(i, b)| (b.offset, b.offset + b.len, i)).collect();
    order.sort_unstable();
    for pair in order.windows(2) {
        if let [(_, end, first), (begin, _, second)] = pair
            && begin < end
        {
            return Err(Error::malformed(path, format!("blobs {first} and {second} overlap")));
        }
    }
    Ok(blobs)
}

/// A JSON object's last entry silently wins over earlier ones of the same name; here that is an error.
fn no_duplicates<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, usize>, D::Error> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = BTreeMap<String, usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object from tensor names to blob numbers")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((name, blob)) = access.next_entry::<String, usize>()? {
                if map.contains_key(&name) {
                    return Err(serde::de::Error::custom(format!("tensor `{name}` occurs twice")));
                }
                map.insert(name, blob);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Names)
}
