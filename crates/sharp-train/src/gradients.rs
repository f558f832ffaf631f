//! Where the backward pass puts gradients.

use tch::Tensor;

use crate::error::Result;
use crate::forms::Pieces;
use crate::gradient_order::Slot;
use crate::params::{Layout, ParamId};

/// Adds gradients to a flat tensor, in a fixed order where several sequences add to the same one.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    pub(crate) layout: &'a Layout,
    /// Values of the parameters, `(total)`.
    pub(crate) values: &'a Tensor,
    /// Gradients, `(total)`, added to.
    pub(crate) grad: &'a Tensor,
    /// This sequence's place among those that add to the same gradients; `None` where no other does.
    pub(crate) slot: Option<&'a Slot>,
}

impl Sink<'_> {
    /// Returns a parameter's value, sharing memory.
    pub(crate) fn value(&self, id: ParamId) -> Result<Tensor> {
        self.layout.view(self.values, id)
    }

    /// Returns the values of a projection's pieces, sharing memory.
    pub(crate) fn pieces(&self, ids: &Pieces<ParamId>) -> Result<Pieces> {
        ids.try_map(|_, &id| self.value(id))
    }

    /// Adds to a parameter's gradient, after the sequences before this one.
    pub(crate) fn add(&self, id: ParamId, grad: &Tensor) -> Result<()> {
        if let Some(slot) = self.slot {
            slot.wait(id);
        }
        let _ = self.layout.view(self.grad, id)?.f_add_(grad)?;
        Ok(())
    }
}
