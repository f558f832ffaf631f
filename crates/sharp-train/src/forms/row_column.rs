//! `diag(row_scale) W_ref diag(col_scale) + B A`.

use tch::Tensor;

use super::factors::{self, need};
use super::form::{Flow, Form, Pieces, Size};
use super::scaled::row_gradient;
use crate::error::Result;

/// `diag(row_scale) W_ref diag(col_scale) + B A`.
#[derive(Debug)]
pub struct RowColumnScaledLowRank;

impl Form for RowColumnScaledLowRank {
    fn name(&self) -> &str {
        "row_column_scaled_low_rank"
    }

    fn shapes(&self, size: &Size) -> Pieces<Vec<usize>> {
        Pieces { row: Some(vec![size.out]), col: Some(vec![size.input]), ..factors::shapes(size) }
    }

    fn effective_into(&self, out: &mut Tensor, reference: Option<&Tensor>, pieces: &Pieces) -> Result<()> {
        let row = need(pieces.row.as_ref(), "row scales")?;
        let col = need(pieces.col.as_ref(), "column scales")?;
        let _ = need(reference, "a reference weight")?.f_mul_out(out, &row.f_unsqueeze(1)?)?;
        let _ = out.f_mul_(col)?;
        factors::add_product(out, pieces)
    }

    fn needs_input_grad(&self) -> bool {
        true
    }

    fn gradients(&self, pieces: &Pieces, flow: &Flow<'_>) -> Result<Pieces> {
        let (a, b) = factors::gradients(pieces, flow)?;
        let row = row_gradient(pieces, flow, b.as_ref())?;
        // The mirror image of the rows': `c∘dc = Σ x∘dx − Σ_r A∘dA`.
        let mut product = factors::dot(flow.x, need(flow.dx, "its input's gradient")?, 0)?;
        if let (Some(a), Some(da)) = (&pieces.a, &a) {
            let _ = product.f_sub_(&factors::dot(a, da, 0)?)?;
        }
        let col = factors::safe_ratio(&product, need(pieces.col.as_ref(), "column scales")?)?;
        Ok(Pieces { a, b, row: Some(row), col: Some(col), ..Pieces::default() })
    }

    fn weight_gradients(
        &self,
        reference: Option<&Tensor>,
        pieces: &Pieces,
        dw: &Tensor,
    ) -> Result<(Pieces, Option<Tensor>)> {
        let (a, b) = factors::from_weight(pieces, dw)?;
        let row = need(pieces.row.as_ref(), "row scales")?;
        let col = need(pieces.col.as_ref(), "column scales")?;
        let by_element = dw.f_mul(need(reference, "a reference weight")?)?;
        let d_row = by_element.f_mv(col)?;
        let d_col = by_element.f_tr()?.f_mv(row)?;
        let d_ref = dw.f_mul(&row.f_unsqueeze(1)?)?.f_mul_(col)?;
        Ok((Pieces { a, b, row: Some(d_row), col: Some(d_col), ..Pieces::default() }, Some(d_ref)))
    }
}
