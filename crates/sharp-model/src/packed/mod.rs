//! `model.sharp`: a whole model in one file, laid out as the kernels read it.
//!
//! ```text
//! 8 bytes   magic "SHARPKD1"
//! 8 bytes   length of the header, little endian (at most 64 MiB)
//! header    JSON: config, tokenizer, tokenizer_config, recipe, blobs, tensors
//! padding   zeros up to a multiple of 4096
//! data      blobs, each beginning at a multiple of 64
//! ```
//!
//! A *blob* is a run of bytes with a format and a shape. A *tensor* is a name for a blob, and several names
//! may mean the same one: a layer that uses another layer's MLP names the other's blobs, so a shared matrix
//! is on disk once, in memory once and in the cache once. Loading maps the file and checks the header; no
//! weight is copied.
//!
//! Blob offsets in the header count from the beginning of the data, so that they do not depend on the
//! header's length.

mod header;
mod write;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use memmap2::Mmap;
use serde_json::{Map, Value as Json};
use sharp_quant::{PackedFormat, PackedRef};

use crate::checkpoint::mmap::{map_file, read_file};
use crate::checkpoint::source::TensorBytes;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::tokenizer::Tokenizer;

pub use write::{BlobId, PackedWriter};

/// The first eight bytes of a `model.sharp`.
pub const MAGIC: &[u8; 8] = b"SHARPKD1";
/// The largest header accepted, in bytes.
pub const MAX_HEADER: u64 = 64 << 20;
/// Blobs begin at multiples of this: a cache line, and the widest vector.
pub const BLOB_ALIGN: u64 = 64;
/// The data begins at a multiple of this: a page.
pub const DATA_ALIGN: u64 = 4096;

/// How a blob's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlobFormat {
    /// `f32`: little-endian floats, row-major, no padding (norms, biases, scales).
    F32,
    /// One of the kernels' layouts.
    Packed(PackedFormat),
}

impl BlobFormat {
    /// The name in the header: `f32`, `q4x16`, `q8x16`, `f16x16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Packed(p) => p.name(),
        }
    }

    /// Bytes of a `(rows, cols)` matrix.
    ///
    /// # Errors
    /// [`Error::Quant`] if a side is zero or the size overflows.
    pub fn nbytes(self, rows: usize, cols: usize) -> Result<usize> {
        match self {
            Self::Packed(p) => Ok(p.nbytes(rows, cols)?),
            // The packed formats' check refuses empty matrices; the same rule holds here.
            Self::F32 => rows
                .checked_mul(cols)
                .filter(|&n| n > 0)
                .and_then(|n| n.checked_mul(4))
                .ok_or_else(|| sharp_quant::Error::Overflow { what: "size in bytes", rows, cols }.into()),
        }
    }
}

impl fmt::Display for BlobFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for BlobFormat {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if s == "f32" { Ok(Self::F32) } else { Ok(Self::Packed(s.parse()?)) }
    }
}

/// One entry of the blob table, as checked on opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// First byte, from the beginning of the data.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// How the values are stored.
    pub format: BlobFormat,
    /// Rows of the matrix; a vector is one row.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
}

/// A tensor of a packed file. Cheap to clone; clones and aliases share the mapped bytes.
#[derive(Debug, Clone)]
pub struct PackedTensor {
    /// Which blob this is. Two names with the same number are the same weights.
    pub blob: usize,
    /// How the values are stored.
    pub format: BlobFormat,
    /// Rows of the matrix; a vector is one row.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// The stored bytes, [`BlobFormat::nbytes`] long.
    pub bytes: TensorBytes,
}

impl PackedTensor {
    /// The matrix for the kernels; `None` for an `f32` blob.
    ///
    /// # Errors
    /// [`Error::Quant`] if the bytes are not as long as the shape says (impossible for one from an opened
    /// file).
    pub fn matrix(&self) -> Result<Option<PackedRef<'_>>> {
        match self.format {
            BlobFormat::F32 => Ok(None),
            BlobFormat::Packed(f) => Ok(Some(PackedRef::new(f, self.rows, self.cols, &self.bytes)?)),
        }
    }

    /// All values, `(rows, cols)` row-major, unpacked if need be.
    ///
    /// # Errors
    /// As [`PackedTensor::matrix`].
    pub fn f32(&self) -> Result<Vec<f32>> {
        let Some(matrix) = self.matrix()? else {
            return Ok(self.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect());
        };
        let mut out = vec![0.0; self.rows * self.cols];
        sharp_quant::unpack(matrix, &mut out)?;
        Ok(out)
    }
}

/// An opened `model.sharp`, memory-mapped.
#[derive(Debug)]
pub struct PackedFile {
    path: PathBuf,
    map: Arc<Mmap>,
    data_start: usize,
    header: header::Header,
    model: ModelConfig,
    plan: Option<Plan>,
}

impl PackedFile {
    /// Opens and checks `path`: header, configuration, plan, and that every blob lies inside the file,
    /// aligned, as long as its shape says and apart from the others.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be mapped; [`Error::Malformed`], [`Error::Unsupported`] and [`Error::Json`]
    /// for a file that is not what it should be; the configuration's and the plan's own errors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path, map_file(path)?)
    }

    /// As [`PackedFile::open`], but with the file read into memory on large pages, where the system has them.
    /// It takes a copy and is not shared with other processes; reading it at the memory's full speed is then
    /// faster.
    ///
    /// # Errors
    /// As [`PackedFile::open`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path, read_file(path)?)
    }

    fn parse(path: &Path, map: Arc<Mmap>) -> Result<Self> {
        let (header, data_start) = header::parse(path, &map)?;
        let text = serde_json::to_string(&header.config).map_err(Error::json(path))?;
        let (model, plan) = crate::checkpoint::compact::parse_with_plan(path, &text)?;
        Ok(Self { path: path.to_path_buf(), map, data_start, header, model, plan })
    }

    /// Whether a file begins like a `model.sharp`; unreadable files do not.
    pub fn is_packed(path: &Path) -> bool {
        use std::io::Read;
        let mut magic = [0; 8];
        std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && &magic == MAGIC
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.model
    }

    /// How layers share their MLPs, if they do.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// `config.json` as stored, `sharp_config` included.
    pub fn config_json(&self) -> &Map<String, Json> {
        &self.header.config
    }

    /// What the file was made with (the quantisation recipe), free form.
    pub fn recipe(&self) -> &Json {
        &self.header.recipe
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Missing`] if the file has none, and those of [`Tokenizer::from_parts`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        if self.header.tokenizer.is_empty() {
            return Err(Error::missing(&self.path, "the file holds no tokenizer"));
        }
        let config = self.header.tokenizer_config.clone();
        Tokenizer::from_parts(&self.path, self.header.tokenizer.as_bytes(), config, &self.model.eos_token_ids)
    }

    /// Tensor names in alphabetical order, each with its blob's number.
    pub fn names(&self) -> impl Iterator<Item = (&str, usize)> {
        self.header.tensors.iter().map(|(n, &b)| (n.as_str(), b))
    }

    /// The blob table.
    pub fn blobs(&self) -> &[Blob] {
        &self.header.blobs
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::NoTensor`] if there is none.
    pub fn tensor(&self, name: &str) -> Result<PackedTensor> {
        self.get(name).ok_or_else(|| Error::no_tensor(&self.path, name))
    }

    /// The tensor of this name, `None` if there is none.
    pub fn get(&self, name: &str) -> Option<PackedTensor> {
        let blob = *self.header.tensors.get(name)?;
        let b = self.header.blobs.get(blob)?;
        // Checked on opening: offsets and lengths fit into the mapped file.
        let start = self.data_start + b.offset as usize;
        let bytes = TensorBytes::mapped(self.map.clone(), start..start + b.len as usize)?;
        Some(PackedTensor { blob, format: b.format, rows: b.rows, cols: b.cols, bytes })
    }
}
