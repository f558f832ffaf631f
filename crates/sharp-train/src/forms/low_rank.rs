//! `W_ref + B A`: the paper's form (Wang et al., arXiv 2502.07832).

use tch::Tensor;

use super::factors::{self, need};
use super::form::{Flow, Form, Pieces, Size};
use crate::error::Result;

/// `W_ref + B A`.
#[derive(Debug)]
pub struct LowRank;

impl Form for LowRank {
    fn name(&self) -> &str {
        "low_rank"
    }

    fn shapes(&self, size: &Size) -> Pieces<Vec<usize>> {
        factors::shapes(size)
    }

    fn effective_into(&self, out: &mut Tensor, reference: Option<&Tensor>, pieces: &Pieces) -> Result<()> {
        out.f_copy_(need(reference, "a reference weight")?)?;
        factors::add_product(out, pieces)
    }

    fn gradients(&self, pieces: &Pieces, flow: &Flow<'_>) -> Result<Pieces> {
        let (a, b) = factors::gradients(pieces, flow)?;
        Ok(Pieces { a, b, ..Pieces::default() })
    }

    fn weight_gradients(
        &self,
        _reference: Option<&Tensor>,
        pieces: &Pieces,
        dw: &Tensor,
    ) -> Result<(Pieces, Option<Tensor>)> {
        let (a, b) = factors::from_weight(pieces, dw)?;
        Ok((Pieces { a, b, ..Pieces::default() }, Some(dw.shallow_clone())))
    }
}
