//! Recovery forms: how a target layer's weight is made from its reference's, and the way back of the gradient.
//!
//! One trait, one file for each form. Training merges each form into an *effective weight* once per step, so the forward
//! and backward products cost what the dense layer's cost; the parameters' gradients come from the layer's own inputs and
//! output gradients without ever forming the weight's gradient, unless the reference is trained too.

mod alone;
mod factors;
mod low_rank;
mod pruned;
mod row_column;
mod scaled;

use sharp_model::{Repair, Scales, Treatment};
use tch::Tensor;

use crate::error::{Error, Result};

pub use alone::LowRankOnly;
pub use low_rank::LowRank;
pub use pruned::Pruned;
pub use row_column::RowColumnScaledLowRank;
pub use scaled::ScaledLowRank;

/// One projection's recovery parameters, or their gradients. What a form does not have is `None`.
#[derive(Debug, Default)]
pub struct Pieces {
    /// `A (r, in)`.
    pub a: Option<Tensor>,
    /// `B (out, r)`.
    pub b: Option<Tensor>,
    /// `row_scale (out)`.
    pub row: Option<Tensor>,
    /// `col_scale (in)`.
    pub col: Option<Tensor>,
    /// The whole weight `(out, in)`, where the layer has one of its own.
    pub own: Option<Tensor>,
}

/// What passes through a projection in one backward pass.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// Its input, `(n, in)`.
    pub x: &'a Tensor,
    /// Its output before any bias, `(n, out)`.
    pub y: &'a Tensor,
    /// Its output's gradient, `(n, out)`.
    pub dy: &'a Tensor,
    /// Its input's gradient through this projection alone, `(n, in)`; given if [`Form::needs_input_grad`].
    pub dx: Option<&'a Tensor>,
}

/// A way to make a target's weight `(out, in)` from a reference's and a few parameters.
pub trait Form: Send + Sync + std::fmt::Debug {
    /// The form's name, for messages.
    fn name(&self) -> &'static str;

    /// Writes the effective weight into `out (out, in)`, float32.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a piece or the reference is missing; from libtorch if shapes differ.
    fn effective_into(&self, out: &mut Tensor, reference: Option<&Tensor>, pieces: &Pieces) -> Result<()>;

    /// Whether [`Form::gradients`] reads [`Flow::dx`].
    fn needs_input_grad(&self) -> bool {
        false
    }

    /// Whether training takes [`Form::weight_gradients`] even where no reference is trained.
    fn needs_weight_grad(&self) -> bool {
        false
    }

    /// The pieces' gradients from what passed through the projection.
    ///
    /// # Errors
    /// As [`Form::effective_into`].
    fn gradients(&self, pieces: &Pieces, flow: &Flow<'_>) -> Result<Pieces>;

    /// The pieces' gradients and the reference's `(out, in)` from the effective weight's gradient `dw (out, in)`:
    /// exact everywhere, dearer by one full product, and needed where the reference is trained too.
    ///
    /// # Errors
    /// As [`Form::effective_into`].
    fn weight_gradients(
        &self,
        reference: Option<&Tensor>,
        pieces: &Pieces,
        dw: &Tensor,
    ) -> Result<(Pieces, Option<Tensor>)>;
}

/// Returns the form of a plan's treatment; `None` for direct sharing and removed MLPs, which have no parameters.
pub fn form(treatment: &Treatment) -> Option<&'static dyn Form> {
    match treatment {
        Treatment::Share { repair: Repair::None, .. } | Treatment::Drop => None,
        Treatment::Share { repair: Repair::LowRank { scales, .. }, .. } => Some(match scales {
            Scales::None => &LowRank,
            Scales::Rows => &ScaledLowRank,
            Scales::RowsAndColumns => &RowColumnScaledLowRank,
        }),
        Treatment::LowRank { .. } => Some(&LowRankOnly),
        Treatment::Prune { .. } => Some(&Pruned),
    }
}

/// A piece or reference that must be there.
fn need<'a>(piece: Option<&'a Tensor>, what: &str) -> Result<&'a Tensor> {
    piece.ok_or_else(|| Error::invalid(format!("the recovery form needs {what}, which is missing")))
}

#[cfg(test)]
mod tests;
