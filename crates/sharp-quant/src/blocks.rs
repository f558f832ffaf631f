//! Conversion between f32 and the stored formats.

use crate::{
    dtype::DType,
    error::{QuantError, Result, check_len},
    read_only, search,
};
use half::{bf16, f16, slice::HalfFloatSliceExt};

/// Elements that share a scale in every block format here.
pub const BLOCK: usize = 32;

/// How the scale of a block is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ScaleRule {
    /// ggml's plain rule: the extreme value of the block decides. Byte-equal to the `gguf` Python package.
    #[default]
    Max,
    /// The scale of least squared error, searched around the plain one and never worse than it.
    LeastSquares,
}

/// One quantised block before it is laid out: element `j` stands for `scale * (q[j] - zero) + min`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Block<Q> {
    pub(crate) scale: f16,
    pub(crate) min: f16,
    pub(crate) q: [Q; BLOCK],
}

/// Converts stored elements to f32.
///
/// `bytes` holds `out.len()` elements; it may have any alignment.
///
/// # Errors
/// [`QuantError::NotWholeBlocks`], and [`QuantError::Length`] if `bytes` is not exactly as long as `out` asks for.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    check_len("stored bytes", dtype.nbytes(out.len())?, bytes.len())?;
    match dtype {
        DType::F32 => {
            for (b, o) in bytes.as_chunks::<4>().0.iter().zip(out) {
                *o = f32::from_le_bytes(*b);
            }
        }
        DType::F16 => f16_to_f32(bytes, out),
        DType::BF16 => {
            for (b, o) in bytes.as_chunks::<2>().0.iter().zip(out) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        DType::Q8_0 => {
            for (b, o) in bytes.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
                let d = read_f16(b, 0).to_f32();
                for (o, &q) in o.iter_mut().zip(&b[2..]) {
                    *o = f32::from(q.cast_signed()) * d;
                }
            }
        }
        DType::Q4_0 => {
            for (b, o) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
                let d = read_f16(b, 0).to_f32();
                let (low, high) = o.split_at_mut(16);
                for ((l, h), &q) in low.iter_mut().zip(high).zip(&b[2..]) {
                    *l = d * (f32::from(q & 15) - 8.0);
                    *h = d * (f32::from(q >> 4) - 8.0);
                }
            }
        }
        DType::Q4_1 => {
            for (b, o) in bytes.as_chunks::<20>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
                let (d, m) = (read_f16(b, 0).to_f32(), read_f16(b, 2).to_f32());
                let (low, high) = o.split_at_mut(16);
                for ((l, h), &q) in low.iter_mut().zip(high).zip(&b[4..]) {
                    *l = d * f32::from(q & 15) + m;
                    *h = d * f32::from(q >> 4) + m;
                }
            }
        }
        DType::Q5_0 => read_only::q5_0(bytes, out),
        DType::Q5_1 => read_only::q5_1(bytes, out),
        DType::IQ4_NL => read_only::iq4_nl(bytes, out),
        DType::Q4_K => read_only::q4_k(bytes, out),
        DType::Q5_K => read_only::q5_k(bytes, out),
        DType::Q6_K => read_only::q6_k(bytes, out),
    }
    Ok(())
}

/// Converts f32 to stored elements.
///
/// `out` must be exactly `dtype.nbytes(x.len())` bytes. F16 and BF16 round to nearest even; `rule` matters only to the
/// block formats.
///
/// # Errors
/// [`QuantError::NotWholeBlocks`], [`QuantError::Length`], for the block formats [`QuantError::NotFinite`], and
/// [`QuantError::ReadOnly`] for the formats that are not written.
pub fn quantize(dtype: DType, rule: ScaleRule, x: &[f32], out: &mut [u8]) -> Result<()> {
    quantize_weighted(dtype, rule, x, None, out)
}

/// [`quantize`] with an importance for every element, used by [`ScaleRule::LeastSquares`]: the error made smallest is
/// the sum of `importance[i] * (x[i] - stored[i])^2`. A typical importance is the mean square of the activation that
/// the weight multiplies. Negative and non-finite importances count as zero.
///
/// # Errors
/// Those of [`quantize`]; [`QuantError::Length`] if `importance` is not as long as `x`.
pub fn quantize_weighted(
    dtype: DType,
    rule: ScaleRule,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    check_len("quantised bytes", dtype.nbytes(x.len())?, out.len())?;
    if let Some(w) = importance {
        check_len("importance in elements", x.len(), w.len())?;
    }
    match dtype {
        DType::F32 => {
            for (b, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                *b = v.to_le_bytes();
            }
            return Ok(());
        }
        DType::F16 => {
            for (b, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                *b = f16::from_f32(*v).to_le_bytes();
            }
            return Ok(());
        }
        DType::BF16 => {
            for (b, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                *b = bf16::from_f32(*v).to_le_bytes();
            }
            return Ok(());
        }
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => {}
        _ => return Err(QuantError::ReadOnly { dtype: dtype.name() }),
    }
    let blocks = x.as_chunks::<BLOCK>().0;
    for (i, (x, out)) in blocks.iter().zip(out.chunks_exact_mut(dtype.block_bytes())).enumerate() {
        let w = importance.and_then(|w| w.as_chunks::<BLOCK>().0.get(i));
        match dtype {
            DType::Q8_0 => {
                let block = located(quantize_q8_0(rule, x, w), i)?;
                out[..2].copy_from_slice(&block.scale.to_le_bytes());
                for (o, q) in out[2..].iter_mut().zip(block.q) {
                    *o = q.cast_unsigned();
                }
            }
            DType::Q4_0 => {
                let block = located(quantize_q4_0(rule, x, w), i)?;
                out[..2].copy_from_slice(&block.scale.to_le_bytes());
                write_nibbles(&block.q, &mut out[2..]);
            }
            _ => {
                let block = located(quantize_q4_1(rule, x, w), i)?;
                out[..2].copy_from_slice(&block.scale.to_le_bytes());
                out[2..4].copy_from_slice(&block.min.to_le_bytes());
                write_nibbles(&block.q, &mut out[4..]);
            }
        }
    }
    Ok(())
}

/// Shifts the index of an error from its block to the whole input.
fn located<T>(block: Result<T>, i: usize) -> Result<T> {
    block.map_err(|e| match e {
        QuantError::NotFinite { index, value } => QuantError::NotFinite { index: index + i * BLOCK, value },
        other => other,
    })
}

fn write_nibbles(q: &[u8; BLOCK], out: &mut [u8]) {
    let (low, high) = q.split_at(16);
    for ((o, l), h) in out.iter_mut().zip(low).zip(high) {
        *o = l | (h << 4);
    }
}

pub(crate) fn read_f16(b: &[u8], at: usize) -> f16 {
    match b.get(at..at + 2) {
        Some(&[l, h]) => f16::from_le_bytes([l, h]),
        _ => f16::ZERO,
    }
}

/// Little-endian f16 bytes of any alignment to f32. The `half` crate uses the processor's own conversion where it has
/// one, for which it wants a typed slice.
pub(crate) fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    let mut typed = [f16::ZERO; 64];
    for (b, o) in bytes.chunks(128).zip(out.chunks_mut(64)) {
        for (t, b) in typed.iter_mut().zip(b.as_chunks::<2>().0) {
            *t = f16::from_le_bytes(*b);
        }
        if let Some(t) = typed.get(..o.len()) {
            t.convert_to_f32_slice(o);
        }
    }
}

fn check_finite(x: &[f32; BLOCK]) -> Result<()> {
    match x.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(QuantError::NotFinite { index, value: x[index].to_string() }),
    }
}

fn finite_scale(d: f16, x: &[f32; BLOCK]) -> Result<()> {
    if d.is_finite() { Ok(()) } else { Err(QuantError::NotFinite { index: 0, value: x[0].to_string() }) }
}

/// The element of largest magnitude, the first of several.
pub(crate) fn extreme(x: &[f32; BLOCK]) -> f32 {
    let mut best = 0.0f32;
    for &v in x {
        if v.abs() > best.abs() {
            best = v;
        }
    }
    best
}

pub(crate) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

pub(crate) fn plain_q8_0(x: &[f32; BLOCK]) -> Block<i8> {
    let d = extreme(x).abs() / 127.0;
    let id = inverse(d);
    // `round` is half away from zero, as C's roundf.
    Block {
        scale: f16::from_f32(d),
        min: f16::ZERO,
        q: x.map(|v| (v * id).round().clamp(-127.0, 127.0) as i8),
    }
}

pub(crate) fn plain_q4_0(x: &[f32; BLOCK]) -> Block<u8> {
    let d = extreme(x) / -8.0;
    let id = inverse(d);
    Block { scale: f16::from_f32(d), min: f16::ZERO, q: x.map(|v| ((v * id + 8.5) as u8).min(15)) }
}

pub(crate) fn plain_q4_1(x: &[f32; BLOCK]) -> Block<u8> {
    let (min, max) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    let d = (max - min) / 15.0;
    let id = inverse(d);
    Block {
        scale: f16::from_f32(d),
        min: f16::from_f32(min),
        q: x.map(|v| (((v - min) * id + 0.5) as u8).min(15)),
    }
}

pub(crate) fn quantize_q8_0(
    rule: ScaleRule,
    x: &[f32; BLOCK],
    w: Option<&[f32; BLOCK]>,
) -> Result<Block<i8>> {
    check_finite(x)?;
    let plain = plain_q8_0(x);
    finite_scale(plain.scale, x)?;
    Ok(match rule {
        ScaleRule::Max => plain,
        ScaleRule::LeastSquares => search::q8_0(x, w, plain),
    })
}

pub(crate) fn quantize_q4_0(
    rule: ScaleRule,
    x: &[f32; BLOCK],
    w: Option<&[f32; BLOCK]>,
) -> Result<Block<u8>> {
    check_finite(x)?;
    let plain = plain_q4_0(x);
    finite_scale(plain.scale, x)?;
    Ok(match rule {
        ScaleRule::Max => plain,
        ScaleRule::LeastSquares => search::q4_0(x, w, plain),
    })
}

pub(crate) fn quantize_q4_1(
    rule: ScaleRule,
    x: &[f32; BLOCK],
    w: Option<&[f32; BLOCK]>,
) -> Result<Block<u8>> {
    check_finite(x)?;
    let plain = plain_q4_1(x);
    finite_scale(plain.scale, x)?;
    finite_scale(plain.min, x)?;
    Ok(match rule {
        ScaleRule::Max => plain,
        ScaleRule::LeastSquares => search::q4_1(x, w, plain),
    })
}
