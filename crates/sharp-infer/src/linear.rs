//! Weights as stored, and linear maps made of them.

use std::sync::Arc;

use sharp_model::TensorBytes;
use sharp_quant::{
    DType, Error as QuantError, LowRank, MatOp, PackedFormat, PackedRef,
    float::{DenseOp, DenseRef},
};

use crate::error::{Error, Result};

/// A matrix as it lies in its file: nothing is converted when a model is opened, and clones share the bytes.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Row-major floats (rows, cols).
    Dense {
        /// F32, F16 or BF16.
        dtype: DType,
        /// Length of an output.
        rows: usize,
        /// Length of an input.
        cols: usize,
        /// The values, usually mapped.
        bytes: TensorBytes,
    },
    /// Quantised, in a layout made for the kernels.
    Packed {
        /// Which layout.
        format: PackedFormat,
        /// Length of an output.
        rows: usize,
        /// Length of an input.
        cols: usize,
        /// The blocks, usually mapped.
        bytes: TensorBytes,
    },
}

impl Weight {
    /// Length of an output.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense { rows, .. } | Self::Packed { rows, .. } => *rows,
        }
    }

    /// Length of an input.
    pub fn cols(&self) -> usize {
        match self {
            Self::Dense { cols, .. } | Self::Packed { cols, .. } => *cols,
        }
    }

    /// Stored bytes.
    pub fn bytes(&self) -> &TensorBytes {
        match self {
            Self::Dense { bytes, .. } | Self::Packed { bytes, .. } => bytes,
        }
    }

    /// Whether it is multiplied by the integer kernels.
    pub fn is_packed(&self) -> bool {
        matches!(self, Self::Packed { .. })
    }

    /// Whether it is packed as 16-bit floats, whose kernels multiply floats.
    pub(crate) fn is_half(&self) -> bool {
        matches!(self, Self::Packed { format: PackedFormat::F16, .. })
    }

    /// Name of the stored format.
    pub fn format_name(&self) -> &'static str {
        match self {
            Self::Dense { dtype, .. } => dtype.name(),
            Self::Packed { format, .. } => format.name(),
        }
    }

    /// Row `row` as f32 into `out` (cols).
    ///
    /// # Errors
    /// [`Error::Quant`] if there is no such row or `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Dense { dtype, cols, bytes, .. } => {
                let size = cols * dtype.block_bytes();
                let data = bytes.get(row * size..(row + 1) * size).ok_or(QuantError::Shape {
                    what: "row",
                    expected: self.rows(),
                    found: row,
                })?;
                sharp_quant::dequantize(*dtype, data, out)?;
            }
            Self::Packed { .. } => sharp_quant::unpack_rows(self.packed()?, row, row + 1, out)?,
        }
        Ok(())
    }

    pub(crate) fn dense(&self) -> Result<DenseRef<'_>, QuantError> {
        match self {
            Self::Dense { dtype, rows, cols, bytes } => DenseRef::new(*dtype, *rows, *cols, bytes),
            Self::Packed { rows, cols, .. } => Err(QuantError::Empty { rows: *rows, cols: *cols }),
        }
    }

    pub(crate) fn packed(&self) -> Result<PackedRef<'_>, QuantError> {
        match self {
            Self::Packed { format, rows, cols, bytes } => PackedRef::new(*format, *rows, *cols, bytes),
            Self::Dense { rows, cols, .. } => Err(QuantError::Empty { rows: *rows, cols: *cols }),
        }
    }
}

/// Low-rank factors: `B A x` is added to the output.
#[derive(Debug, Clone)]
pub(crate) struct Factors {
    /// `A` (r, in).
    pub(crate) a: Arc<Weight>,
    /// `B` (out, r).
    pub(crate) b: Arc<Weight>,
}

/// `y = diag(row_scale) W diag(col_scale) x + B A x + bias`; what is absent counts as nothing (scales: as ones). With neither
/// `W` nor the factors it is zero.
#[derive(Debug, Clone)]
pub struct Linear {
    pub(crate) base: Option<Arc<Weight>>,
    pub(crate) factors: Option<Factors>,
    pub(crate) row_scale: Option<Arc<[f32]>>,
    pub(crate) col_scale: Option<Arc<[f32]>>,
    pub(crate) bias: Option<Arc<[f32]>>,
    rows: usize,
    cols: usize,
}

impl Linear {
    /// All parts at once.
    ///
    /// # Errors
    /// [`Error::Quant`] if their shapes do not fit, [`Error::Argument`] if some are packed and some are not.
    pub(crate) fn new(
        (rows, cols): (usize, usize),
        base: Option<Arc<Weight>>,
        factors: Option<Factors>,
        row_scale: Option<Arc<[f32]>>,
        col_scale: Option<Arc<[f32]>>,
        bias: Option<Arc<[f32]>>,
    ) -> Result<Self> {
        let shape = |what, expected, found| {
            if expected == found { Ok(()) } else { Err(QuantError::Shape { what, expected, found }) }
        };
        if let Some(w) = &base {
            shape("rows of the weight", rows, w.rows())?;
            shape("columns of the weight", cols, w.cols())?;
        }
        if let Some(f) = &factors {
            shape("columns of A", cols, f.a.cols())?;
            shape("rows of B", rows, f.b.rows())?;
            shape("columns of B", f.a.rows(), f.b.cols())?;
            let packed = f.a.is_packed();
            if packed != f.b.is_packed() || base.as_ref().is_some_and(|w| w.is_packed() != packed) {
                return Err(Error::argument(
                    "a packed weight needs packed recovery factors, and a plain one plain ones",
                ));
            }
        }
        for (what, expected, vector) in
            [("row scales", rows, &row_scale), ("column scales", cols, &col_scale), ("bias", rows, &bias)]
        {
            if let Some(v) = vector {
                shape(what, expected, v.len())?;
            }
        }
        Ok(Self { base, factors, row_scale, col_scale, bias, rows, cols })
    }

    /// Length of an output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of an input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The stored matrix; equal pointers where layers share it.
    pub fn base(&self) -> Option<&Arc<Weight>> {
        self.base.as_ref()
    }

    /// Rank of the recovery factors, 0 without.
    pub fn rank(&self) -> usize {
        self.factors.as_ref().map_or(0, |f| f.a.rows())
    }

    /// Whether there is neither a weight nor factors.
    pub fn is_zero(&self) -> bool {
        self.base.is_none() && self.factors.is_none()
    }

    /// Every stored matrix it reads.
    pub fn weights(&self) -> impl Iterator<Item = &Arc<Weight>> {
        self.base.iter().chain(self.factors.iter().flat_map(|f| [&f.a, &f.b]))
    }

    /// Whether the integer kernels run it (a zero map counts as neither).
    pub(crate) fn is_packed(&self) -> bool {
        self.weights().next().is_some_and(|w| w.is_packed())
    }

    /// As the packed kernels take it.
    pub(crate) fn kernel(&self) -> Result<sharp_quant::Linear<'_>> {
        let weight = self.base.as_ref().map(|w| w.packed()).transpose()?;
        let low_rank = match &self.factors {
            Some(f) => Some(LowRank { a: f.a.packed()?, b: f.b.packed()? }),
            None => None,
        };
        Ok(sharp_quant::Linear::with_recovery(
            weight,
            self.row_scale.as_deref(),
            self.col_scale.as_deref(),
            low_rank,
        )?)
    }

    pub(crate) fn op<'a>(&'a self, out: &'a mut [f32]) -> Result<MatOp<'a>> {
        Ok(MatOp { linear: self.kernel()?, out })
    }

    /// The stored matrix alone, as the float kernels take it.
    pub(crate) fn dense_op<'a>(&'a self, out: &'a mut [f32]) -> Result<Option<DenseOp<'a>>> {
        let Some(base) = &self.base else { return Ok(None) };
        Ok(Some(DenseOp { weight: base.dense()?, row_scale: self.row_scale.as_deref(), add: false, out }))
    }
}
