//! Holds float32 activations in memory, or in a temporary file that is deleted with the store.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tch::{Device, Tensor};

use crate::error::{Error, Result};
use crate::tensors::{from_f32, to_vec};

/// `count` pieces of `(rows, cols)` each.
#[derive(Debug)]
pub(crate) enum ActivationStore {
    /// In memory, by piece.
    Memory(Vec<Option<Tensor>>),
    /// In an unnamed file, read and written a piece at a time.
    File { file: File, path: PathBuf, rows: usize, cols: usize, device: Device },
}

impl ActivationStore {
    /// Makes a store in memory for `count` pieces.
    pub(crate) fn memory(count: usize) -> Self {
        Self::Memory((0..count).map(|_| None).collect())
    }

    /// Makes a store in an unnamed temporary file in `folder`, for pieces of `(rows, cols)`.
    pub(crate) fn file(folder: &Path, rows: usize, cols: usize, device: Device) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(Error::io(folder))?;
        Ok(Self::File { file, path: folder.to_path_buf(), rows, cols, device })
    }

    /// Stores piece number `index`.
    pub(crate) fn put(&mut self, index: usize, piece: Tensor) -> Result<()> {
        match self {
            Self::Memory(pieces) => {
                pieces[index] = Some(piece);
                Ok(())
            }
            Self::File { file, path, rows, cols, .. } => {
                let bytes: Vec<u8> = to_vec(&piece)?.iter().flat_map(|v| v.to_le_bytes()).collect();
                let place = (index * *rows * *cols * 4) as u64;
                file.seek(SeekFrom::Start(place)).map_err(Error::io(&path))?;
                file.write_all(&bytes).map_err(Error::io(&path))
            }
        }
    }

    /// Returns piece number `index`, which must have been stored.
    pub(crate) fn get(&mut self, index: usize) -> Result<Tensor> {
        match self {
            Self::Memory(pieces) => {
                Ok(pieces[index].as_ref().expect("a piece is put before it is taken").shallow_clone())
            }
            Self::File { file, path, rows, cols, device } => {
                let mut bytes = vec![0u8; *rows * *cols * 4];
                file.seek(SeekFrom::Start((index * bytes.len()) as u64)).map_err(Error::io(&path))?;
                file.read_exact(&mut bytes).map_err(Error::io(&path))?;
                let values: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
                from_f32(&values, &[*rows, *cols], *device)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::seeded;

    #[test]
    fn files_and_memory_give_back_the_same() {
        let _generator = seeded(1);
        let folder = tempfile::tempdir().unwrap();
        let mut memory = ActivationStore::memory(3);
        let mut file = ActivationStore::file(folder.path(), 2, 5, Device::Cpu).unwrap();
        for i in [2, 0, 1] {
            let piece = Tensor::randn([2, 5], (tch::Kind::Float, Device::Cpu));
            memory.put(i, piece.shallow_clone()).unwrap();
            file.put(i, piece).unwrap();
        }
        for i in 0..3 {
            assert_eq!(to_vec(&memory.get(i).unwrap()).unwrap(), to_vec(&file.get(i).unwrap()).unwrap());
        }
        assert!(file.get(3).is_err(), "beyond the end of the file");
    }
}
