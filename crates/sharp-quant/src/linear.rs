//! Describes a linear map: a packed matrix, its scales and its low-rank recovery parameters.

use crate::error::{Error, Result, check_shape};
use crate::packed::{PackedFormat, PackedRef};

/// Low-rank recovery parameters of one projection: `B A x` is added to the output.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `A` (r, in).
    pub a: PackedRef<'a>,
    /// `B` (out, r).
    pub b: PackedRef<'a>,
}

/// A linear map `y = diag(row_scale) W diag(col_scale) x + B A x`, any part of which may be missing, but not
/// both `W` and the low rank.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    pub(crate) weight: Option<PackedRef<'a>>,
    pub(crate) row_scale: Option<&'a [f32]>,
    pub(crate) col_scale: Option<&'a [f32]>,
    pub(crate) low_rank: Option<LowRank<'a>>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl<'a> Linear<'a> {
    /// Makes `W x`, with `W` (out, in).
    pub fn new(weight: PackedRef<'a>) -> Self {
        Linear {
            weight: Some(weight),
            row_scale: None,
            col_scale: None,
            low_rank: None,
            rows: weight.rows(),
            cols: weight.cols(),
        }
    }

    /// Makes a map of all its parts.
    ///
    /// # Errors
    /// [`Error::Shape`] if their shapes do not fit together, [`Error::Empty`] if there is neither `weight`
    /// nor `low_rank`.
    pub fn with_recovery(
        weight: Option<PackedRef<'a>>,
        row_scale: Option<&'a [f32]>,
        col_scale: Option<&'a [f32]>,
        low_rank: Option<LowRank<'a>>,
    ) -> Result<Self> {
        let (rows, cols) = match (weight, low_rank) {
            (Some(w), _) => (w.rows(), w.cols()),
            (None, Some(l)) => (l.b.rows(), l.a.cols()),
            (None, None) => return Err(Error::Empty { rows: 0, cols: 0 }),
        };
        if let Some(l) = low_rank {
            check_shape("rows of B", rows, l.b.rows())?;
            check_shape("columns of A", cols, l.a.cols())?;
            check_shape("columns of B", l.a.rows(), l.b.cols())?;
        }
        if let Some(s) = row_scale {
            check_shape("row scales", rows, s.len())?;
        }
        if let Some(s) = col_scale {
            check_shape("column scales", cols, s.len())?;
        }
        Ok(Linear { weight, row_scale, col_scale, low_rank, rows, cols })
    }

    /// Returns the length of an output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the length of an input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the rank of the recovery parameters, 0 without.
    pub fn rank(&self) -> usize {
        self.low_rank.map_or(0, |l| l.a.rows())
    }

    /// Returns whether its input must be kept in f32 too.
    pub(crate) fn needs_floats(&self) -> bool {
        let halves = |m: PackedRef<'_>| m.format() == PackedFormat::F16;
        self.col_scale.is_some()
            || self.weight.is_some_and(halves)
            || self.low_rank.is_some_and(|l| halves(l.a))
    }

    /// Returns the bytes of weights that one token reads.
    pub fn bytes(&self) -> usize {
        let low = self.low_rank.map_or(0, |l| l.a.data().len() + l.b.data().len());
        let scales = self.row_scale.map_or(0, |s| 4 * s.len()) + self.col_scale.map_or(0, |s| 4 * s.len());
        self.weight.map_or(0, |w| w.data().len()) + low + scales
    }
}

impl<'a> From<PackedRef<'a>> for Linear<'a> {
    fn from(weight: PackedRef<'a>) -> Self {
        Linear::new(weight)
    }
}
