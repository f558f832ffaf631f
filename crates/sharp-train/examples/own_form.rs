//! A recovery form of your own: `cargo run --release -p sharp-train --example own_form`.
//!
//! A form says how a target's weight is made from its reference's and a few pieces, and how the pieces' gradients follow from what passed
//! through the projection. This one only scales the columns: `W = W_ref diag(col)`. It is fitted here by gradient descent to a weight
//! that it can reach. A form that plans and files are to know also needs a place in `sharp_model::Treatment` and an
//! arm in `forms::form`.

use std::io::Write;

use sharp_train::forms::{Flow, Form, Pieces};
use sharp_train::{Error, Result};
use tch::{Device, Kind, Tensor};

#[derive(Debug)]
struct Columns;

fn need<'a>(tensor: Option<&'a Tensor>, what: &str) -> Result<&'a Tensor> {
    tensor.ok_or_else(|| Error::Invalid(format!("{what} is missing")))
}

impl Form for Columns {
    fn name(&self) -> &'static str {
        "column_scaled"
    }

    fn effective_into(&self, out: &mut Tensor, reference: Option<&Tensor>, pieces: &Pieces) -> Result<()> {
        let scaled = need(reference, "the reference")?.f_mul(need(pieces.col.as_ref(), "col_scale")?)?;
        out.f_copy_(&scaled)?;
        Ok(())
    }

    fn needs_input_grad(&self) -> bool {
        true
    }

    // y = W_ref diag(col) x, so the gradient of col_j is the sum of x_j (W_ref^T dy)_j, and dx_j = col_j (W_ref^T dy)_j.
    fn gradients(&self, pieces: &Pieces, flow: &Flow<'_>) -> Result<Pieces> {
        let dx = need(flow.dx, "the input's gradient")?;
        let through = dx.f_div(need(pieces.col.as_ref(), "col_scale")?)?;
        let col = flow.x.f_mul(&through)?.f_sum_dim_intlist(0, false, Kind::Float)?;
        Ok(Pieces { col: Some(col), ..Pieces::default() })
    }

    fn weight_gradients(
        &self,
        reference: Option<&Tensor>,
        pieces: &Pieces,
        dw: &Tensor,
    ) -> Result<(Pieces, Option<Tensor>)> {
        let col = dw.f_mul(need(reference, "the reference")?)?.f_sum_dim_intlist(0, false, Kind::Float)?;
        let whole = dw.f_mul(need(pieces.col.as_ref(), "col_scale")?)?;
        Ok((Pieces { col: Some(col), ..Pieces::default() }, Some(whole)))
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    tch::manual_seed(1);
    let options = (Kind::Float, Device::Cpu);
    let reference = Tensor::f_randn([6, 4], options)?;
    let x = Tensor::f_randn([64, 4], options)?;
    let want = x.f_matmul(&reference.f_mul(&Tensor::from_slice(&[0.5f32, 2.0, -1.0, 1.5]))?.f_tr()?)?;
    let mut pieces = Pieces { col: Some(Tensor::f_ones([4], options)?), ..Pieces::default() };
    let mut weight = Tensor::f_zeros([6, 4], options)?;
    let mut loss = f64::MAX;
    for _ in 0..300 {
        Columns.effective_into(&mut weight, Some(&reference), &pieces)?;
        let y = x.f_matmul(&weight.f_tr()?)?;
        let dy = y.f_sub(&want)?;
        loss = f64::try_from(dy.f_square()?.f_mean(Kind::Float)?)?;
        let dx = dy.f_matmul(&weight)?;
        let gradient = Columns.gradients(&pieces, &Flow { x: &x, y: &y, dy: &dy, dx: Some(&dx) })?;
        let col = need(pieces.col.as_ref(), "col_scale")?
            .f_sub(&need(gradient.col.as_ref(), "its gradient")?.f_mul_scalar(0.001)?)?;
        pieces.col = Some(col);
    }
    writeln!(std::io::stdout(), "loss {loss:.2e}")?;
    if loss < 1e-6 { Ok(()) } else { Err("the scales were not found".into()) }
}
