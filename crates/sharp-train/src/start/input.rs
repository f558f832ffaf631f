//! What a start is computed from.

use crate::activations::Activations;
use crate::device::Compute;
use crate::mlp::Mlp;
use crate::pool::Pool;

/// The layer, its reference and its activations.
pub(crate) struct StartInput<'a> {
    /// The layer's own MLP.
    pub(crate) original: &'a Mlp,
    /// The MLP that the layer uses instead.
    pub(crate) reference: Option<&'a Mlp>,
    pub(crate) activations: &'a Activations,
    pub(crate) seed: u64,
    pub(crate) pool: &'a Pool<()>,
    pub(crate) compute: &'a Compute,
}
