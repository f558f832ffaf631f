//! The packed layouts that the kernels read, in memory and in files alike.
//!
//! A packed matrix has its rows padded to a multiple of 16 and its columns to a multiple of 32, with zeros.
//! Groups of 16 rows lie one after another; within a group its blocks of 32 columns lie one after another:
//!
//! - `q4x16`, 288 bytes a block: 4 vectors of 64 bytes, then 16 f16 scales. Byte `4 r + i` of vector `v`
//!   holds row `r`: low nibble column `4 v + i`, high nibble column `16 + 4 v + i`, as `q + 8`. Weight =
//!   `scale * q`.
//! - `q8x16`, 544 bytes: 8 vectors of 64 signed bytes, byte `4 r + i` of vector `v` = row `r`, column `4 v +
//!   i`; then 16 f16 scales. Weight = `scale * q`.
//! - `f16x16`, 1024 bytes: for each column its 16 rows as f16.
//!
//! Sizes a weight equal those of Q4_0, Q8_0 and F16. All numbers are little endian.

use crate::{
    blocks::{ScaleRule, quantize_q4_0, quantize_q8_0},
    dtype::{BLOCK, DType},
    error::{Error, Result, check_len},
    f16_bytes::{f16_to_f32, read_f16},
    team::Team,
};
use half::f16;
use std::{fmt, str::FromStr};

/// Rows in a group.
pub const GROUP: usize = 16;

/// A layout for the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PackedFormat {
    /// `q4x16`: Q4_0's numbers, 16 rows interleaved.
    Q4,
    /// `q8x16`: Q8_0's numbers, 16 rows interleaved.
    Q8,
    /// `f16x16`: 16-bit floats, 16 rows interleaved.
    F16,
}

impl PackedFormat {
    /// Every layout.
    pub const ALL: [PackedFormat; 3] = [PackedFormat::Q4, PackedFormat::Q8, PackedFormat::F16];

    /// The name in files: `q4x16`, `q8x16`, `f16x16`.
    pub const fn name(self) -> &'static str {
        match self {
            PackedFormat::Q4 => "q4x16",
            PackedFormat::Q8 => "q8x16",
            PackedFormat::F16 => "f16x16",
        }
    }

    /// Bytes of 16 rows x 32 columns.
    pub const fn block_bytes(self) -> usize {
        match self {
            PackedFormat::Q4 => 288,
            PackedFormat::Q8 => 544,
            PackedFormat::F16 => 1024,
        }
    }

    /// Bytes of a matrix of `rows` x `cols`, padding included.
    ///
    /// # Errors
    /// [`Error::Empty`] and [`Error::Overflow`].
    pub fn nbytes(self, rows: usize, cols: usize) -> Result<usize> {
        if rows == 0 || cols == 0 {
            return Err(Error::Empty { rows, cols });
        }
        rows.div_ceil(GROUP)
            .checked_mul(cols.div_ceil(BLOCK))
            .and_then(|n| n.checked_mul(self.block_bytes()))
            .ok_or(Error::Overflow { what: "size in bytes", rows, cols })
    }
}

impl fmt::Display for PackedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PackedFormat {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        PackedFormat::ALL.into_iter().find(|f| f.name() == s).ok_or_else(|| Error::Unknown {
            what: "packed format",
            name: s.to_owned(),
            known: PackedFormat::ALL.map(PackedFormat::name).join(", "),
        })
    }
}

/// A view of a packed matrix (rows, cols), often in a mapped file.
///
/// Kernels take data of any alignment; files align matrices to 64 bytes because it is faster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PackedRef<'a> {
    format: PackedFormat,
    rows: usize,
    cols: usize,
    data: &'a [u8],
}

impl<'a> PackedRef<'a> {
    /// Takes `data` as a matrix of `rows` x `cols` in `format`.
    ///
    /// # Errors
    /// [`Error::Length`] if `data` is not exactly [`PackedFormat::nbytes`] long, and that function's errors.
    pub fn new(format: PackedFormat, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self> {
        check_len("packed matrix in bytes", format.nbytes(rows, cols)?, data.len())?;
        Ok(PackedRef { format, rows, cols, data })
    }

    /// The layout.
    pub fn format(&self) -> PackedFormat {
        self.format
    }

    /// Rows, without padding: the length of an output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, without padding: the length of an input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Groups of 16 rows.
    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    /// Blocks of 32 columns.
    pub(crate) fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    /// Bytes of one group.
    pub(crate) fn group_bytes(&self) -> usize {
        self.blocks() * self.format.block_bytes()
    }

    /// The bytes of groups `from..to`; both must exist.
    pub(crate) fn group_data(&self, from: usize, to: usize) -> &'a [u8] {
        let size = self.group_bytes();
        &self.data[from * size..to * size]
    }
}

impl fmt::Debug for PackedRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedRef({} {} x {}, {} bytes)", self.format, self.rows, self.cols, self.data.len())
    }
}

/// Quantises and packs the row-major matrix `x` (rows, cols) into `out`.
///
/// Each run of 32 columns of a row is quantised exactly as `Q4_0` and `Q8_0` do, zeros standing in for
/// missing columns. A large matrix can be packed in pieces: any run of rows that starts at a multiple of 16
/// is a matrix of its own.
///
/// # Errors
/// [`Error::Length`] for `x` or `out`, [`Error::NotFinite`], and those of [`PackedFormat::nbytes`].
pub fn pack_f32_into(
    format: PackedFormat,
    rule: ScaleRule,
    rows: usize,
    cols: usize,
    x: &[f32],
    out: &mut [u8],
) -> Result<()> {
    check_pack(format, rows, cols, x, out)?;
    let group_bytes = cols.div_ceil(BLOCK) * format.block_bytes();
    for (g, (x, out)) in x.chunks(GROUP * cols).zip(out.chunks_exact_mut(group_bytes)).enumerate() {
        pack_group(format, rule, cols, x, None, out).map_err(|e| shifted(e, g * GROUP * cols))?;
    }
    Ok(())
}

/// [`pack_f32_into`] on all threads of a team, with an importance for every column (see
/// [`quantize_weighted`](crate::quantize_weighted)) if there is one.
///
/// # Errors
/// Those of [`pack_f32_into`]; [`Error::Length`] if there is not one importance for every column.
pub fn pack_f32_parallel(
    team: &Team,
    format: PackedFormat,
    rule: ScaleRule,
    (rows, cols): (usize, usize),
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    check_pack(format, rows, cols, x, out)?;
    if let Some(w) = importance {
        check_len("importance in columns", cols, w.len())?;
    }
    let group_bytes = cols.div_ceil(BLOCK) * format.block_bytes();
    let failure = std::sync::Mutex::new(None);
    team.chunks_mut(out, group_bytes, &|g, out| {
        let from = g * GROUP * cols;
        let x = &x[from..x.len().min(from + GROUP * cols)];
        if let Err(e) = pack_group(format, rule, cols, x, importance, out) {
            let mut failure = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // The first failure by position, so that the message does not depend on the threads.
            if failure.as_ref().is_none_or(|(first, _)| *first > g) {
                *failure = Some((g, shifted(e, from)));
            }
        }
    });
    match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        None => Ok(()),
        Some((_, e)) => Err(e),
    }
}

/// Quantises and packs the row-major matrix `x` (rows, cols) into a new buffer; see [`pack_f32_into`].
///
/// # Errors
/// Those of [`pack_f32_into`].
pub fn pack_f32(
    format: PackedFormat,
    rule: ScaleRule,
    rows: usize,
    cols: usize,
    x: &[f32],
) -> Result<Vec<u8>> {
    check_len("matrix in elements", elements(rows, cols)?, x.len())?;
    let mut out = vec![0; format.nbytes(rows, cols)?];
    pack_f32_into(format, rule, rows, cols, x, &mut out)?;
    Ok(out)
}

/// Rearranges `Q4_0` blocks of a row-major matrix (rows, cols) into `q4x16`; no number changes.
///
/// # Errors
/// [`Error::NotWholeBlocks`] if `cols` is not a multiple of 32, [`Error::Length`], and those of
/// [`PackedFormat::nbytes`].
pub fn pack_q4_0(rows: usize, cols: usize, blocks: &[u8]) -> Result<Vec<u8>> {
    rearrange(DType::Q4_0, PackedFormat::Q4, rows, cols, blocks)
}

/// Rearranges `Q8_0` blocks of a row-major matrix (rows, cols) into `q8x16`; no number changes.
///
/// # Errors
/// Those of [`pack_q4_0`].
pub fn pack_q8_0(rows: usize, cols: usize, blocks: &[u8]) -> Result<Vec<u8>> {
    rearrange(DType::Q8_0, PackedFormat::Q8, rows, cols, blocks)
}

/// Converts a packed matrix to row-major f32 (rows, cols), without padding.
///
/// # Errors
/// [`Error::Length`] if `out` is not rows x cols elements.
pub fn unpack(matrix: PackedRef<'_>, out: &mut [f32]) -> Result<()> {
    unpack_rows(matrix, 0, matrix.rows, out)
}

/// Converts rows `from..to` of a packed matrix to row-major f32 (to - from, cols).
///
/// # Errors
/// [`Error::Shape`] if the rows do not exist, [`Error::Length`] if `out` has another length.
pub fn unpack_rows(matrix: PackedRef<'_>, from: usize, to: usize, out: &mut [f32]) -> Result<()> {
    if to > matrix.rows || from > to {
        return Err(Error::Shape { what: "end of rows", expected: matrix.rows, found: to.max(from) });
    }
    check_len("unpacked matrix in elements", elements(to - from, matrix.cols)?, out.len())?;
    let block_bytes = matrix.format.block_bytes();
    for (row, out) in (from..to).zip(out.chunks_exact_mut(matrix.cols)) {
        let (g, r) = (row / GROUP, row % GROUP);
        let blocks = matrix.group_data(g, g + 1).chunks_exact(block_bytes);
        for (block, out) in blocks.zip(out.chunks_mut(BLOCK)) {
            let mut values = [0.0; BLOCK];
            unpack_block_row(matrix.format, block, r, &mut values);
            out.copy_from_slice(&values[..out.len()]);
        }
    }
    Ok(())
}

/// Row `r` (0..16) of a block to f32.
fn unpack_block_row(format: PackedFormat, block: &[u8], r: usize, out: &mut [f32; BLOCK]) {
    match format {
        PackedFormat::Q4 => {
            let scale = read_f16(block, 256 + 2 * r).to_f32();
            for j in 0..16 {
                let byte = block[(j / 4) * 64 + 4 * r + j % 4];
                out[j] = scale * (f32::from(byte & 15) - 8.0);
                out[16 + j] = scale * (f32::from(byte >> 4) - 8.0);
            }
        }
        PackedFormat::Q8 => {
            let scale = read_f16(block, 512 + 2 * r).to_f32();
            for (j, o) in out.iter_mut().enumerate() {
                *o = scale * f32::from(block[(j / 4) * 64 + 4 * r + j % 4].cast_signed());
            }
        }
        PackedFormat::F16 => {
            let mut bytes = [0; 2 * BLOCK];
            for (j, b) in bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                b.copy_from_slice(&block[32 * j + 2 * r..32 * j + 2 * r + 2]);
            }
            f16_to_f32(&bytes, out);
        }
    }
}

fn elements(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols).ok_or(Error::Overflow { what: "number of elements", rows, cols })
}

pub(crate) fn check_pack(
    format: PackedFormat,
    rows: usize,
    cols: usize,
    x: &[f32],
    out: &[u8],
) -> Result<()> {
    check_len("packed matrix in bytes", format.nbytes(rows, cols)?, out.len())?;
    check_len("matrix in elements", elements(rows, cols)?, x.len())
}

pub(crate) fn shifted(e: Error, by: usize) -> Error {
    match e {
        Error::NotFinite { index, value } => Error::NotFinite { index: index + by, value },
        other => other,
    }
}

pub(crate) fn put_q4_row(block: &mut [u8], r: usize, scale: f16, q: &[u8; BLOCK]) {
    for j in 0..16 {
        block[(j / 4) * 64 + 4 * r + j % 4] = q[j] | (q[16 + j] << 4);
    }
    block[256 + 2 * r..258 + 2 * r].copy_from_slice(&scale.to_le_bytes());
}

pub(crate) fn put_q8_row(block: &mut [u8], r: usize, scale: f16, q: &[i8; BLOCK]) {
    for (j, &q) in q.iter().enumerate() {
        block[(j / 4) * 64 + 4 * r + j % 4] = q.cast_unsigned();
    }
    block[512 + 2 * r..514 + 2 * r].copy_from_slice(&scale.to_le_bytes());
}

/// Packs up to 16 rows (`x.len() / cols` of them) into one group.
fn pack_group(
    format: PackedFormat,
    rule: ScaleRule,
    cols: usize,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    for (b, block) in out.chunks_exact_mut(format.block_bytes()).enumerate() {
        let from = b * BLOCK;
        let padded = |all: &[f32]| {
            let mut values = [0.0f32; BLOCK];
            let to = cols.min(from + BLOCK);
            values[..to - from].copy_from_slice(&all[from..to]);
            values
        };
        let w = importance.map(padded);
        for r in 0..GROUP {
            let row = x.get(r * cols..(r + 1) * cols);
            let values = row.map_or([0.0; BLOCK], padded);
            let at = |e| shifted(e, r * cols + from);
            match format {
                PackedFormat::Q4 => {
                    let q = quantize_q4_0(rule, &values, w.as_ref()).map_err(at)?;
                    put_q4_row(block, r, q.scale, &q.q);
                }
                PackedFormat::Q8 => {
                    let q = quantize_q8_0(rule, &values, w.as_ref()).map_err(at)?;
                    put_q8_row(block, r, q.scale, &q.q);
                }
                PackedFormat::F16 => {
                    for (j, &v) in values.iter().enumerate() {
                        let h = f16::from_f32(v);
                        if !h.is_finite() {
                            return Err(at(Error::NotFinite { index: j, value: v.to_string() }));
                        }
                        block[32 * j + 2 * r..32 * j + 2 * r + 2].copy_from_slice(&h.to_le_bytes());
                    }
                }
            }
        }
    }
    Ok(())
}

fn rearrange(dtype: DType, format: PackedFormat, rows: usize, cols: usize, blocks: &[u8]) -> Result<Vec<u8>> {
    let size = format.nbytes(rows, cols)?;
    let row_bytes = dtype.nbytes(cols)?;
    let expected =
        row_bytes.checked_mul(rows).ok_or(Error::Overflow { what: "size in bytes", rows, cols })?;
    check_len("quantised blocks in bytes", expected, blocks.len())?;
    let mut out = vec![0; size];
    let per_group = cols / BLOCK;
    for (i, block) in out.chunks_exact_mut(format.block_bytes()).enumerate() {
        let (g, b) = (i / per_group, i % per_group);
        for r in 0..GROUP {
            let at = (g * GROUP + r) * row_bytes + b * dtype.block_bytes();
            let source = blocks.get(at..at + dtype.block_bytes());
            let scale = source.map_or(f16::ZERO, |s| read_f16(s, 0));
            let bytes = source.map(|s| &s[2..]);
            if format == PackedFormat::Q4 {
                // A missing row is 16 x 0, stored as 8.
                let q = std::array::from_fn(|j| {
                    bytes.map_or(8, |s| if j < 16 { s[j] & 15 } else { s[j - 16] >> 4 })
                });
                put_q4_row(block, r, scale, &q);
            } else {
                let q = std::array::from_fn(|j| bytes.map_or(0, |s| s[j].cast_signed()));
                put_q8_row(block, r, scale, &q);
            }
        }
    }
    Ok(out)
}
