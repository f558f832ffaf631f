//! Fits a recovery form of your own to a layer: `cargo run --release -p sharp-train --example own_form`.
//!
//! A form says how a layer's weight is made from its reference's and a few pieces, and how the pieces'
//! gradients follow. This one scales the columns alone: `W = W_ref diag(col)`. `fit_form` puts it in the
//! place of the form that the plan names for a layer and trains it as the warm-up trains the others.
//!
//! A form that plans and files are to know needs three more places: a variant of `sharp_model::Repair`, the
//! names of its tensors in a recovery file, and an arm in `forms::form`.

use std::io::Write;
use std::path::Path;

use sharp_data::TokenBlocks;
use sharp_model::{LayerChange, ModelSource, Plan, Ranks, Repair};
use sharp_progress::Silent;
use sharp_train::forms::{Flow, Form, Pieces, Size};
use sharp_train::warmup::{WarmupOptions, fit_form};
use sharp_train::{Compute, Error, Job, Result};
use tch::{Kind, Tensor};

#[derive(Debug)]
struct ColumnScaled;

impl Form for ColumnScaled {
    fn name(&self) -> &str {
        "column_scaled"
    }

    fn shapes(&self, size: &Size) -> Pieces<Vec<usize>> {
        Pieces { col: Some(vec![size.input]), ..Pieces::default() }
    }

    fn effective_into(&self, out: &mut Tensor, reference: Option<&Tensor>, pieces: &Pieces) -> Result<()> {
        let scaled = need(reference, "the reference")?.f_mul(need(pieces.col.as_ref(), "col_scale")?)?;
        out.f_copy_(&scaled)?;
        Ok(())
    }

    fn needs_input_grad(&self) -> bool {
        true
    }

    // y = W_ref diag(col) x, so the gradient of col_j is the sum of x_j (W_ref^T dy)_j, and dx_j = col_j
    // (W_ref^T dy)_j.
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

fn need<'a>(tensor: Option<&'a Tensor>, what: &str) -> Result<&'a Tensor> {
    tensor.ok_or_else(|| Error::Invalid(format!("{what} is missing")))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama/tied");
    let original = ModelSource::open(folder)?;
    // Layer 2 runs with the MLP of layer 1. The plan's own form is of no matter here; its reference is.
    let change = LayerChange::share(2, 1, Repair::low_rank(Ranks::uniform(4)));
    let rows = |n: usize, step: u32| TokenBlocks {
        seq_len: 16,
        tokens: (0..16 * n as u32).map(|i| i * step % 61).collect(),
        mask: vec![true; 16 * n],
    };
    let job = Job {
        source: &original,
        plan: &Plan::new("explicit", vec![change]),
        train: &rows(32, 7),
        validation: &rows(8, 11),
        out: &std::env::temp_dir(),
        compute: Compute::cpu(2),
        progress: &Silent,
    };
    let options =
        WarmupOptions { steps: 200, batch_tokens: 128, lr: 3e-2, patience: 3, ..WarmupOptions::default() };
    let fitted = fit_form(&job, 2, &ColumnScaled, &options)?;
    let (before, after) = (fitted.summary.start_error, fitted.summary.error);
    let scales = fitted.pieces.gate.col.ok_or("the gate has no scales")?;
    writeln!(
        std::io::stdout(),
        "error {before:.4} -> {after:.4} with {} scales of the gate",
        scales.numel()
    )?;
    if after < before { Ok(()) } else { Err("scaling the columns did not help".into()) }
}
