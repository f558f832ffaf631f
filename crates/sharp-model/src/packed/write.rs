//! Writing a `model.sharp`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value as Json};
use sharp_progress::Progress;

use super::header::{RawBlob, RawHeader, data_start};
use super::{BLOB_ALIGN, BlobFormat, MAGIC, MAX_HEADER};
use crate::checkpoint::atomic::write_atomic;
use crate::error::{Error, Result};

/// A blob declared to a [`PackedWriter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlobId(usize);

impl BlobId {
    /// The blob's number in the file.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Writes a packed model in two steps: first every blob's shape and every tensor's name are declared, then
/// [`PackedWriter::write`] asks for the blobs' bytes one after another, so that only one is in memory at a
/// time.
#[derive(Debug, Default)]
pub struct PackedWriter {
    config: Map<String, Json>,
    tokenizer: String,
    tokenizer_config: Map<String, Json>,
    recipe: Json,
    blobs: Vec<(BlobFormat, usize, usize, usize)>,
    tensors: BTreeMap<String, usize>,
}

impl PackedWriter {
    /// Begins a file for a model with this `config.json` (with its `sharp_config`, where layers are shared).
    pub fn new(config: Map<String, Json>) -> Self {
        Self { config, ..Self::default() }
    }

    /// Puts the tokenizer in: the content of `tokenizer.json` and of `tokenizer_config.json`.
    pub fn tokenizer(&mut self, json: String, config: Map<String, Json>) -> &mut Self {
        self.tokenizer = json;
        self.tokenizer_config = config;
        self
    }

    /// Notes what the file was made with.
    pub fn recipe(&mut self, recipe: Json) -> &mut Self {
        self.recipe = recipe;
        self
    }

    /// Declares a blob: a matrix `(rows, cols)`, a vector being one row.
    ///
    /// # Errors
    /// [`Error::Quant`] if the shape is empty or its size overflows.
    pub fn blob(&mut self, format: BlobFormat, rows: usize, cols: usize) -> Result<BlobId> {
        let len = format.nbytes(rows, cols)?;
        self.blobs.push((format, rows, cols, len));
        Ok(BlobId(self.blobs.len() - 1))
    }

    /// Names a blob. A blob may have many names.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the name is taken or the blob is another writer's.
    pub fn name(&mut self, name: impl Into<String>, blob: BlobId) -> Result<()> {
        let name = name.into();
        if blob.0 >= self.blobs.len() {
            return Err(Error::tensor("", name, format!("no blob {}", blob.0)));
        }
        if self.tensors.contains_key(&name) {
            return Err(Error::tensor("", name, "named twice"));
        }
        self.tensors.insert(name, blob.0);
        Ok(())
    }

    /// Bytes of all blobs together.
    pub fn blob_bytes(&self) -> u64 {
        self.blobs.iter().map(|b| b.3 as u64).sum()
    }

    /// Writes the file, whole or not at all. `fill` gets each blob once, in the order of declaration, with an
    /// empty buffer to fill with exactly the blob's bytes.
    ///
    /// # Errors
    /// Those of `fill`; [`Error::Malformed`] if it gave a wrong number of bytes or the header grew too large;
    /// [`Error::Io`] from the system, a full disk for one. The old file, if any, then stays.
    pub fn write<E: From<Error>>(
        self,
        path: &Path,
        progress: &dyn Progress,
        mut fill: impl FnMut(BlobId, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let task = progress.task("writing the packed model", self.blob_bytes(), "bytes");
        let mut offset = 0u64;
        let mut blobs = Vec::with_capacity(self.blobs.len());
        for &(format, rows, cols, len) in &self.blobs {
            blobs.push(RawBlob { offset, len: len as u64, format: format.name().to_owned(), rows, cols });
            offset = offset.saturating_add(len as u64).next_multiple_of(BLOB_ALIGN);
        }
        let raw = RawHeader {
            config: self.config,
            tokenizer: self.tokenizer,
            tokenizer_config: self.tokenizer_config,
            recipe: self.recipe,
            blobs,
            tensors: self.tensors,
        };
        let header = serde_json::to_vec(&raw).map_err(Error::json(path))?;
        if header.len() as u64 > MAX_HEADER {
            let what = format!("a header of {} bytes (at most {MAX_HEADER})", header.len());
            return Err(Error::malformed(path, what).into());
        }
        // `write_atomic` speaks io::Error; ours is carried around it.
        let mut failure = None;
        let mut body = |out: &mut dyn Write| -> io::Result<()> {
            let len = header.len() as u64;
            out.write_all(MAGIC)?;
            out.write_all(&len.to_le_bytes())?;
            out.write_all(&header)?;
            if !self.blobs.is_empty() {
                zeros(out, data_start(len) - len - 16)?;
            }
            let mut buffer = Vec::new();
            for (i, &(_, _, _, len)) in self.blobs.iter().enumerate() {
                buffer.clear();
                let mut made = fill(BlobId(i), &mut buffer);
                if made.is_ok() && buffer.len() != len {
                    let what = format!("blob {i} was to have {len} bytes, {} were given", buffer.len());
                    made = Err(Error::malformed(path, what).into());
                }
                if let Err(e) = made {
                    failure = Some(e);
                    return Err(io::Error::other("the blob could not be made"));
                }
                out.write_all(&buffer)?;
                if i + 1 < self.blobs.len() {
                    zeros(out, (len as u64).next_multiple_of(BLOB_ALIGN) - len as u64)?;
                }
                task.advance(len as u64);
            }
            Ok(())
        };
        let written = write_atomic(path, &mut body);
        match failure {
            Some(e) => Err(e),
            None => Ok(written?),
        }
    }
}

fn zeros(out: &mut dyn Write, n: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), n), out).map(|_| ())
}
