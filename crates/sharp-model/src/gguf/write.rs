//! Writing GGUF files (version 3, little endian).

use std::io::{self, Write};
use std::path::Path;

use super::header::{DEFAULT_ALIGNMENT as ALIGNMENT, TYPES};
use crate::checkpoint::atomic::write_atomic;
use crate::checkpoint::source::TensorInfo;
use crate::error::{Error, Result};

/// A GGUF file in the making: its metadata, then its tensors, in the order they are given.
#[derive(Debug, Default)]
pub struct GgufWriter {
    keys: u64,
    metadata: Vec<u8>,
    tensors: Vec<TensorInfo>,
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

impl GgufWriter {
    /// A file without anything.
    pub fn new() -> Self {
        Self::default()
    }

    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.keys += 1;
        text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        &mut self.metadata
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) -> &mut Vec<u8> {
        let out = self.key(key, 9);
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
        out
    }

    /// Adds an unsigned integer of 32 bits.
    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4).extend(value.to_le_bytes());
    }

    /// Adds a float of 32 bits.
    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6).extend(value.to_le_bytes());
    }

    /// Adds a truth value.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7).push(u8::from(value));
    }

    /// Adds a text.
    pub fn string(&mut self, key: &str, value: &str) {
        text(self.key(key, 8), value);
    }

    /// Adds an array of texts.
    pub fn strings<S: AsRef<str>>(&mut self, key: &str, values: &[S]) {
        let out = self.array(key, 8, values.len());
        values.iter().for_each(|s| text(out, s.as_ref()));
    }

    /// Adds an array of signed integers of 32 bits.
    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        let out = self.array(key, 5, values.len());
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    }

    /// Adds an array of floats of 32 bits.
    pub fn f32s(&mut self, key: &str, values: &[f32]) {
        let out = self.array(key, 6, values.len());
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    }

    /// Declares a tensor, with its row-major shape.
    pub fn tensor(&mut self, info: TensorInfo) {
        self.tensors.push(info);
    }

    /// Writes the file, whole or not at all, and returns its size. `fill` is called for every tensor in the
    /// order of their declaration and writes exactly its bytes, in as many pieces as it likes.
    ///
    /// # Errors
    /// Those of `fill`; [`Error::Unsupported`] for a type that GGUF files do not hold; [`Error::Tensor`] if
    /// it wrote another number of bytes; [`Error::Io`] from the system. The old file, if any, then stays.
    pub fn write(
        self,
        path: &Path,
        mut fill: impl FnMut(&TensorInfo, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<u64> {
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend(self.keys.to_le_bytes());
        header.extend(&self.metadata);
        let mut offset = 0u64;
        let mut sizes = Vec::with_capacity(self.tensors.len());
        for t in &self.tensors {
            text(&mut header, &t.name);
            header.extend((t.shape.len() as u32).to_le_bytes());
            // GGUF names the fastest-running dimension first.
            t.shape.iter().rev().for_each(|&d| header.extend((d as u64).to_le_bytes()));
            let number = TYPES.into_iter().find(|(_, dtype)| *dtype == t.dtype).map(|(number, _)| number);
            let number = number.ok_or_else(|| {
                Error::unsupported(path, format!("tensor `{}` in {} in a GGUF file", t.name, t.dtype.name()))
            })?;
            header.extend(number.to_le_bytes());
            header.extend(offset.to_le_bytes());
            let size = t.dtype.nbytes(t.elements()?)? as u64;
            sizes.push(size);
            offset = offset.saturating_add(size).next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        let total = header.len() as u64 + offset;
        // `write_atomic` speaks io::Error; ours is carried around it.
        let mut failure = None;
        let written = write_atomic(path, |out| {
            out.write_all(&header)?;
            for (tensor, &size) in self.tensors.iter().zip(&sizes) {
                if let Err(error) = one(out, path, tensor, size, &mut fill) {
                    failure = Some(error);
                    return Err(io::Error::other("the tensor could not be made"));
                }
                let padding = size.next_multiple_of(ALIGNMENT) - size;
                out.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
            }
            Ok(())
        });
        match failure {
            Some(error) => Err(error),
            None => written.map(|()| total),
        }
    }
}

fn one(
    out: &mut dyn Write,
    path: &Path,
    tensor: &TensorInfo,
    size: u64,
    fill: &mut impl FnMut(&TensorInfo, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let mut done = 0u64;
    fill(tensor, &mut |bytes| {
        done += bytes.len() as u64;
        out.write_all(bytes).map_err(Error::io(path))
    })?;
    if done != size {
        return Err(Error::tensor(
            path,
            &tensor.name,
            format!("was to have {size} bytes, {done} were given"),
        ));
    }
    Ok(())
}
