//! Recovery forms: how a layer's weight is made from its reference's, and how gradients follow.
//!
//! One trait, one file for each form. Training merges a form into an *effective weight* once a step, so
//! forward and backward products cost what the dense layer's cost. The pieces' gradients come from the
//! layer's own inputs and output gradients, without the weight's gradient, unless the reference is trained
//! too.
//!
//! To add a form to plans and files: a variant of `sharp_model::Repair` or `Treatment`, a file here, an arm
//! in [`form`].

mod factors;
mod form;
mod low_rank;
mod low_rank_only;
mod neurons;
mod pooled;
mod pruned;
mod row_column;
mod scaled;

use sharp_model::{Repair, Scales, Treatment};

pub(crate) use form::Piece;
pub use form::{Flow, Form, Pieces, Size};
pub use low_rank::LowRank;
pub use low_rank_only::LowRankOnly;
pub use neurons::Neurons;
pub(crate) use pooled::Pooled;
pub use pruned::Pruned;
pub use row_column::RowColumnScaledLowRank;
pub use scaled::ScaledLowRank;

/// Returns the form of a plan's treatment; `None` for MLPs used as they are and for dropped ones, which have
/// no parameters.
pub fn form(treatment: &Treatment) -> Option<&'static dyn Form> {
    match treatment {
        Treatment::Share { repair: Repair::None, .. } | Treatment::Drop => None,
        Treatment::Share { repair: Repair::LowRank { scales, .. }, .. } => Some(match scales {
            Scales::None => &LowRank,
            Scales::Rows => &ScaledLowRank,
            Scales::RowsAndColumns => &RowColumnScaledLowRank,
        }),
        Treatment::Share { repair: Repair::Neurons { .. }, .. } => Some(&Neurons),
        Treatment::LowRank { .. } => Some(&LowRankOnly),
        Treatment::Prune { .. } => Some(&Pruned),
    }
}

#[cfg(test)]
mod tests;
