//! Writing Hugging Face checkpoints piece by piece.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};
use sharp_quant::DType;
use tempfile::NamedTempFile;

use crate::checkpoint::atomic::{Staging, folder_of};
use crate::checkpoint::hf::{INDEX, SINGLE};
use crate::checkpoint::source::{TensorInfo, TensorRef};
use crate::error::{Error, Result};

/// Bytes a shard holds at most unless said otherwise: 5 GB, as transformers does.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Values converted at a time; memory does not grow with the tensor.
const CHUNK: usize = 1 << 16;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteSummary {
    /// Files with weights, in order.
    pub files: Vec<String>,
    /// Their length together, headers included.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of values in them.
    pub parameters: u64,
}

/// Writes a checkpoint folder without ever holding more than a piece of a tensor.
///
/// All tensors are named first, then filled in any order, each from its first value to its last. Everything
/// goes to temporary files in the folder; [`SafetensorsWriter::finish`] puts them in place together. Dropped
/// before that, or killed, the folder keeps what it had.
#[derive(Debug)]
pub struct SafetensorsWriter {
    staging: Staging,
    shards: Vec<NamedTempFile>,
    slots: BTreeMap<String, Slot>,
    bytes: u64,
    parameters: u64,
    /// Converted values on their way to the file.
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Slot {
    shard: usize,
    dtype: DType,
    elements: usize,
    /// Values written so far.
    done: usize,
    /// Position of the first value in the shard's file.
    start: u64,
}

impl SafetensorsWriter {
    /// Begins a checkpoint of these tensors (F32, F16 or BF16) in `folder`, which is made if missing. A shard
    /// takes tensors in the order given until the next would bring it over `max_shard_bytes`.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a name given twice or a type safetensors has not, [`Error::Io`].
    pub fn create(folder: impl AsRef<Path>, tensors: &[TensorInfo], max_shard_bytes: u64) -> Result<Self> {
        let staging = Staging::new(folder.as_ref())?;
        let mut groups: Vec<Vec<&TensorInfo>> = vec![Vec::new()];
        let mut used = 0u64;
        for tensor in tensors {
            if !matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16) {
                let what = format!("safetensors files do not hold {}", tensor.dtype.name());
                return Err(Error::tensor(staging.folder(), &tensor.name, what));
            }
            let size = tensor.dtype.nbytes(tensor.elements()?)? as u64;
            if used > 0 && used + size > max_shard_bytes {
                groups.push(Vec::new());
                used = 0;
            }
            used += size;
            if let Some(group) = groups.last_mut() {
                group.push(tensor);
            }
        }
        let mut writer = Self {
            staging,
            shards: Vec::new(),
            slots: BTreeMap::new(),
            bytes: 0,
            parameters: 0,
            buffer: Vec::new(),
        };
        for group in groups {
            writer.begin_shard(group)?;
        }
        Ok(writer)
    }

    /// Writes a single file of these tensors, without the rest of a checkpoint, whose values `fill` appends.
    /// The file appears whole or not at all.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::create`]; what `fill` returns; [`Error::Tensor`] for a tensor with values
    /// missing.
    pub fn write_file<E: From<Error>>(
        path: &Path,
        tensors: &[TensorInfo],
        fill: impl FnOnce(&mut Self) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut writer = Self::create(folder_of(path)?, tensors, u64::MAX)?;
        fill(&mut writer)?;
        writer.check_complete()?;
        for file in std::mem::take(&mut writer.shards) {
            writer.staging.add(file, name.clone())?;
        }
        Ok(writer.staging.commit(&[])?)
    }

    fn begin_shard(&mut self, mut group: Vec<&TensorInfo>) -> Result<()> {
        // Wide types first, so that every tensor is aligned to its own values whatever lies before it.
        group.sort_by_key(|t| std::cmp::Reverse(t.dtype.block_bytes()));
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut offset = 0u64;
        let mut starts = Vec::new();
        for tensor in &group {
            let elements = tensor.elements()?;
            let size = tensor.dtype.nbytes(elements)? as u64;
            let entry = json!({
                "dtype": tensor.dtype.name(),
                "shape": tensor.shape,
                "data_offsets": [offset, offset + size],
            });
            if header.insert(tensor.name.clone(), entry).is_some() || self.slots.contains_key(&tensor.name) {
                return Err(Error::tensor(self.staging.folder(), &tensor.name, "named twice"));
            }
            starts.push((offset, elements));
            offset += size;
            self.parameters += elements as u64;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let data = 8 + text.len() as u64;
        let mut file = self.staging.begin()?;
        let folder = self.staging.folder();
        file.write_all(&(text.len() as u64).to_le_bytes()).map_err(Error::io(folder))?;
        file.write_all(&text).map_err(Error::io(folder))?;
        self.bytes += data + offset;
        let shard = self.shards.len();
        for (tensor, (start, elements)) in group.into_iter().zip(starts) {
            let slot = Slot { shard, dtype: tensor.dtype, elements, done: 0, start: data + start };
            self.slots.insert(tensor.name.clone(), slot);
        }
        self.shards.push(file);
        Ok(())
    }

    /// The folder being written.
    pub fn folder(&self) -> &Path {
        self.staging.folder()
    }

    /// Writes the next values of a tensor, converting them to the type it was declared with (round to nearest
    /// even).
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN, an infinity, or a value too large for the type; [`Error::Tensor`] for a
    /// tensor not declared or more values than it has; [`Error::Io`].
    pub fn append_f32(&mut self, name: &str, values: &[f32]) -> Result<()> {
        for chunk in values.chunks(CHUNK) {
            let slot = self.slot(name, chunk.len())?;
            let (dtype, done) = (slot.dtype, slot.done);
            let mut bytes = std::mem::take(&mut self.buffer);
            bytes.clear();
            let bad = match dtype {
                DType::F16 => convert(chunk, &mut bytes, |v| f16::from_f32(v).to_le_bytes(), f16_holds),
                DType::BF16 => convert(chunk, &mut bytes, |v| bf16::from_f32(v).to_le_bytes(), bf16_holds),
                _ => convert(chunk, &mut bytes, f32::to_le_bytes, f32::is_finite),
            };
            if let Some((index, value)) = bad {
                let (path, tensor) = (self.folder().to_path_buf(), name.to_owned());
                return Err(Error::NotFinite { path, tensor, index: done + index, value });
            }
            let written = self.write(name, chunk.len(), &bytes);
            self.buffer = bytes;
            written?;
        }
        Ok(())
    }

    /// Writes the whole of a tensor from another checkpoint: byte for byte where the types agree, converted
    /// piece by piece where not. It is declared under `name`, which need not be its name there.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::append_f32`]; NaN and infinities are refused in either case.
    pub fn copy(&mut self, name: &str, tensor: &TensorRef) -> Result<()> {
        let total = tensor.elements();
        let dtype = self.slot(name, total)?.dtype;
        let step = CHUNK.next_multiple_of(tensor.dtype().block_len());
        let mut values = vec![0.0f32; total.min(step)];
        let mut start = 0;
        while start < total {
            let len = (total - start).min(step);
            let part = &mut values[..len];
            tensor.read_f32(start, part)?;
            if tensor.dtype() == dtype {
                if let Some(i) = part.iter().position(|v| !v.is_finite()) {
                    let (path, tensor) = (self.folder().to_path_buf(), name.to_owned());
                    return Err(Error::NotFinite { path, tensor, index: start + i, value: part[i] });
                }
                let size = dtype.block_bytes();
                let stored = &tensor.bytes[start * size..(start + len) * size];
                self.write(name, len, stored)?;
            } else {
                self.append_f32(name, part)?;
            }
            start += len;
        }
        Ok(())
    }

    /// The slot of a declared tensor that still has room for `count` values.
    fn slot(&self, name: &str, count: usize) -> Result<&Slot> {
        let folder = self.staging.folder();
        let slot = self.slots.get(name).ok_or_else(|| Error::tensor(folder, name, "was not declared"))?;
        if count > slot.elements - slot.done {
            let what = format!("{} values after {} of {}", count, slot.done, slot.elements);
            return Err(Error::tensor(folder, name, what));
        }
        Ok(slot)
    }

    fn write(&mut self, name: &str, count: usize, bytes: &[u8]) -> Result<()> {
        let folder = self.staging.folder().to_path_buf();
        let slot =
            self.slots.get_mut(name).ok_or_else(|| Error::tensor(&folder, name, "was not declared"))?;
        let position = slot.start + (slot.done * slot.dtype.block_bytes()) as u64;
        slot.done += count;
        let file =
            self.shards.get_mut(slot.shard).ok_or_else(|| Error::tensor(&folder, name, "has no shard"))?;
        file.seek(SeekFrom::Start(position)).map_err(Error::io(&folder))?;
        file.write_all(bytes).map_err(Error::io(&folder))
    }

    /// Adds a file of the given content, to appear with the rest.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.staging.add_bytes(name, bytes)
    }

    /// Adds a copy of a file, to appear with the rest.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn copy_file(&mut self, name: &str, from: &Path) -> Result<()> {
        self.staging.add_copy(name, from)
    }

    /// Checks that every tensor is complete and puts all files in place, `config.json` last: a folder without
    /// it is no checkpoint, so one that was interrupted here does not open. Weights of an earlier checkpoint
    /// in the folder are removed.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor with values missing, [`Error::Io`].
    pub fn finish(self, config: &Map<String, Value>) -> Result<WriteSummary> {
        let count = self.shards.len();
        let files = match count {
            1 => vec![SINGLE.to_owned()],
            _ => (0..count).map(|i| format!("model-{:05}-of-{count:05}.safetensors", i + 1)).collect(),
        };
        let old = earlier_weights(self.staging.folder());
        self.finish_as(files, "config.json", config, &old)
    }

    /// [`SafetensorsWriter::finish`] with the names of a PEFT adapter, whose weights are one file.
    pub(crate) fn finish_adapter(self, config: &Map<String, Value>) -> Result<WriteSummary> {
        self.finish_as(vec!["adapter_model.safetensors".to_owned()], "adapter_config.json", config, &[])
    }

    fn check_complete(&self) -> Result<()> {
        match self.slots.iter().find(|(_, slot)| slot.done != slot.elements) {
            None => Ok(()),
            Some((name, slot)) => {
                let what = format!("{} of {} values written", slot.done, slot.elements);
                Err(Error::tensor(self.folder(), name, what))
            }
        }
    }

    fn finish_as(
        mut self,
        files: Vec<String>,
        config_name: &str,
        config: &Map<String, Value>,
        old: &[String],
    ) -> Result<WriteSummary> {
        self.check_complete()?;
        let data_bytes: u64 = self.slots.values().map(|s| (s.elements * s.dtype.block_bytes()) as u64).sum();
        for (file, name) in std::mem::take(&mut self.shards).into_iter().zip(&files) {
            self.staging.add(file, name.clone())?;
        }
        if files.len() > 1 {
            let map: Map<String, Value> =
                self.slots.iter().map(|(name, slot)| (name.clone(), json!(files.get(slot.shard)))).collect();
            let index = json!({"metadata": {"total_size": data_bytes}, "weight_map": map});
            self.staging.add_bytes(INDEX, pretty(&index).as_bytes())?;
        }
        self.staging.add_bytes(config_name, pretty(&Value::Object(config.clone())).as_bytes())?;
        let stale: Vec<&str> = std::iter::once(config_name).chain(old.iter().map(String::as_str)).collect();
        self.staging.commit(&stale)?;
        Ok(WriteSummary { files, bytes: self.bytes, tensors: self.slots.len(), parameters: self.parameters })
    }
}

/// JSON as Hugging Face writes it: indented, with a newline at the end.
pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Weight files in a folder, by the names Hugging Face and this crate give them; other files are the user's.
fn earlier_weights(folder: &Path) -> Vec<String> {
    let is_shard = |name: &str| {
        let middle = name.strip_prefix("model-").and_then(|n| n.strip_suffix(".safetensors"));
        let parts = middle.and_then(|m| m.split_once("-of-"));
        parts.is_some_and(|(a, b)| !a.is_empty() && (a.to_owned() + b).bytes().all(|c| c.is_ascii_digit()))
    };
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name == SINGLE || name == INDEX || is_shard(name))
        .collect()
}

/// Converts values, or names the first that the type cannot hold.
fn convert<const N: usize>(
    values: &[f32],
    out: &mut Vec<u8>,
    to_bytes: impl Fn(f32) -> [u8; N],
    holds: impl Fn(f32) -> bool,
) -> Option<(usize, f32)> {
    if let Some(index) = values.iter().position(|&v| !holds(v)) {
        return Some((index, values.get(index).copied().unwrap_or(f32::NAN)));
    }
    out.extend(values.iter().flat_map(|&v| to_bytes(v)));
    None
}

fn f16_holds(value: f32) -> bool {
    // 65520 and above round to infinity.
    value.abs() < 65520.0
}

fn bf16_holds(value: f32) -> bool {
    value.is_finite() && bf16::from_f32(value).is_finite()
}
