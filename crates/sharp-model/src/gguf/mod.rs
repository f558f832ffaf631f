//! GGUF files: reading them, and seeing them as a Hugging Face checkpoint.
//!
//! [`Gguf`] is the file as it lies: its metadata and its tensors under their own names, in their own row
//! order. [`HfView`] is the same file under Hugging Face names, with `config.json` and `tokenizer.json` made
//! from the metadata; it is what [`crate::import`] writes out. [`export_gguf`] goes the other
//! way.
//!
//! A GGUF file is untrusted input. Every count, length and offset is checked against the bytes that are
//! really there before anything is allocated or read, and nothing is read from the tensor data until it is
//! asked for.

mod convert;
mod export;
mod header;
mod value;
mod vocab;
mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::checkpoint::mmap::map_file;
use crate::checkpoint::source::{TensorBytes, TensorInfo, TensorSource};
use crate::error::{Error, Result};

pub use convert::HfView;
pub use export::{GgufOptions, export_gguf};
pub use value::{Array, Value};
pub use vocab::{tokenizer_config_json, tokenizer_json};
pub use write::GgufWriter;

/// An opened GGUF file (version 2 or 3, little endian), memory-mapped.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Arc<Mmap>,
    version: u32,
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<Entry>,
    names: HashMap<String, usize>,
}

/// One tensor of the file: what it is and the bytes it occupies.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) info: TensorInfo,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

impl Gguf {
    /// Opens and checks `path`. Only the header is read.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be mapped; [`Error::Malformed`] for a wrong magic, a count or length
    /// larger than the file, a duplicate key or tensor, a tensor that is misaligned, overlaps another or ends
    /// after the file; [`Error::Unsupported`] for a version, byte order or tensor type this crate does not
    /// read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let map = map_file(path)?;
        let header = header::parse(path, &map)?;
        let keys = header.metadata.iter().enumerate().map(|(i, (k, _))| (k.clone(), i)).collect();
        let names = header.tensors.iter().enumerate().map(|(i, t)| (t.info.name.clone(), i)).collect();
        Ok(Self {
            path: path.to_path_buf(),
            map,
            version: header.version,
            metadata: header.metadata,
            keys,
            tensors: header.tensors,
            names,
        })
    }

    /// The format version (2 or 3).
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata, in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).and_then(|&i| self.metadata.get(i)).map(|(_, v)| v)
    }

    /// `general.architecture`, e.g. `llama`.
    ///
    /// # Errors
    /// [`Error::Missing`] without that key; [`Error::Malformed`] if it is not a string.
    pub fn architecture(&self) -> Result<&str> {
        self.require(self.string("general.architecture")?, "general.architecture")
    }

    /// A string value; `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the value is of another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A non-negative whole number; `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the value is of another type or negative.
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number, not negative", Value::as_u64)
    }

    /// The key of a special token's id: `tokenizer.ggml.eos_token_id` for `eos`.
    pub(crate) fn token_key(name: &str) -> String {
        format!("tokenizer.ggml.{name}_token_id")
    }

    /// The id of a special token, such as `eos`; `None` if there is none.
    ///
    /// # Errors
    /// As [`Gguf::integer`].
    pub(crate) fn token_id(&self, name: &str) -> Result<Option<u64>> {
        // Some converters write -1 as an unsigned number for "none".
        let none = u64::from(u32::MAX);
        Ok(self.integer(&Self::token_key(name))?.filter(|&id| id != none))
    }

    /// A number; `None` if the key is absent. A 32-bit float comes back as the shortest decimal that names
    /// it, so that 1e-5 stored in 32 bits reads 1e-5.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the value is of another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A truth value; `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the value is of another type.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a truth value", Value::as_bool)
    }

    /// An array; `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the value is no array.
    pub fn array(&self, key: &str) -> Result<Option<&Array>> {
        self.typed(key, "an array", Value::as_array)
    }

    /// An array of strings; `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the value is something else.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "an array of strings", |v| v.as_array().and_then(Array::as_strings))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        want: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(v) => Ok(Some(v)),
            None => Err(Error::malformed(
                &self.path,
                format!("`{key}` is {}, expected {want}", value.type_name()),
            )),
        }
    }

    /// Turns an absent key into an error that names it.
    pub(crate) fn require<T>(&self, value: Option<T>, key: &str) -> Result<T> {
        value.ok_or_else(|| Error::missing(&self.path, format!("no metadata key `{key}`")))
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.names.get(name).and_then(|&i| self.tensors.get(i))
    }
}

impl TensorSource for Gguf {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let mut all: Vec<_> = self.tensors.iter().map(|t| t.info.clone()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.entry(name).map(|t| t.info.clone())
    }

    fn bytes(&self, name: &str) -> Result<TensorBytes> {
        let entry = self.entry(name).ok_or_else(|| Error::no_tensor(&self.path, name))?;
        TensorBytes::mapped(self.map.clone(), entry.offset..entry.offset.saturating_add(entry.len))
            .ok_or_else(|| Error::tensor(&self.path, name, "its bytes end after the file"))
    }
}
