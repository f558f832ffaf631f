//! A weight of the layer's own with fewer neurons: structured pruning.

use tch::Tensor;

use super::factors::need;
use super::form::{Flow, Form, Pieces, Size};
use crate::error::Result;

/// `W`: the layer's own weight with the neurons it keeps, trained as a whole.
#[derive(Debug)]
pub struct Pruned;

impl Form for Pruned {
    fn name(&self) -> &str {
        "pruned"
    }

    fn shapes(&self, size: &Size) -> Pieces<Vec<usize>> {
        Pieces { weight: Some(vec![size.out, size.input]), ..Pieces::default() }
    }

    fn effective_into(&self, out: &mut Tensor, _reference: Option<&Tensor>, pieces: &Pieces) -> Result<()> {
        out.f_copy_(need(pieces.weight.as_ref(), "a weight of its own")?)?;
        Ok(())
    }

    fn needs_weight_grad(&self) -> bool {
        true
    }

    fn gradients(&self, pieces: &Pieces, flow: &Flow<'_>) -> Result<Pieces> {
        let dw = flow.dy.f_tr()?.f_mm(flow.x)?;
        Ok(self.weight_gradients(None, pieces, &dw)?.0)
    }

    fn weight_gradients(
        &self,
        _reference: Option<&Tensor>,
        _pieces: &Pieces,
        dw: &Tensor,
    ) -> Result<(Pieces, Option<Tensor>)> {
        Ok((Pieces { weight: Some(dw.shallow_clone()), ..Pieces::default() }, None))
    }
}
