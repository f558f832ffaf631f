//! The activations that a layer is fitted on.

use tch::Tensor;

use crate::error::Result;

/// What a layer is fitted on.
#[derive(Debug)]
pub(crate) struct Activations {
    /// The MLP's inputs, `(n, d)`.
    pub(crate) x: Tensor,
    /// What the original's MLP makes of them, `(n, d)`.
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

    /// Rows `start..start + n`.
    pub(crate) fn narrow(&self, start: i64, n: i64) -> Result<Self> {
        Ok(Self {
            x: self.x.f_narrow(0, start, n)?,
            y: self.y.f_narrow(0, start, n)?,
            weight: self.weight.f_narrow(0, start, n)?,
        })
    }

    /// In pieces of at most `rows` rows.
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
