//! Where a target's recovery parameters begin: at zero, as in the paper, or at a closed-form fit.

mod align;
mod assignment;
mod input;
mod moments;
mod neurons;
mod pruned;
mod whitened;
mod zero;

use sharp_model::{PerProjection, Repair, Treatment};
use sharp_schema::Start;

use crate::device::Compute;
use crate::error::Result;
use crate::forms::Pieces;
use crate::mlp::Mlp;
use crate::params::Layout;
use crate::trained_layer::TrainedLayer;

pub(crate) use input::StartInput;
use whitened::whitened;
use zero::zero;

/// Computes the values that the parameters of `layer` begin with, under `treatment` and by `start`.
pub(crate) fn begin(
    start: Start,
    treatment: &Treatment,
    layer: &TrainedLayer,
    layout: &Layout,
    input: &StartInput<'_>,
) -> Result<PerProjection<Pieces>> {
    match (start, *treatment) {
        (Start::Zero, _) => begin_cold(treatment, layer, layout, input.original, input.seed, input.compute),
        (Start::Whitened, Treatment::Prune { neurons }) => {
            pruned::fitted(neurons, input.original, input.activations, input.pool)
        }
        (Start::Whitened, Treatment::Share { repair: Repair::Neurons { neurons }, .. }) => {
            neurons::fitted(neurons, input)
        }
        (Start::Whitened, _) => whitened(treatment, input),
    }
}

/// Computes the start that needs no activations.
pub(crate) fn begin_cold(
    treatment: &Treatment,
    layer: &TrainedLayer,
    layout: &Layout,
    original: &Mlp,
    seed: u64,
    compute: &Compute,
) -> Result<PerProjection<Pieces>> {
    match *treatment {
        Treatment::Prune { neurons } => pruned::largest(neurons, original),
        Treatment::Share { repair: Repair::Neurons { neurons }, .. } => neurons::silent(neurons, original),
        Treatment::Share { .. } | Treatment::LowRank { .. } | Treatment::Drop => {
            zero(layer, layout, seed, compute)
        }
    }
}

#[cfg(test)]
mod tests;
