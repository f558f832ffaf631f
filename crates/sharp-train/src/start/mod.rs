//! Where a target's recovery parameters begin: at zero, as in the paper, or at a closed-form fit.

mod align;
mod lap;
mod pruned;
mod whitened;
mod zero;

use sharp_model::{LayerChange, Repair, Treatment};
use tch::Tensor;

use crate::device::Compute;
use crate::error::{Error, Result};
use crate::forms::Pieces;
use crate::mlp::Mlp;
use crate::pool::Pool;

pub(crate) use align::{align, permuted};
pub use lap::assign;
use whitened::{Second, whitened};
use zero::zero;

/// Where recovery parameters begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// The paper's: `A` random, `B` zero, scales one. The target begins as its reference. A pruned one begins with its largest
    /// neurons as they are.
    #[default]
    Zero,
    /// Neurons aligned to the reference's, row scales by least squares, `B A` the truncated singular value decomposition
    /// of the difference in the metric of the activations; the down projection by reduced-rank regression on the
    /// hidden activations that result. A pruned target keeps the neurons that explain its outputs best.
    Whitened,
}

impl Start {
    /// `zero` or `whitened`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Whitened => "whitened",
        }
    }
}

impl std::str::FromStr for Start {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "zero" => Ok(Self::Zero),
            "whitened" => Ok(Self::Whitened),
            _ => Err(Error::invalid(format!("start `{text}`: use zero or whitened"))),
        }
    }
}

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
    pub(crate) fn share(&self) -> Self {
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

#[allow(clippy::too_many_arguments)]
/// The recovery parameters, in the order of [`sharp_model::Projection::ALL`], that a target begins with.
pub(crate) fn begin(
    start: Start,
    target: &LayerChange,
    original: &Mlp,
    reference: Option<&Mlp>,
    activations: &Activations,
    seed: u64,
    pool: &Pool<()>,
    compute: &Compute,
) -> Result<[Pieces; 3]> {
    if target.treatment.reference().is_some() != reference.is_some() {
        return Err(Error::invalid(format!("layer {}: form and reference do not fit", target.layer)));
    }
    match (start, target.treatment) {
        (_, Treatment::Share { repair: Repair::None, .. } | Treatment::Drop) => {
            Ok([Pieces::default(), Pieces::default(), Pieces::default()])
        }
        (Start::Whitened, Treatment::Prune { neurons }) => {
            pruned::fitted(neurons, original, activations, pool)
        }
        (Start::Zero, _) => begin_cold(target, original, seed, compute),
        (Start::Whitened, _) => whitened(target, original, reference, activations, pool, compute),
    }
}

/// The start that needs no activations.
pub(crate) fn begin_cold(
    target: &LayerChange,
    original: &Mlp,
    seed: u64,
    compute: &Compute,
) -> Result<[Pieces; 3]> {
    match target.treatment {
        Treatment::Prune { neurons } => pruned::largest(neurons, original),
        _ => zero(target, original, seed, compute),
    }
}

#[cfg(test)]
mod tests;
