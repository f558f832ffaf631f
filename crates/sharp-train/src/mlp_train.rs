//! What of an MLP is trained, and how its gradients are taken.

use sharp_model::{PerProjection, Projection};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::forms::{Flow, Form, Pieces};
use crate::gradients::Sink;
use crate::linear::Linear;
use crate::params::ParamId;

/// What of an MLP is trained.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one for each layer, never moved in a loop")]
pub(crate) enum MlpTrain {
    /// A target's recovery parameters, and the reference's weights with it if those are trained too.
    Recovery {
        form: &'static dyn Form,
        ids: PerProjection<Pieces<ParamId>>,
        /// The reference's own weights, where they are trained.
        reference: Option<PerProjection<ParamId>>,
    },
    /// A stored MLP's own weights, in its own layer or in one that shares it without repair.
    Stored(PerProjection<ParamId>),
}

impl MlpTrain {
    /// Lists the parameters that [`Self::accumulate`] adds gradients to.
    pub(crate) fn parameters(&self) -> Vec<ParamId> {
        match self {
            Self::Stored(ids) => ids.values().copied().collect(),
            Self::Recovery { ids, reference, .. } => {
                let pieces = ids.values().flat_map(|ids| ids.iter().map(|(_, &id)| id));
                pieces.chain(reference.iter().flat_map(|ids| ids.values().copied())).collect()
            }
        }
    }

    /// Whether gradients need [`Flow::dx`].
    pub(crate) fn needs_input_grad(&self) -> bool {
        matches!(self, Self::Recovery { form, reference: None, .. } if form.needs_input_grad())
    }

    /// Adds the gradients of one projection's parameters to `sink`, from what passed through its product
    /// `linear`.
    pub(crate) fn accumulate(
        &self,
        projection: Projection,
        linear: &Linear,
        flow: &Flow<'_>,
        sink: &Sink<'_>,
    ) -> Result<()> {
        let weight_grad = || linear.weight_grad(flow.x, flow.dy);
        let (form, ids, reference) = match self {
            Self::Stored(ids) => return sink.add(ids[projection], &weight_grad()?),
            Self::Recovery { form, ids, reference } => (form, &ids[projection], reference),
        };
        let pieces = sink.pieces(ids)?;
        let grads = match reference {
            None if form.needs_weight_grad() => form.weight_gradients(None, &pieces, &weight_grad()?)?.0,
            None => {
                let float = |t: &Tensor| t.f_to_kind(Kind::Float);
                let (x, y, dy) = (float(flow.x)?, float(flow.y)?, float(flow.dy)?);
                let dx = flow.dx.map(float).transpose()?;
                form.gradients(&pieces, &Flow { x: &x, y: &y, dy: &dy, dx: dx.as_ref() })?
            }
            Some(reference) => {
                let id = reference[projection];
                let weight = sink.value(id)?;
                let (grads, d_ref) = form.weight_gradients(Some(&weight), &pieces, &weight_grad()?)?;
                if let Some(d_ref) = d_ref {
                    sink.add(id, &d_ref)?;
                }
                grads
            }
        };
        for (piece, &id) in ids.iter() {
            let grad = grads.get(piece).ok_or_else(|| {
                Error::invalid(format!("form `{}` has no gradient of its piece {piece:?}", form.name()))
            })?;
            sink.add(id, grad)?;
        }
        Ok(())
    }
}
