//! Conversion between f32 and the stored formats.

use crate::{
    dtype::{BLOCK, DType},
    error::{Error, Result, check_len},
    f16_bytes::{f16_to_f32, read_f16},
    ggml_read,
    scale_max::{self, QuantBlock},
    scale_search,
};
use half::{bf16, f16};

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

/// Converts stored elements to f32.
///
/// `bytes` holds `out.len()` elements; it may have any alignment.
///
/// # Errors
/// [`Error::NotWholeBlocks`], and [`Error::Length`] if `bytes` is not exactly as long as `out` asks for.
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
        DType::Q5_0 => ggml_read::q5_0(bytes, out),
        DType::Q5_1 => ggml_read::q5_1(bytes, out),
        DType::IQ4_NL => ggml_read::iq4_nl(bytes, out),
        DType::Q4_K => ggml_read::q4_k(bytes, out),
        DType::Q5_K => ggml_read::q5_k(bytes, out),
        DType::Q6_K => ggml_read::q6_k(bytes, out),
    }
    Ok(())
}

/// Converts f32 to stored elements.
///
/// `out` must be exactly `dtype.nbytes(x.len())` bytes. F16 and BF16 round to nearest even; `rule` matters
/// only to the block formats.
///
/// # Errors
/// [`Error::NotWholeBlocks`], [`Error::Length`], for the block formats [`Error::NotFinite`], and
/// [`Error::ReadOnly`] for the formats that are not written.
pub fn quantize(dtype: DType, rule: ScaleRule, x: &[f32], out: &mut [u8]) -> Result<()> {
    quantize_weighted(dtype, rule, x, None, out)
}

/// [`quantize`] with an importance for every element, used by [`ScaleRule::LeastSquares`]: the error made
/// smallest is the sum of `importance[i] * (x[i] - stored[i])^2`. A typical importance is the mean square of
/// the activation that the weight multiplies. Negative and non-finite importances count as zero.
///
/// # Errors
/// Those of [`quantize`]; [`Error::Length`] if `importance` is not as long as `x`.
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
        _ => return Err(Error::ReadOnly { dtype: dtype.name() }),
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
        Error::NotFinite { index, value } => Error::NotFinite { index: index + i * BLOCK, value },
        other => other,
    })
}

fn write_nibbles(q: &[u8; BLOCK], out: &mut [u8]) {
    let (low, high) = q.split_at(16);
    for ((o, l), h) in out.iter_mut().zip(low).zip(high) {
        *o = l | (h << 4);
    }
}

fn check_finite(x: &[f32; BLOCK]) -> Result<()> {
    match x.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite { index, value: x[index].to_string() }),
    }
}

fn finite_scale(d: f16, x: &[f32; BLOCK]) -> Result<()> {
    if d.is_finite() { Ok(()) } else { Err(Error::NotFinite { index: 0, value: x[0].to_string() }) }
}

/// Searches the scale of least error for a block, starting from what the plain rule gives.
type Search<Q> = fn(&[f32; BLOCK], Option<&[f32; BLOCK]>, QuantBlock<Q>) -> QuantBlock<Q>;

/// Quantises one block by `rule`, with an importance for each element if there is one.
fn by_rule<Q: Copy>(
    rule: ScaleRule,
    x: &[f32; BLOCK],
    w: Option<&[f32; BLOCK]>,
    plain: fn(&[f32; BLOCK]) -> QuantBlock<Q>,
    search: Search<Q>,
) -> Result<QuantBlock<Q>> {
    check_finite(x)?;
    let plain = plain(x);
    finite_scale(plain.scale, x)?;
    finite_scale(plain.min, x)?;
    Ok(match rule {
        ScaleRule::Max => plain,
        ScaleRule::LeastSquares => search(x, w, plain),
    })
}

pub(crate) fn quantize_q8_0(
    rule: ScaleRule,
    x: &[f32; BLOCK],
    w: Option<&[f32; BLOCK]>,
) -> Result<QuantBlock<i8>> {
    by_rule(rule, x, w, scale_max::q8_0, scale_search::q8_0)
}

pub(crate) fn quantize_q4_0(
    rule: ScaleRule,
    x: &[f32; BLOCK],
    w: Option<&[f32; BLOCK]>,
) -> Result<QuantBlock<u8>> {
    by_rule(rule, x, w, scale_max::q4_0, scale_search::q4_0)
}

fn quantize_q4_1(rule: ScaleRule, x: &[f32; BLOCK], w: Option<&[f32; BLOCK]>) -> Result<QuantBlock<u8>> {
    by_rule(rule, x, w, scale_max::q4_1, scale_search::q4_1)
}
