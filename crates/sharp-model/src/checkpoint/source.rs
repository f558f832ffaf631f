//! Tensors by name, wherever they are stored.

use std::fmt;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use sharp_quant::DType;

use crate::error::{Error, Result};

/// Name, type and shape of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Hugging Face name, `model.layers.5.mlp.gate_proj.weight`.
    pub name: String,
    /// How the values are stored.
    pub dtype: DType,
    /// Row-major shape; a linear layer's weight is `(out, in)`.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of values: the product of the shape.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the product overflows.
    pub fn elements(&self) -> Result<usize> {
        elements(&self.shape).ok_or_else(|| {
            Error::malformed("", format!("tensor `{}`: shape {:?} overflows", self.name, self.shape))
        })
    }
}

/// Product of a shape, `None` where it overflows.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

#[derive(Clone)]
enum Storage {
    Mapped(Arc<Mmap>),
    Owned(Arc<Vec<u8>>),
}

/// The bytes of one tensor: a range of a mapped file or of memory, shared by every clone.
///
/// Two tensors share storage exactly when their pointers are equal; nothing is copied by cloning.
/// Little-endian, of any alignment.
#[derive(Clone)]
pub struct TensorBytes {
    storage: Storage,
    range: Range<usize>,
}

impl TensorBytes {
    /// A range of a mapped file; `None` if the range does not lie inside it.
    pub fn mapped(map: Arc<Mmap>, range: Range<usize>) -> Option<Self> {
        map.get(range.clone())?;
        Some(Self { storage: Storage::Mapped(map), range })
    }

    /// Bytes in memory.
    pub fn owned(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { storage: Storage::Owned(Arc::new(bytes)), range }
    }

    /// Part of these bytes, sharing the storage; `None` if the range does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        Some(Self { storage: self.storage.clone(), range: start + range.start..start + range.end })
    }

    /// Whether the bytes lie in a mapped file (and so count as page cache, not as this process's own memory).
    pub fn is_mapped(&self) -> bool {
        matches!(self.storage, Storage::Mapped(_))
    }
}

impl Deref for TensorBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.storage {
            Storage::Mapped(map) => map,
            Storage::Owned(bytes) => bytes,
        };
        // The constructors checked the range.
        &all[self.range.clone()]
    }
}

impl AsRef<[u8]> for TensorBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for TensorBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorBytes").field("len", &self.len()).field("mapped", &self.is_mapped()).finish()
    }
}

/// A tensor with its bytes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TensorRef {
    /// Name, type and shape. For a shared MLP weight the name is the reference layer's, under which it is
    /// stored.
    pub info: TensorInfo,
    /// The values, [`DType::nbytes`] of [`TensorInfo::elements`] long.
    pub bytes: TensorBytes,
}

impl TensorRef {
    /// Joins description and bytes, checking that the lengths agree.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming `path` if they do not.
    pub fn new(path: &Path, info: TensorInfo, bytes: TensorBytes) -> Result<Self> {
        let expected = info.dtype.nbytes(info.elements()?)?;
        if expected != bytes.len() {
            return Err(Error::tensor(
                path,
                &info.name,
                format!(
                    "{} of shape {:?} takes {expected} bytes, found {}",
                    info.dtype.name(),
                    info.shape,
                    bytes.len()
                ),
            ));
        }
        Ok(Self { info, bytes })
    }

    /// A float32 tensor in memory.
    ///
    /// # Errors
    /// [`Error::Tensor`] if `values` is not as long as the shape says.
    pub fn from_f32(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Result<Self> {
        let info = TensorInfo { name: name.into(), dtype: DType::F32, shape: shape.to_vec() };
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(Path::new("(memory)"), info, TensorBytes::owned(bytes))
    }

    /// Name under which the tensor is stored.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Row-major shape.
    pub fn shape(&self) -> &[usize] {
        &self.info.shape
    }

    /// How the values are stored.
    pub fn dtype(&self) -> DType {
        self.info.dtype
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        // Checked on construction.
        elements(&self.info.shape).unwrap_or(0)
    }

    /// All values as float32, row-major.
    ///
    /// # Errors
    /// [`Error::Quant`] if the stored bytes cannot be converted.
    pub fn f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.elements()];
        self.read_f32(0, &mut out)?;
        Ok(out)
    }

    /// Values `start .. start + out.len()` (flat, row-major) as float32; for walking a large tensor in
    /// pieces.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the range does not lie inside the tensor or does not start and end on block
    /// boundaries of its type (1 value for the float types).
    pub fn read_f32(&self, start: usize, out: &mut [f32]) -> Result<()> {
        let dtype = self.info.dtype;
        let (block, bytes) = (dtype.block_len(), dtype.block_bytes());
        let inside = start.checked_add(out.len()).is_some_and(|end| end <= self.elements());
        if !inside || !start.is_multiple_of(block) || !out.len().is_multiple_of(block) {
            return Err(Error::tensor(
                "",
                self.name(),
                format!("values {start}..{start}+{} of {} ({})", out.len(), self.elements(), dtype.name()),
            ));
        }
        let from = start / block * bytes;
        // As long as the shape says: checked by the constructors.
        let stored = &self.bytes[from..from + out.len() / block * bytes];
        sharp_quant::dequantize(dtype, stored, out)?;
        Ok(())
    }

    /// The first NaN or infinity: its flat index and value.
    ///
    /// # Errors
    /// [`Error::Quant`] if the stored bytes cannot be converted.
    pub fn first_not_finite(&self) -> Result<Option<(usize, f32)>> {
        let n = self.elements();
        let mut chunk = vec![0.0; n.min(1 << 16)];
        let mut start = 0;
        while start < n {
            let len = (n - start).min(1 << 16);
            let Some(part) = chunk.get_mut(..len) else { break };
            self.read_f32(start, part)?;
            if let Some(i) = part.iter().position(|v| !v.is_finite()) {
                return Ok(Some((start + i, part.get(i).copied().unwrap_or(f32::NAN))));
            }
            start += len;
        }
        Ok(None)
    }

    /// Refuses NaN and infinities.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first of them.
    pub fn require_finite(&self, path: &Path) -> Result<()> {
        match self.first_not_finite()? {
            None => Ok(()),
            Some((index, value)) => Err(Error::NotFinite {
                path: path.to_path_buf(),
                tensor: self.name().to_owned(),
                index,
                value,
            }),
        }
    }
}

/// A checkpoint: tensors by their Hugging Face names.
///
/// Implementations validate their file's structure when they are opened, and touch a tensor's bytes only when
/// asked.
pub trait TensorSource: Send + Sync {
    /// The file or folder, for messages.
    fn path(&self) -> &Path;

    /// All tensors of a type this project computes with, sorted by name.
    fn tensors(&self) -> Vec<TensorInfo>;

    /// The names of all tensors, those of other types too.
    fn names(&self) -> Vec<String> {
        self.tensors().into_iter().map(|info| info.name).collect()
    }

    /// One tensor's description, `None` if there is no such tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// One tensor's bytes, without copying them.
    ///
    /// # Errors
    /// [`Error::NoTensor`] if there is none of this name, [`Error::Tensor`] if its type cannot be used.
    fn bytes(&self, name: &str) -> Result<TensorBytes>;

    /// One tensor, described and with its bytes.
    ///
    /// # Errors
    /// As [`TensorSource::bytes`].
    fn tensor(&self, name: &str) -> Result<TensorRef> {
        let bytes = self.bytes(name)?;
        let info = self.info(name).ok_or_else(|| Error::no_tensor(self.path(), name))?;
        TensorRef::new(self.path(), info, bytes)
    }

    /// One tensor's values as float32, row-major.
    ///
    /// # Errors
    /// As [`TensorSource::bytes`], and [`Error::Quant`] if the stored bytes cannot be converted.
    fn f32(&self, name: &str) -> Result<Vec<f32>> {
        self.tensor(name)?.f32()
    }
}
