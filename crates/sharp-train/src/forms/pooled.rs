//! A pool of neurons that several layers run, each with an output gain of its own for every neuron.
//!
//! `y = D diag(g) h(x)`: gate and up are the pool's, the down projection's columns are scaled. No plan names
//! it; fine-tuning makes pools of neighbouring pruned layers where it is asked to.

use tch::Tensor;

use super::factors::{self, need};
use super::form::{Flow, Form, Pieces, Size};
use crate::error::{Error, Result};

/// The pool's gate and up; `W_pool diag(col_scale)` for down.
#[derive(Debug)]
pub(crate) struct Pooled;

impl Form for Pooled {
    fn name(&self) -> &str {
        "pooled"
    }

    fn shapes(&self, size: &Size) -> Pieces<Vec<usize>> {
        use sharp_model::Projection::{Down, Gate, Up};
        match size.projection {
            Gate | Up => Pieces::default(),
            Down => Pieces { col: Some(vec![size.input]), ..Pieces::default() },
        }
    }

    fn effective_into(&self, out: &mut Tensor, reference: Option<&Tensor>, pieces: &Pieces) -> Result<()> {
        let pool = need(reference, "a pool of neurons")?;
        match &pieces.col {
            None => out.f_copy_(pool)?,
            Some(gains) => {
                let _ = pool.f_mul_out(out, gains)?;
            }
        }
        Ok(())
    }

    fn gradients(&self, _pieces: &Pieces, _flow: &Flow<'_>) -> Result<Pieces> {
        Err(Error::invalid("a pool's neurons are trained with its gains"))
    }

    fn weight_gradients(
        &self,
        reference: Option<&Tensor>,
        pieces: &Pieces,
        dw: &Tensor,
    ) -> Result<(Pieces, Option<Tensor>)> {
        let Some(gains) = &pieces.col else { return Ok((Pieces::default(), Some(dw.shallow_clone()))) };
        let col = factors::dot(dw, need(reference, "a pool of neurons")?, 0)?;
        Ok((Pieces { col: Some(col), ..Pieces::default() }, Some(dw.f_mul(gains)?)))
    }
}
