//! The activations that a layer is fitted on.

use tch::Tensor;

use crate::error::Result;

/// Inputs and outputs of an MLP, and how much each token counts.
#[derive(Debug)]
pub(crate) struct Activations {
    /// The MLP's inputs, `(n, d)`.
    pub(crate) x: Tensor,
    /// The outputs of the original's MLP, `(n, d)`.
    pub(crate) y: Tensor,
    /// The weight of each token's squared error, `(n, 1)`, mean 1.
    pub(crate) weight: Tensor,
}

impl Activations {
    pub(crate) fn shallow_clone(&self) -> Self {
        Self { x: self.x.shallow_clone(), y: self.y.shallow_clone(), weight: self.weight.shallow_clone() }
    }

    pub(crate) fn rows(&self) -> Result<i64> {
        Ok(self.x.size2()?.0)
    }

    /// Returns the rows `start..start + n`, sharing memory.
    pub(crate) fn narrow(&self, start: i64, n: i64) -> Result<Self> {
        Ok(Self {
            x: self.x.f_narrow(0, start, n)?,
            y: self.y.f_narrow(0, start, n)?,
            weight: self.weight.f_narrow(0, start, n)?,
        })
    }

    /// Cuts the rows into pieces of at most `rows`, sharing memory.
    pub(crate) fn chunks(&self, rows: i64) -> Result<Vec<Self>> {
        let total = self.rows()?;
        let mut all = Vec::new();
        let mut start = 0;
        while start < total {
            let n = rows.min(total - start);
            all.push(self.narrow(start, n)?);
            start += n;
        }
        Ok(all)
    }
}
