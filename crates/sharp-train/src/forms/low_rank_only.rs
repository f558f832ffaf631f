//! `B A`: low rank alone, the baseline that every sharing form is compared with.

use tch::Tensor;

use super::factors;
use super::form::{Flow, Form, Pieces, Size};
use crate::error::Result;

/// `B A`.
#[derive(Debug)]
pub struct LowRankOnly;

impl Form for LowRankOnly {
    fn name(&self) -> &str {
        "low_rank_only"
    }

    fn shapes(&self, size: &Size) -> Pieces<Vec<usize>> {
        factors::shapes(size)
    }

    fn effective_into(&self, out: &mut Tensor, _reference: Option<&Tensor>, pieces: &Pieces) -> Result<()> {
        let _ = out.f_zero_()?;
        factors::add_product(out, pieces)
    }

    fn draws_b(&self) -> bool {
        true
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
        Ok((Pieces { a, b, ..Pieces::default() }, None))
    }
}
