//! Packing one stored matrix, a run of rows at a time.

use std::path::Path;

use sharp_model::TensorRef;
use sharp_quant::{Error as QuantError, Feedback, PackedFormat, PackedRef, ScaleRule, Team};

use crate::error::Result;

/// Rows packed at a time; a multiple of the layouts' groups of 16.
const ROWS: usize = 2048;

/// Packs matrices of one source by one rule.
pub(crate) struct Packer<'a> {
    pub(crate) team: &'a Team,
    /// The source's path, for errors.
    pub(crate) path: &'a Path,
    /// How the scales of weights that are rounded plainly are chosen.
    pub(crate) rule: ScaleRule,
}

impl Packer<'_> {
    /// Appends a stored matrix to `out` in `format`, rounded against the second moments of its inputs if
    /// there are any.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for values that are not finite, with the tensor's name and the
    /// index.
    pub(crate) fn pack(
        &self,
        tensor: &TensorRef,
        format: PackedFormat,
        (rows, cols): (usize, usize),
        feedback: Option<&Feedback>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let mut values = Vec::new();
        for first in (0..rows).step_by(ROWS) {
            let shape = (ROWS.min(rows - first), cols);
            values.resize(shape.0 * cols, 0.0);
            tensor.read_f32(first * cols, &mut values)?;
            let start = out.len();
            out.resize(start + format.nbytes(shape.0, cols)?, 0);
            let packed = &mut out[start..];
            let done = match feedback {
                Some(feedback) => {
                    sharp_quant::pack_calibrated(self.team, format, shape, &values, feedback, packed)
                        .map(drop)
                }
                None => {
                    sharp_quant::pack_f32_parallel(self.team, format, self.rule, shape, &values, None, packed)
                }
            };
            done.map_err(|e| match e {
                QuantError::NotFinite { index, value } => {
                    let what = format!("holds {value} at index {}", first * cols + index);
                    sharp_model::Error::tensor(self.path, tensor.name(), what)
                }
                other => other.into(),
            })?;
        }
        Ok(())
    }
}

/// Returns the root of the squared error of a packed matrix (rows, cols) over the squared weights.
pub(crate) fn relative_error(
    tensor: &TensorRef,
    format: PackedFormat,
    (rows, cols): (usize, usize),
    packed: &[u8],
) -> Result<f64> {
    let matrix = PackedRef::new(format, rows, cols, packed)?;
    let (mut error, mut size) = (0.0f64, 0.0f64);
    let (mut values, mut back) = (Vec::new(), Vec::new());
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        values.resize(count * cols, 0.0);
        back.resize(count * cols, 0.0);
        tensor.read_f32(first * cols, &mut values)?;
        sharp_quant::unpack_rows(matrix, first, first + count, &mut back)?;
        for (v, b) in values.iter().zip(&back) {
            error += f64::from(v - b).powi(2);
            size += f64::from(*v).powi(2);
        }
    }
    Ok(if size > 0.0 { (error / size).sqrt() } else { 0.0 })
}
