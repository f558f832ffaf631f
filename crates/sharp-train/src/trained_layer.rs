//! A changed layer in training: where its parameters are, and its effective weights made from them.

use sharp_model::{
    LayerChange, LayerRecovery, ModelConfig, PerProjection, Projection, ProjectionRecovery, Recovery,
    StoredTensor,
};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::forms::{Form, Piece, Pieces, Size};
use crate::mlp::Mlp;
use crate::mlp_train::MlpTrain;
use crate::params::{Layout, ParamId, Params, relative_rate};
use crate::tensors::to_vec;

/// One layer that has recovery parameters.
#[derive(Debug, Clone)]
pub(crate) struct TrainedLayer {
    pub(crate) layer: usize,
    pub(crate) reference: Option<usize>,
    pub(crate) form: &'static dyn Form,
    pub(crate) ids: PerProjection<Pieces<ParamId>>,
}

impl TrainedLayer {
    /// Adds the pieces that `form` has in the layer of `change` to `layout`. `original` is the layer's own
    /// MLP; matrices learn at a rate that goes by the size of its weights.
    pub(crate) fn register(
        change: &LayerChange,
        form: &'static dyn Form,
        config: &ModelConfig,
        original: &Mlp,
        layout: &mut Layout,
    ) -> Result<Self> {
        let (layer, treatment) = (change.layer, &change.treatment);
        let ids = PerProjection::try_from_fn(|projection| {
            let (out, input) = treatment.shape(projection, config);
            let (rank, neurons) = (treatment.ranks()[projection], treatment.neurons());
            let shapes = form.shapes(&Size { projection, out, input, rank, neurons });
            let rate = relative_rate(&original.weight(projection)?)?;
            shapes.try_map(|piece, shape| {
                let id = layout.add(piece.tensor_name(layer, projection), shape, piece.group())?;
                if piece.group().is_matrix() {
                    layout.set_rate(id, rate);
                }
                Ok(id)
            })
        })?;
        Ok(Self { layer, reference: treatment.reference(), form, ids })
    }

    /// Says what the backward pass trains of this layer, and of its reference where that is trained.
    pub(crate) fn train(&self, reference: Option<PerProjection<ParamId>>) -> MlpTrain {
        MlpTrain::Recovery { form: self.form, ids: self.ids, reference }
    }

    /// Sets the parameters to `pieces`.
    pub(crate) fn set(&self, params: &Params, pieces: &PerProjection<Pieces>) -> Result<()> {
        for (projection, ids) in self.ids.iter() {
            for piece in Piece::ALL {
                match (ids.get(piece), pieces[projection].get(piece)) {
                    (Some(&id), Some(value)) => params.view(id)?.f_copy_(value)?,
                    (None, None) => {}
                    _ => {
                        return Err(Error::invalid(format!(
                            "layer {}: a start that does not fit the form `{}`",
                            self.layer,
                            self.form.name()
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets the parameters to those of a file, which [`Recovery::check`] has found to fit.
    pub(crate) fn set_from_recovery(&self, params: &mut Params, recovery: &LayerRecovery) -> Result<()> {
        for (projection, ids) in self.ids.iter() {
            let Some(found) = &recovery[projection] else { continue };
            for (piece, &id) in ids.iter() {
                let values = match piece {
                    Piece::A => Some(&found.a),
                    Piece::B => Some(&found.b),
                    Piece::Row => found.row_scale.as_ref(),
                    Piece::Col => found.col_scale.as_ref(),
                    Piece::Neurons => found.neurons.as_ref().map(|neurons| &neurons.values),
                    Piece::Weight => None,
                };
                if let Some(values) = values {
                    params.set(id, values)?;
                }
            }
        }
        Ok(())
    }

    /// Copies low-rank matrices, scales and neurons beside a reference into the form in which they are
    /// written to a file; `None` without any.
    pub(crate) fn layer_recovery(&self, params: &Params) -> Result<Option<LayerRecovery>> {
        let mut all = LayerRecovery::default();
        for (projection, ids) in self.ids.iter() {
            let get = |id: Option<ParamId>| id.map(|id| params.get(id)).transpose();
            let rank = ids.a.map_or(0, |a| params.layout.spec(a).shape[0]);
            let found = ProjectionRecovery {
                rank,
                a: get(ids.a)?.unwrap_or_default(),
                b: get(ids.b)?.unwrap_or_default(),
                row_scale: get(ids.row)?,
                col_scale: get(ids.col)?,
                neurons: match ids.neurons {
                    None => None,
                    Some(id) => {
                        let shape = params.layout.spec(id).shape.clone();
                        Some(StoredTensor { shape, values: params.get(id)? })
                    }
                },
            };
            all[projection] = (found != ProjectionRecovery::default()).then_some(found);
        }
        Ok((all != LayerRecovery::default()).then_some(all))
    }

    /// Copies all that is trained of this layer into the form in which it is written to a file.
    pub(crate) fn to_recovery(&self, params: &Params) -> Result<Recovery> {
        let mut all = Recovery::default();
        all.layers.extend(self.layer_recovery(params)?.map(|found| (self.layer, found)));
        for id in self.ids.values().filter_map(|ids| ids.weight) {
            let spec = params.layout.spec(id);
            all.insert_trained(&spec.name, &spec.shape, params.get(id)?)?;
        }
        Ok(all)
    }

    /// Copies the values of all pieces.
    pub(crate) fn pieces(&self, params: &Params) -> Result<PerProjection<Pieces>> {
        PerProjection::try_from_fn(|projection| {
            self.ids[projection].try_map(|_, &id| Ok(params.view(id)?.f_detach_copy()?))
        })
    }

    /// Writes one projection's effective weight into `mlp`, from the reference's float32 weight `(out, in)`.
    pub(crate) fn merge(
        &self,
        projection: Projection,
        layout: &Layout,
        flat: &Tensor,
        reference: Option<&Tensor>,
        mlp: &Mlp,
    ) -> Result<()> {
        let pieces = self.ids[projection].try_map(|_, &id| layout.view(flat, id))?;
        let mut place = mlp.weight(projection)?;
        if place.f_kind()? == Kind::Float {
            return self.form.effective_into(&mut place, reference, &pieces);
        }
        let mut effective = Tensor::f_zeros(place.size(), (Kind::Float, place.device()))?;
        self.form.effective_into(&mut effective, reference, &pieces)?;
        place.f_copy_(&effective)?;
        Ok(())
    }
}

/// Whether every value is a finite number.
pub(crate) fn all_finite(flat: &Tensor) -> Result<bool> {
    // A sum of a vector with a NaN or an infinity is not finite; one of finite values overflows float64
    // never.
    let sum = flat.f_sum(Kind::Double)?;
    Ok(to_vec(&sum)?.iter().all(|v| v.is_finite()))
}
