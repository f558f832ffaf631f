//! Hugging Face checkpoints: safetensors files, one or many, mapped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use sharp_quant::DType;

use crate::checkpoint::mmap::map_file;
use crate::checkpoint::source::{TensorBytes, TensorInfo, TensorSource};
use crate::error::{Error, Result};
use crate::json;

/// File names of a Hugging Face folder.
pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The largest index, and the largest header of a safetensors file, in bytes: 150,000 tensors have 16 MB.
const MAX_HEADER: u64 = 16 << 20;

/// A folder with `model.safetensors`, or with shards and `model.safetensors.index.json`; or one safetensors
/// file.
///
/// Opening checks every header (sizes, offsets, overlaps); the weights themselves are read page by page when
/// touched.
#[derive(Debug)]
pub struct HfCheckpoint {
    path: PathBuf,
    shards: Vec<SafetensorsFile>,
    /// Name to shard, and to the name there.
    pub(super) place: BTreeMap<String, (usize, String)>,
}

impl HfCheckpoint {
    /// Opens a folder or a file.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no checkpoint, [`Error::Malformed`] for a damaged header or index (cut
    /// short, lengths past the end, overlapping offsets, shard names that leave the folder),
    /// [`Error::NoTensor`] if the index promises what a shard does not hold, [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(Error::missing(path, "no such file or folder"));
        }
        if !path.is_dir() {
            return Ok(Self::single(path, SafetensorsFile::open(path)?));
        }
        let single = path.join(SINGLE);
        if single.exists() {
            return Ok(Self::single(path, SafetensorsFile::open(&single)?));
        }
        let index = path.join(INDEX);
        if index.exists() {
            return Self::sharded(path, &index);
        }
        let hint = if path.join("pytorch_model.bin").exists()
            || path.join("pytorch_model.bin.index.json").exists()
        {
            "; it has a pickled pytorch_model.bin, which this project does not load: save it as safetensors"
        } else {
            ""
        };
        Err(Error::missing(path, format!("neither {SINGLE} nor {INDEX} in the folder{hint}")))
    }

    fn single(path: &Path, file: SafetensorsFile) -> Self {
        let place = file.tensors.keys().map(|name| (name.clone(), (0, name.clone()))).collect();
        Self { path: path.to_path_buf(), shards: vec![file], place }
    }

    fn sharded(folder: &Path, index: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let Index { weight_map } = json::parse(index, read_text(index, MAX_HEADER)?.as_bytes())?;
        if weight_map.is_empty() {
            return Err(Error::malformed(index, "weight_map is empty"));
        }
        let mut shards: Vec<SafetensorsFile> = Vec::new();
        let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
        let mut place = BTreeMap::new();
        for (name, file) in weight_map {
            let number = match numbers.get(&file) {
                Some(&n) => n,
                None => {
                    let plain = Path::new(&file).components().collect::<Vec<_>>();
                    if !matches!(plain.as_slice(), [Component::Normal(_)]) {
                        return Err(Error::malformed(
                            index,
                            format!("shard `{file}` is not a plain file name"),
                        ));
                    }
                    let path = folder.join(&file);
                    if !path.exists() {
                        return Err(Error::missing(path, format!("a shard named in {INDEX}")));
                    }
                    shards.push(SafetensorsFile::open(&path)?);
                    numbers.insert(file, shards.len() - 1);
                    shards.len() - 1
                }
            };
            let shard = shards.get(number).filter(|s| s.tensors.contains_key(&name));
            if shard.is_none() {
                let path = shards.get(number).map_or(index, |s| &s.path);
                return Err(Error::no_tensor(path, name));
            }
            place.insert(name.clone(), (number, name));
        }
        Ok(Self { path: folder.to_path_buf(), shards, place })
    }

    fn find(&self, name: &str) -> Option<(&SafetensorsFile, &Entry)> {
        let (shard, stored) = self.place.get(name)?;
        let shard = self.shards.get(*shard)?;
        Some((shard, shard.tensors.get(stored)?))
    }

    /// The files the tensors lie in.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|s| s.path.as_path())
    }
}

impl TensorSource for HfCheckpoint {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        self.place.keys().filter_map(|name| self.info(name)).collect()
    }

    fn names(&self) -> Vec<String> {
        self.place.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let (_, entry) = self.find(name)?;
        Some(TensorInfo {
            name: name.to_owned(),
            dtype: float_type(entry.dtype)?,
            shape: entry.shape.clone(),
        })
    }

    fn bytes(&self, name: &str) -> Result<TensorBytes> {
        let (shard, entry) = self.find(name).ok_or_else(|| Error::no_tensor(&self.path, name))?;
        if float_type(entry.dtype).is_none() {
            let what = format!("type {:?}; F32, F16 and BF16 can be used", entry.dtype);
            return Err(Error::tensor(&shard.path, name, what));
        }
        TensorBytes::mapped(shard.map.clone(), entry.range.clone())
            .ok_or_else(|| Error::tensor(&shard.path, name, "lies outside the file"))
    }
}

/// One mapped safetensors file with its checked table of contents.
#[derive(Debug)]
struct SafetensorsFile {
    path: PathBuf,
    map: Arc<Mmap>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// In the file.
    range: Range<usize>,
}

impl SafetensorsFile {
    fn open(path: &Path) -> Result<Self> {
        let map = map_file(path)?;
        if let Some(length) = map.first_chunk().map(|length| u64::from_le_bytes(*length))
            && length > MAX_HEADER
        {
            let what =
                format!("its header would have {length} bytes, the limit is {MAX_HEADER}: is it damaged?");
            return Err(Error::malformed(path, what));
        }
        // Checks the header's length, that offsets neither overlap nor leave gaps, that every size is its
        // shape's, and that the data ends where the file does.
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| Error::malformed(path, format!("not a sound safetensors file: {e}")))?;
        let data = header + 8;
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let range = data + info.data_offsets.0..data + info.data_offsets.1;
                (name, Entry { dtype: info.dtype, shape: info.shape.clone(), range })
            })
            .collect();
        Ok(Self { path: path.to_path_buf(), map, tensors })
    }
}

fn float_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Reads a text file of at most `most` bytes; a larger one is refused unread.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::missing(path, "no such file"),
        _ => Error::io(path)(e),
    };
    // A pipe without a writer would be waited for as long as there is none.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Error::malformed(path, "not a regular file"));
    }
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    // The limit holds for what is read, whatever the file system says the length is.
    file.take(most + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > most {
        return Err(Error::malformed(
            path,
            format!("more than {most} bytes, too large for what it should be"),
        ));
    }
    String::from_utf8(bytes).map_err(|e| Error::malformed(path, format!("not UTF-8: {e}")))
}
