//! GGUF files byte by byte, so that each test can spoil exactly one of them.

use std::path::PathBuf;

use sharp_model::gguf::Gguf;
use sharp_model::{Error, Result};

/// A file under construction. The header's counts follow what was added unless overridden.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) key_count: Option<u64>,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn string(s: &str) -> Vec<u8> {
    let mut out = (s.len() as u64).to_le_bytes().to_vec();
    out.extend(s.as_bytes());
    out
}

/// A metadata entry: name, type number, and the value's bytes.
pub(crate) fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut out = string(name);
    out.extend(kind.to_le_bytes());
    out.extend(value);
    out
}

/// A metadata entry that is an array of `count` elements of type `kind`.
pub(crate) fn array(name: &str, kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    let mut value = kind.to_le_bytes().to_vec();
    value.extend(count.to_le_bytes());
    value.extend(elements);
    key(name, 9, &value)
}

/// A tensor entry; `shape` as GGUF writes it, fastest dimension first.
pub(crate) fn tensor(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name);
    out.extend((shape.len() as u32).to_le_bytes());
    shape.iter().for_each(|d| out.extend(d.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

impl Raw {
    /// A sound file: one key, two float tensors of 8 values, (2, 4) and (8).
    pub(crate) fn sound() -> Self {
        let mut data = Vec::new();
        (0..16).for_each(|i| data.extend((i as f32).to_le_bytes()));
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            keys: vec![key("general.architecture", 8, &string("llama"))],
            tensors: vec![tensor("first", &[4, 2], 0, 0), tensor("second", &[8], 0, 32)],
            alignment: 32,
            data,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        self.keys.iter().chain(&self.tensors).for_each(|part| out.extend(part));
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }

    pub(crate) fn open(&self) -> Result<Gguf> {
        open(&self.bytes())
    }
}

/// Opens these bytes as a GGUF file.
pub(crate) fn open(bytes: &[u8]) -> Result<Gguf> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

/// The error's message, which must name the file and contain every one of `words`.
pub(crate) fn complaint<T>(result: Result<T>, file: &str, words: &[&str]) -> Error {
    let error = match result {
        Ok(_) => panic!("accepted; expected a complaint with {words:?}"),
        Err(e) => e,
    };
    let text = error.to_string();
    assert!(text.contains(file), "does not name the file: {text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    error
}

/// A temporary folder and a path in it.
pub(crate) fn place(name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    (dir, path)
}
