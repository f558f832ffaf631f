//! Weights as stored, and linear maps made of them.

use std::sync::Arc;

use sharp_model::TensorBytes;
use sharp_quant::{DType, Error as QuantError, LowRank, PackedFormat, PackedRef, float::DenseRef};

use crate::error::{Error, Result};

/// A row-major matrix (rows, cols) of F32, F16 or BF16, as it lies in its file.
#[derive(Debug)]
pub struct DenseWeight {
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: TensorBytes,
}

impl DenseWeight {
    /// Takes `bytes` as a matrix.
    ///
    /// # Errors
    /// Those of [`DenseRef::new`].
    pub(crate) fn new(
        dtype: DType,
        rows: usize,
        cols: usize,
        bytes: TensorBytes,
    ) -> Result<Self, QuantError> {
        DenseRef::new(dtype, rows, cols, &bytes)?;
        Ok(Self { dtype, rows, cols, bytes })
    }

    /// The matrix as the float kernels take it.
    pub(crate) fn view(&self) -> DenseRef<'_> {
        DenseRef::new(self.dtype, self.rows, self.cols, &self.bytes)
            .expect("checked when the weight was made")
    }
}

/// A matrix (rows, cols) in a layout made for the kernels, as it lies in its file.
#[derive(Debug)]
pub struct PackedWeight {
    format: PackedFormat,
    rows: usize,
    cols: usize,
    bytes: TensorBytes,
}

impl PackedWeight {
    /// Takes `bytes` as a matrix.
    ///
    /// # Errors
    /// Those of [`PackedRef::new`].
    pub(crate) fn new(
        format: PackedFormat,
        rows: usize,
        cols: usize,
        bytes: TensorBytes,
    ) -> Result<Self, QuantError> {
        PackedRef::new(format, rows, cols, &bytes)?;
        Ok(Self { format, rows, cols, bytes })
    }

    /// Length of an input.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Whether it holds 16-bit floats, whose kernels multiply floats.
    pub(crate) fn is_half(&self) -> bool {
        self.format == PackedFormat::F16
    }

    /// The matrix as the packed kernels take it.
    pub(crate) fn view(&self) -> PackedRef<'_> {
        PackedRef::new(self.format, self.rows, self.cols, &self.bytes)
            .expect("checked when the weight was made")
    }
}

/// A stored matrix. Nothing is converted when a model is opened, and clones are the same matrix.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Plain floats.
    Dense(Arc<DenseWeight>),
    /// Quantised, or 16-bit floats, in a layout made for the kernels.
    Packed(Arc<PackedWeight>),
}

impl Weight {
    /// Length of an output.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(w) => w.rows,
            Self::Packed(w) => w.rows,
        }
    }

    /// Length of an input.
    pub fn cols(&self) -> usize {
        match self {
            Self::Dense(w) => w.cols,
            Self::Packed(w) => w.cols,
        }
    }

    /// Stored bytes.
    pub fn bytes(&self) -> &TensorBytes {
        match self {
            Self::Dense(w) => &w.bytes,
            Self::Packed(w) => &w.bytes,
        }
    }

    /// Name of the stored format.
    pub fn format_name(&self) -> &'static str {
        match self {
            Self::Dense(w) => w.dtype.name(),
            Self::Packed(w) => w.format.name(),
        }
    }

    /// Whether both are one matrix in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dense(a), Self::Dense(b)) => Arc::ptr_eq(a, b),
            (Self::Packed(a), Self::Packed(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Converts row `row` to f32 into `out` (cols).
    ///
    /// # Errors
    /// [`Error::Quant`] if there is no such row or `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Dense(w) => {
                if row >= w.rows {
                    return Err(QuantError::Shape { what: "row", expected: w.rows, found: row }.into());
                }
                let size = w.cols * w.dtype.block_bytes();
                sharp_quant::dequantize(w.dtype, &w.bytes[row * size..(row + 1) * size], out)?;
            }
            Self::Packed(w) => sharp_quant::unpack_rows(w.view(), row, row + 1, out)?,
        }
        Ok(())
    }
}

/// Low-rank factors: `B A x` is added to the output.
#[derive(Debug)]
pub(crate) struct Factors<W> {
    /// `A` (r, in).
    pub(crate) a: Arc<W>,
    /// `B` (out, r).
    pub(crate) b: Arc<W>,
}

impl Factors<DenseWeight> {
    /// Rank `r`.
    pub(crate) fn rank(&self) -> usize {
        self.a.rows
    }
}

/// The matrices of a linear map, all of one kind; at least one is there.
#[derive(Debug)]
pub(crate) struct Parts<W> {
    /// `W` (out, in).
    pub(crate) base: Option<Arc<W>>,
    pub(crate) factors: Option<Factors<W>>,
}

/// Which kernels run a linear map.
#[derive(Debug)]
pub(crate) enum Matrices {
    /// None: there is no matrix.
    Zero,
    /// The float kernels.
    Dense(Parts<DenseWeight>),
    /// The packed kernels.
    Packed(Parts<PackedWeight>),
}

/// What a linear map is made of; the default is nothing at all.
#[derive(Debug, Default)]
pub(crate) struct LinearParts {
    /// `W` (out, in).
    pub(crate) base: Option<Weight>,
    /// `A` (r, in) and `B` (out, r).
    pub(crate) factors: Option<(Weight, Weight)>,
    /// (out)
    pub(crate) row_scale: Option<Arc<[f32]>>,
    /// (in)
    pub(crate) col_scale: Option<Arc<[f32]>>,
    /// (out)
    pub(crate) bias: Option<Arc<[f32]>>,
}

impl LinearParts {
    /// Checks that the parts fit a map of `rows` x `cols`.
    fn check(&self, rows: usize, cols: usize) -> Result<(), QuantError> {
        let shape = |what, expected, found| {
            if expected == found { Ok(()) } else { Err(QuantError::Shape { what, expected, found }) }
        };
        if let Some(w) = &self.base {
            shape("rows of the weight", rows, w.rows())?;
            shape("columns of the weight", cols, w.cols())?;
        }
        if let Some((a, b)) = &self.factors {
            shape("columns of A", cols, a.cols())?;
            shape("rows of B", rows, b.rows())?;
            shape("columns of B", a.rows(), b.cols())?;
        }
        for (what, expected, vector) in [
            ("row scales", rows, &self.row_scale),
            ("column scales", cols, &self.col_scale),
            ("bias", rows, &self.bias),
        ] {
            if let Some(v) = vector {
                shape(what, expected, v.len())?;
            }
        }
        Ok(())
    }

    /// The matrices if all are of the kind that `pick` picks.
    fn of_kind<W>(&self, pick: impl Fn(&Weight) -> Option<Arc<W>>) -> Option<Parts<W>> {
        let base = match &self.base {
            None => None,
            Some(weight) => Some(pick(weight)?),
        };
        let factors = match &self.factors {
            None => None,
            Some((a, b)) => Some(Factors { a: pick(a)?, b: pick(b)? }),
        };
        Some(Parts { base, factors })
    }
}

/// `y = diag(row_scale) W diag(col_scale) x + B A x + bias`; what is absent counts as nothing (scales: as
/// ones). With neither `W` nor the factors it is zero.
#[derive(Debug)]
pub struct Linear {
    pub(crate) matrices: Matrices,
    pub(crate) row_scale: Option<Arc<[f32]>>,
    pub(crate) col_scale: Option<Arc<[f32]>>,
    pub(crate) bias: Option<Arc<[f32]>>,
    rows: usize,
    cols: usize,
}

impl Linear {
    /// Makes a map of `rows` x `cols`. Shapes are checked here, once for all products.
    ///
    /// # Errors
    /// [`Error::Quant`] if shapes do not fit, [`Error::Argument`] if some matrices are packed and some are
    /// not.
    pub(crate) fn new((rows, cols): (usize, usize), parts: LinearParts) -> Result<Self> {
        parts.check(rows, cols)?;
        let dense = |weight: &Weight| match weight {
            Weight::Dense(w) => Some(w.clone()),
            Weight::Packed(_) => None,
        };
        let packed = |weight: &Weight| match weight {
            Weight::Packed(w) => Some(w.clone()),
            Weight::Dense(_) => None,
        };
        let matrices = if parts.base.is_none() && parts.factors.is_none() {
            Matrices::Zero
        } else if let Some(parts) = parts.of_kind(dense) {
            Matrices::Dense(parts)
        } else if let Some(parts) = parts.of_kind(packed) {
            Matrices::Packed(parts)
        } else {
            return Err(Error::argument(
                "a packed weight needs packed recovery factors, and a plain one plain ones",
            ));
        };
        let LinearParts { row_scale, col_scale, bias, .. } = parts;
        Ok(Self { matrices, row_scale, col_scale, bias, rows, cols })
    }

    /// Makes the map of `rows` x `cols` whose output is zero.
    pub(crate) fn zero((rows, cols): (usize, usize)) -> Self {
        Self { matrices: Matrices::Zero, row_scale: None, col_scale: None, bias: None, rows, cols }
    }

    /// Length of an output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of an input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The stored matrix `W`, if there is one.
    pub fn base(&self) -> Option<Weight> {
        match &self.matrices {
            Matrices::Zero => None,
            Matrices::Dense(parts) => parts.base.clone().map(Weight::Dense),
            Matrices::Packed(parts) => parts.base.clone().map(Weight::Packed),
        }
    }

    /// The recovery factors `A` and `B`, if there are any.
    fn factors(&self) -> Option<(Weight, Weight)> {
        match &self.matrices {
            Matrices::Zero => None,
            Matrices::Dense(parts) => {
                parts.factors.as_ref().map(|f| (Weight::Dense(f.a.clone()), Weight::Dense(f.b.clone())))
            }
            Matrices::Packed(parts) => {
                parts.factors.as_ref().map(|f| (Weight::Packed(f.a.clone()), Weight::Packed(f.b.clone())))
            }
        }
    }

    /// Rank of the recovery factors, 0 without.
    pub fn rank(&self) -> usize {
        self.factors().map_or(0, |(a, _)| a.rows())
    }

    /// Whether there is neither a weight nor factors.
    pub fn is_zero(&self) -> bool {
        matches!(self.matrices, Matrices::Zero)
    }

    /// Every stored matrix it reads.
    pub fn weights(&self) -> impl Iterator<Item = Weight> {
        self.base().into_iter().chain(self.factors().into_iter().flat_map(|(a, b)| [a, b]))
    }

    /// Whether the packed kernels run it.
    pub(crate) fn is_packed(&self) -> bool {
        matches!(self.matrices, Matrices::Packed(_))
    }

    /// The map as the packed kernels take it, if they run it.
    pub(crate) fn packed(&self) -> Option<sharp_quant::Linear<'_>> {
        let Matrices::Packed(parts) = &self.matrices else { return None };
        let kernel = sharp_quant::Linear::with_recovery(
            parts.base.as_ref().map(|w| w.view()),
            self.row_scale.as_deref(),
            self.col_scale.as_deref(),
            parts.factors.as_ref().map(|f| LowRank { a: f.a.view(), b: f.b.view() }),
        );
        Some(kernel.expect("shapes were checked when the map was made"))
    }
}
