//! Parsing and checking the header.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use sharp_quant::DType;

use super::Entry;
use super::value::{Array, Element, Value};
use crate::checkpoint::source::{TensorBytes, TensorInfo};
use crate::error::{Error, Result};

/// Far above any real file, far below what could exhaust memory: a hostile header can make us look through at
/// most this many elements of one array.
const MAX_ARRAY: u64 = 1 << 24;
const MAX_KEY_BYTES: u64 = 65_535;
const MAX_TENSOR_NAME_BYTES: u64 = 1_024;
const MAX_DIMENSIONS: u32 = 4;
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's numbers of the types that are read.
pub(super) const TYPES: [(u32, DType); 12] = [
    (0, DType::F32),
    (1, DType::F16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (6, DType::Q5_0),
    (7, DType::Q5_1),
    (8, DType::Q8_0),
    (12, DType::Q4_K),
    (13, DType::Q5_K),
    (14, DType::Q6_K),
    (20, DType::IQ4_NL),
    (30, DType::BF16),
];

pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: Vec<(String, Value)>,
    pub(super) tensors: Vec<Entry>,
}

/// A position in the file that cannot pass its end.
struct Cursor<'a> {
    path: &'a Path,
    map: &'a Arc<Mmap>,
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: u64, what: impl Display) -> Result<&'a [u8]> {
        let rest = &self.data[self.at..];
        let taken = usize::try_from(n).ok().and_then(|n| rest.get(..n)).ok_or_else(|| {
            self.bad(format!("{what} needs {n} bytes at byte {}, the file has {} left", self.at, rest.len()))
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: impl Display) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: impl Display) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: impl Display) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, max: u64, what: impl Display) -> Result<String> {
        self.text(max, what).map(str::to_owned)
    }

    fn text(&mut self, max: u64, what: impl Display) -> Result<&'a str> {
        let len = self.u64(&what)?;
        if len > max {
            return Err(self.bad(format!("{what} is {len} bytes long, the limit is {max}")));
        }
        let bytes = self.take(len, &what)?;
        std::str::from_utf8(bytes).map_err(|e| self.bad(format!("{what} is not UTF-8: {e}")))
    }

    fn left(&self) -> u64 {
        (self.data.len() - self.at) as u64
    }

    fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::malformed(self.path, what)
    }
}

pub(super) fn parse(path: &Path, map: &Arc<Mmap>) -> Result<Header> {
    let mut c = Cursor { path, map, data: map, at: 0 };
    if c.take(4, "the magic")? != b"GGUF" {
        return Err(c.bad("not a GGUF file: it does not begin with the bytes `GGUF`"));
    }
    let version = c.u32("the version")?;
    match version {
        2 | 3 => {}
        v if matches!(v.swap_bytes(), 1..=3) => {
            return Err(Error::unsupported(path, "a big-endian GGUF file"));
        }
        v => return Err(Error::unsupported(path, format!("GGUF version {v} (this reads 2 and 3)"))),
    }
    let tensor_count = c.u64("the number of tensors")?;
    let key_count = c.u64("the number of metadata keys")?;
    // The smallest tensor entry has 8 + 1 + 4 + 8 + 4 + 8 bytes, the smallest key 8 + 1 + 4 + 1.
    if tensor_count > c.left() / 33 {
        return Err(c.bad(format!("{tensor_count} tensors cannot fit in the {} bytes left", c.left())));
    }
    if key_count > c.left() / 14 {
        return Err(c.bad(format!("{key_count} metadata keys cannot fit in the {} bytes left", c.left())));
    }
    let mut metadata = Vec::new();
    let mut seen = HashSet::new();
    for i in 0..key_count {
        let key = c.string(MAX_KEY_BYTES, format_args!("metadata key {i}"))?;
        if key.is_empty() {
            return Err(c.bad(format!("metadata key {i} is empty")));
        }
        if !seen.insert(key.clone()) {
            return Err(c.bad(format!("metadata key `{key}` occurs twice")));
        }
        let kind = c.u32(format_args!("the type of `{key}`"))?;
        let value = value(&mut c, kind, &key)?;
        metadata.push((key, value));
    }
    let alignment = alignment(&c, &metadata)?;
    let split = metadata.iter().find(|(k, _)| k == "split.count").and_then(|(_, v)| v.as_u64()).unwrap_or(1);
    if split > 1 {
        return Err(Error::unsupported(
            path,
            format!("one of {split} parts of a split GGUF file; merge them first (llama-gguf-split --merge)"),
        ));
    }
    let mut tensors = Vec::new();
    seen.clear();
    for i in 0..tensor_count {
        let entry = tensor(&mut c, i)?;
        if !seen.insert(entry.info.name.clone()) {
            return Err(c.bad(format!("tensor `{}` occurs twice", entry.info.name)));
        }
        tensors.push(entry);
    }
    place(&c, alignment, &mut tensors)?;
    Ok(Header { version, metadata, tensors })
}

fn alignment(c: &Cursor, metadata: &[(String, Value)]) -> Result<u64> {
    let Some((_, value)) = metadata.iter().find(|(k, _)| k == "general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value.as_u64() {
        Some(a) if a.is_power_of_two() && a <= 1 << 30 => Ok(a),
        _ => Err(c.bad(format!("`general.alignment` must be a power of two up to 2^30, it is {value:?}"))),
    }
}

fn value(c: &mut Cursor<'_>, kind: u32, key: &str) -> Result<Value> {
    let what = format_args!("the value of `{key}`");
    Ok(match kind {
        0 => Value::Unsigned(u64::from(u8::from_le_bytes(c.array(what)?))),
        1 => Value::Signed(i64::from(i8::from_le_bytes(c.array(what)?))),
        2 => Value::Unsigned(u64::from(u16::from_le_bytes(c.array(what)?))),
        3 => Value::Signed(i64::from(i16::from_le_bytes(c.array(what)?))),
        4 => Value::Unsigned(u64::from(c.u32(what)?)),
        5 => Value::Signed(i64::from(i32::from_le_bytes(c.array(what)?))),
        6 => Value::F32(f32::from_le_bytes(c.array(what)?)),
        7 => Value::Bool(boolean(c, key)?),
        8 => Value::String(c.string(u64::MAX, what)?),
        9 => Value::Array(array(c, key)?),
        10 => Value::Unsigned(c.u64(what)?),
        11 => Value::Signed(i64::from_le_bytes(c.array(what)?)),
        12 => Value::F64(f64::from_le_bytes(c.array(what)?)),
        other => return Err(c.bad(format!("`{key}` has the unknown value type {other}"))),
    })
}

fn boolean(c: &mut Cursor, key: &str) -> Result<bool> {
    match c.array::<1>(key)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(c.bad(format!("`{key}` holds {other} as a truth value"))),
    }
}

/// Checks an array and keeps it as it lies in the file: in memory its elements would take up to nine times as
/// much.
fn array(c: &mut Cursor<'_>, key: &str) -> Result<Array> {
    let kind = c.u32(format_args!("the element type of `{key}`"))?;
    let count = c.u64(format_args!("the length of `{key}`"))?;
    let Some(element) = Element::of(kind) else {
        return Err(match kind {
            9 => c.bad(format!("`{key}` is an array of arrays")),
            other => c.bad(format!("`{key}` has the unknown element type {other}")),
        });
    };
    if count > MAX_ARRAY {
        return Err(c.bad(format!("`{key}` has {count} elements, the limit is {MAX_ARRAY}")));
    }
    if count.saturating_mul(element.size()) > c.left() {
        return Err(c.bad(format!("`{key}` has {count} elements, the file has {} bytes left", c.left())));
    }
    let start = c.at;
    if element == Element::Text {
        for i in 0..count {
            c.text(u64::MAX, format_args!("element {i} of `{key}`"))?;
        }
    } else {
        let bytes = c.take(count * element.size(), key)?;
        if let Some(other) = bytes.iter().find(|&&b| element == Element::Bool && b > 1) {
            return Err(c.bad(format!("`{key}` holds {other} as a truth value")));
        }
    }
    let bytes = TensorBytes::mapped(c.map.clone(), start..c.at).expect("bytes that have just been read");
    Ok(Array::new(element, count as usize, bytes))
}

/// Reads one tensor entry; its offset is still relative to the start of the data.
fn tensor(c: &mut Cursor, index: u64) -> Result<Entry> {
    let name = c.string(MAX_TENSOR_NAME_BYTES, format_args!("the name of tensor {index}"))?;
    if name.is_empty() {
        return Err(c.bad(format!("tensor {index} has an empty name")));
    }
    let bad = |c: &Cursor, what: String| Error::tensor(c.path, name.clone(), what);
    let dims = c.u32(format_args!("the dimensions of `{name}`"))?;
    if dims == 0 || dims > MAX_DIMENSIONS {
        return Err(bad(c, format!("{dims} dimensions (1 to {MAX_DIMENSIONS} are possible)")));
    }
    let mut shape = Vec::new();
    let mut elements = 1usize;
    for _ in 0..dims {
        let raw = c.u64(format_args!("the shape of `{name}`"))?;
        let dim = usize::try_from(raw).ok().filter(|&d| d > 0);
        let product = dim.and_then(|d| elements.checked_mul(d));
        match (dim, product) {
            (Some(d), Some(p)) => {
                shape.push(d);
                elements = p;
            }
            _ => {
                return Err(bad(
                    c,
                    format!("a dimension of {raw} is zero or makes the tensor too large to count"),
                ));
            }
        }
    }
    let kind = c.u32(format_args!("the type of `{name}`"))?;
    let dtype = dtype(kind).map_err(|what| {
        let known = TYPES.map(|(_, dtype)| dtype.name()).join(", ");
        let why = format!("{what}; tensors of these types can be read: {known}");
        Error::unsupported(c.path, format!("tensor `{name}`: {why}"))
    })?;
    // GGUF writes the fastest-running dimension first.
    let row = shape.first().copied().unwrap_or(1);
    if row % dtype.block_len() != 0 {
        let block = dtype.block_len();
        return Err(bad(
            c,
            format!("rows of {row} are not a whole number of {} blocks of {block}", dtype.name()),
        ));
    }
    let len = dtype.nbytes(elements).map_err(|e| bad(c, e.to_string()))?;
    shape.reverse();
    let raw = c.u64(format_args!("the offset of `{name}`"))?;
    let offset =
        usize::try_from(raw).map_err(|_| bad(c, format!("offset {raw} is past the end of the file")))?;
    Ok(Entry { info: TensorInfo { name, dtype, shape }, offset, len })
}

/// Turns relative offsets into absolute ones; every tensor must be aligned, inside the file and on its own.
fn place(c: &Cursor, alignment: u64, tensors: &mut [Entry]) -> Result<()> {
    let start = (c.at as u64).next_multiple_of(alignment);
    let file = c.data.len() as u64;
    let mut spans = Vec::new();
    for t in tensors.iter_mut() {
        let bad = |what: String| Error::tensor(c.path, t.info.name.clone(), what);
        let offset = t.offset as u64;
        if !offset.is_multiple_of(alignment) {
            return Err(bad(format!("offset {offset} is not a multiple of the alignment {alignment}")));
        }
        let begin = start.checked_add(offset);
        let end = begin.and_then(|b| b.checked_add(t.len as u64)).filter(|&e| e <= file);
        let (Some(begin), Some(end)) = (begin, end) else {
            let len = t.len;
            return Err(bad(format!(
                "{len} bytes at offset {offset} of the data (which starts at byte {start}) end after the file, \
                 which has {file} bytes: is it cut short?"
            )));
        };
        t.offset = begin as usize;
        spans.push((begin, end, t.info.name.as_str()));
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        if let [(_, end, first), (begin, _, second)] = pair
            && begin < end
        {
            return Err(Error::tensor(c.path, *second, format!("its bytes overlap those of `{first}`")));
        }
    }
    Ok(())
}

/// ggml's type numbers. Types that exist but are not read are named, so that the message helps.
fn dtype(kind: u32) -> Result<DType, String> {
    if let Some((_, dtype)) = TYPES.into_iter().find(|(number, _)| *number == kind) {
        return Ok(dtype);
    }
    let name = match kind {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return Err(format!("unknown tensor type number {other}")),
    };
    Err(format!("type {name}"))
}
