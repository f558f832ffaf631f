//! A target layer in training: its recovery parameters' places, and its effective weights made from them.

use sharp_model::recovery::StoredTensor;
use sharp_model::{LayerChange, LayerRecovery, Projection, ProjectionRecovery, Recovery, names};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::forms::{Form, Pieces, form};
use crate::mlp::{Mlp, MlpTrain, PieceIds, index};
use crate::params::{Group, Layout, ParamId, Params};
use crate::tensors::to_vec;

/// One target layer that has recovery parameters.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) layer: usize,
    pub(crate) reference: Option<usize>,
    form: &'static dyn Form,
    ids: [PieceIds; 3],
}

impl Recovered {
    /// Adds a target's parameters to `layout`; `shape` is an MLP of its shape ([`Mlp::blank_for`]). `None` for a target without any: direct sharing, or a removed MLP.
    pub(crate) fn register(target: &LayerChange, shape: &Mlp, layout: &mut Layout) -> Result<Option<Self>> {
        let (layer, treatment) = (target.layer, &target.treatment);
        let Some(form) = form(treatment) else { return Ok(None) };
        let (ranks, scales) = (treatment.ranks(), treatment.scales());
        let mut ids = [PieceIds::default(); 3];
        for projection in Projection::ALL {
            let (out, input) = shape.weight(projection)?.size2()?;
            let (out, input) = (usize::try_from(out).unwrap_or(0), usize::try_from(input).unwrap_or(0));
            let rank = ranks[projection];
            let Some(place) = ids.get_mut(index(projection)) else { continue };
            if treatment.stores_weights() {
                place.own =
                    Some(layout.add(names::mlp_weight(layer, projection), &[out, input], Group::Pruned)?);
            }
            if rank > 0 {
                place.a =
                    Some(layout.add(names::lora_a(layer, projection), &[rank, input], Group::Factor)?);
                place.b = Some(layout.add(names::lora_b(layer, projection), &[out, rank], Group::Factor)?);
            }
            if scales.rows() {
                place.row = Some(layout.add(names::row_scale(layer, projection), &[out], Group::Scale)?);
            }
            if scales.columns() {
                place.col = Some(layout.add(names::col_scale(layer, projection), &[input], Group::Scale)?);
            }
        }
        Ok(Some(Self { layer, reference: treatment.reference(), form, ids }))
    }

    pub(crate) fn share(&self) -> Self {
        Self { layer: self.layer, reference: self.reference, form: self.form, ids: self.ids }
    }

    /// What the backward pass trains of this layer.
    pub(crate) fn train(&self, shared: Option<[ParamId; 3]>) -> MlpTrain {
        MlpTrain::Recovery { form: self.form, ids: self.ids, shared }
    }

    /// Sets the parameters to `pieces`, in the order of [`Projection::ALL`].
    pub(crate) fn set(&self, params: &Params, pieces: &[Pieces; 3]) -> Result<()> {
        for (ids, pieces) in self.ids.iter().zip(pieces) {
            let pairs = [
                (ids.a, &pieces.a),
                (ids.b, &pieces.b),
                (ids.row, &pieces.row),
                (ids.col, &pieces.col),
                (ids.own, &pieces.own),
            ];
            for (id, value) in pairs {
                match (id, value) {
                    (Some(id), Some(value)) => params.view(id)?.f_copy_(value)?,
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

    /// Sets the parameters to saved ones, which [`sharp_model::Recovery::check`] has found to fit.
    pub(crate) fn set_saved(&self, params: &mut Params, saved: &LayerRecovery) -> Result<()> {
        for projection in Projection::ALL {
            let Some(ids) = self.ids.get(index(projection)) else { continue };
            let Some(found) = saved.get(projection) else { continue };
            let pairs = [
                (ids.a, Some(&found.a)),
                (ids.b, Some(&found.b)),
                (ids.row, found.row_scale.as_ref()),
                (ids.col, found.col_scale.as_ref()),
            ];
            for (id, values) in pairs {
                if let (Some(id), Some(values)) = (id, values) {
                    params.set(id, values)?;
                }
            }
        }
        Ok(())
    }

    /// The parameters as they are saved.
    pub(crate) fn saved(&self, params: &Params) -> Result<LayerRecovery> {
        let mut all = LayerRecovery::default();
        for projection in Projection::ALL {
            let Some(ids) = self.ids.get(index(projection)) else { continue };
            let get = |id: Option<ParamId>| id.map(|id| params.get(id)).transpose();
            let rank = match ids.a {
                Some(a) => params.layout.spec(a)?.shape.first().copied().unwrap_or(0),
                None => 0,
            };
            let found = ProjectionRecovery {
                rank,
                a: get(ids.a)?.unwrap_or_default(),
                b: get(ids.b)?.unwrap_or_default(),
                row_scale: get(ids.row)?,
                col_scale: get(ids.col)?,
            };
            if rank > 0 || found.row_scale.is_some() || found.col_scale.is_some() {
                *all.get_mut(projection) = Some(found);
            }
        }
        Ok(all)
    }

    /// All that is trained of this layer, as it is saved.
    pub(crate) fn recovery(&self, params: &Params) -> Result<Recovery> {
        let mut all = Recovery::default();
        let saved = self.saved(params)?;
        if saved != LayerRecovery::default() {
            all.layers.insert(self.layer, saved);
        }
        for id in self.ids.iter().filter_map(|ids| ids.own) {
            let spec = params.layout.spec(id)?;
            let new = StoredTensor { shape: spec.shape.clone(), values: params.get(id)? };
            all.replacements.insert(spec.name.clone(), new);
        }
        Ok(all)
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
        let Some(ids) = self.ids.get(index(projection)) else { return Ok(()) };
        let pieces = ids.pieces(layout, flat)?;
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

/// The float32 weights of the layers that targets refer to.
pub(crate) fn reference_weights(mlp: &Mlp) -> Result<[Tensor; 3]> {
    let get = |p| -> Result<Tensor> { Ok(mlp.weight(p)?.f_to_kind(Kind::Float)?) };
    Ok([get(Projection::Gate)?, get(Projection::Up)?, get(Projection::Down)?])
}

/// The recovery of all of them, by layer.
pub(crate) fn saved_layers(
    targets: &[Recovered],
    params: &Params,
) -> Result<std::collections::BTreeMap<usize, LayerRecovery>> {
    let mut all = std::collections::BTreeMap::new();
    for target in targets {
        let saved = target.saved(params)?;
        if saved != LayerRecovery::default() {
            all.insert(target.layer, saved);
        }
    }
    Ok(all)
}

/// Whether every value is a finite number.
pub(crate) fn all_finite(flat: &Tensor) -> Result<bool> {
    // A sum of a vector with a NaN or an infinity is not finite; one of finite values overflows float64 never.
    let sum = flat.f_sum(Kind::Double)?;
    Ok(to_vec(&sum)?.iter().all(|v| v.is_finite()))
}
