//! `diag(row_scale) W_ref + B A`: the reference lends its directions, not its sizes.

use tch::Tensor;

use super::factors::{self, need};
use super::form::{Flow, Form, Pieces, Size};
use crate::error::Result;

/// `diag(row_scale) W_ref + B A`.
#[derive(Debug)]
pub struct ScaledLowRank;

impl Form for ScaledLowRank {
    fn name(&self) -> &str {
        "scaled_low_rank"
    }

    fn shapes(&self, size: &Size) -> Pieces<Vec<usize>> {
        Pieces { row: Some(vec![size.out]), ..factors::shapes(size) }
    }

    fn effective_into(&self, out: &mut Tensor, reference: Option<&Tensor>, pieces: &Pieces) -> Result<()> {
        let row = need(pieces.row.as_ref(), "row scales")?;
        let _ = need(reference, "a reference weight")?.f_mul_out(out, &row.f_unsqueeze(1)?)?;
        factors::add_product(out, pieces)
    }

    fn gradients(&self, pieces: &Pieces, flow: &Flow<'_>) -> Result<Pieces> {
        let (a, b) = factors::gradients(pieces, flow)?;
        let row = row_gradient(pieces, flow, b.as_ref())?;
        Ok(Pieces { a, b, row: Some(row), ..Pieces::default() })
    }

    fn weight_gradients(
        &self,
        reference: Option<&Tensor>,
        pieces: &Pieces,
        dw: &Tensor,
    ) -> Result<(Pieces, Option<Tensor>)> {
        let (a, b) = factors::from_weight(pieces, dw)?;
        let row = factors::dot(dw, need(reference, "a reference weight")?, 1)?;
        let scale = need(pieces.row.as_ref(), "row scales")?;
        Ok((Pieces { a, b, row: Some(row), ..Pieces::default() }, Some(dw.f_mul(&scale.f_unsqueeze(1)?)?)))
    }
}

/// Computes `ds (out)` without the base's own output: `y = s∘u + B t`, so `s∘ds = Σ dy∘y − Σ_r B∘dB`, two
/// cheap sums.
pub(super) fn row_gradient(pieces: &Pieces, flow: &Flow<'_>, db: Option<&Tensor>) -> Result<Tensor> {
    let scale = need(pieces.row.as_ref(), "row scales")?;
    let mut product = factors::dot(flow.dy, flow.y, 0)?;
    if let (Some(b), Some(db)) = (&pieces.b, db) {
        let _ = product.f_sub_(&factors::dot(b, db, 1)?)?;
    }
    factors::safe_ratio(&product, scale)
}
