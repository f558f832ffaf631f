//! The compressed model in training, with its replicas on the worker threads.
//!
//! Where the numbers are, and what is made of what:
//!
//! ```text
//! params     flat, exact; the optimiser moves it
//!   | round()             a copy with rounded matrices where a runtime file is repaired, else no copy
//! effective  flat
//!   | views               norms of the blocks and of the head; references that are trained
//!   | merge()             each projection of a trained layer, from its pieces and its reference;
//!                         stored MLPs as they are
//! mlps       by layer     effective weights, in the products' number type
//!   | shallow clones
//! model's blocks, and through them every replica
//!
//! references by layer     float32 weights of the MLPs that other layers use: frozen, or views of `effective`
//! stored_mlps by layer    parameters of the stored MLPs that are trained (a subset of the layers of `mlps`)
//! replaced                parameters that take the place of a tensor of the original in the recovery file
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use sharp_model::{PerProjection, Projection, Recovery};
use sharp_quant::{PackedFormat, PackedRef, ScaleRule};
use tch::Tensor;

use super::replica::Replica;
use super::sequences::Sequences;
use crate::error::Result;
use crate::gradient_order::GradientOrder;
use crate::head::LossSums;
use crate::mlp::Mlp;
use crate::params::{Layout, ParamId, Params};
use crate::pool::Pool;
use crate::tensors::{from_f32, size, to_vec};
use crate::trained_layer::TrainedLayer;

/// The compressed model in training. See the module for how its tensors depend on each other.
pub(super) struct Student {
    /// What the optimiser moves.
    pub(super) params: Params,
    /// What the model computes with: the same memory, or, where matrices are rounded, a copy with those
    /// rounded.
    pub(super) effective: Params,
    /// The matrices that are rounded, and to what.
    pub(super) rounded: Vec<(ParamId, PackedFormat)>,
    pub(super) layout: Arc<Layout>,
    /// The layers that have recovery parameters.
    pub(super) layers: Vec<TrainedLayer>,
    /// Float32 weights of the MLPs that other layers use, by layer.
    pub(super) references: BTreeMap<usize, PerProjection<Tensor>>,
    /// Effective weights of every layer whose MLP is made of parameters, by layer.
    pub(super) mlps: BTreeMap<usize, Mlp>,
    /// Stored MLPs that are trained, by layer.
    pub(super) stored_mlps: BTreeMap<usize, PerProjection<ParamId>>,
    /// Parameters that are whole tensors of the compressed model: norms, stored MLPs, what pruned MLPs keep.
    pub(super) replaced: Vec<ParamId>,
    /// The lowest layer that each parameter is used in.
    pub(super) lowest: Arc<Vec<usize>>,
    /// Sequences that go through the model together.
    pub(super) at_once: usize,
    pub(super) pool: Pool<Replica>,
    /// Gains, gates and norms of reused weights, which no plan or file can name.
    pub(super) reuse_parameters: usize,
}

impl Student {
    /// Computes the effective weights from the parameters.
    pub(super) fn merge(&self) -> Result<()> {
        self.round()?;
        let mut items = Vec::new();
        for layer in &self.layers {
            let mlp = &self.mlps[&layer.layer];
            let reference = layer.reference.map(|r| &self.references[&r]);
            for projection in Projection::ALL {
                let reference = reference.map(|weights| weights[projection].shallow_clone());
                items.push((layer.clone(), projection, reference, mlp.shallow_clone()));
            }
        }
        self.pool.map("merging weights", items, |replica, (layer, projection, reference, mlp)| {
            layer.merge(projection, &replica.layout, &replica.values, reference.as_ref(), &mlp)
        })?;
        for (layer, ids) in &self.stored_mlps {
            for (projection, &id) in ids.iter() {
                self.mlps[layer].weight(projection)?.f_copy_(&self.effective.view(id)?)?;
            }
        }
        Ok(())
    }

    /// Rounds the matrices that the runtime file stores in few bits. Gradients are taken at the rounded
    /// values and applied to the exact ones (the straight-through estimator of Bengio et al., 2013).
    fn round(&self) -> Result<()> {
        if self.rounded.is_empty() {
            return Ok(());
        }
        let mut to = self.effective.flat.shallow_clone();
        to.f_copy_(&self.params.flat)?;
        let item = |&(id, format): &(ParamId, PackedFormat)| Ok((self.effective.view(id)?, format));
        let items = self.rounded.iter().map(item).collect::<Result<Vec<_>>>()?;
        self.pool.map("rounding weights", items, move |_, (matrix, format)| round(format, matrix))?;
        Ok(())
    }

    /// Computes the gradient `(total)` of the mean loss over the counted tokens of a batch, and the loss's
    /// sums.
    pub(super) fn gradient(&self, batch: Vec<Sequences>) -> Result<(Tensor, LossSums)> {
        let counted: usize = batch.iter().map(|s| s.positions.len()).sum();
        let scale = 1.0 / counted.max(1) as f64;
        let total = self.layout.zeros(self.params.flat.device())?;
        let counting = batch.into_iter().filter(|s| !s.positions.is_empty());
        let batch = Sequences::stacked(counting, self.at_once)?;
        let order = GradientOrder::new(Arc::clone(&self.lowest), batch.len());
        let items = batch
            .into_iter()
            .enumerate()
            .map(|(i, sequences)| (sequences, order.slot(i), total.shallow_clone()))
            .collect();
        let mut sums = LossSums::default();
        self.pool.run(
            "training",
            items,
            move |replica, (sequences, slot, total)| replica.differentiate(&sequences, scale, &slot, &total),
            |part| {
                sums.add(&part);
                Ok(())
            },
        )?;
        Ok((total, sums))
    }

    /// Sums the loss over sequences that are measured, not trained on.
    pub(super) fn measure(&self, measured: &[Sequences]) -> Result<LossSums> {
        let mut sums = LossSums::default();
        let counting = measured.iter().filter(|s| !s.positions.is_empty()).cloned();
        let items = Sequences::stacked(counting, self.at_once)?;
        self.pool.run(
            "measuring",
            items,
            |replica, sequences| replica.measure(&sequences),
            |part| {
                sums.add(&part);
                Ok(())
            },
        )?;
        Ok(sums)
    }

    /// Copies everything trained into the form in which it is written to a file, rounded where the model
    /// computes so; `None` for a model that no plan can name.
    pub(super) fn recovery(&self) -> Result<Option<Recovery>> {
        if self.reuse_parameters > 0 {
            return Ok(None);
        }
        let mut all = Recovery::default();
        for layer in &self.layers {
            all.layers.extend(layer.layer_recovery(&self.effective)?.map(|found| (layer.layer, found)));
        }
        for &id in &self.replaced {
            let spec = self.params.layout.spec(id);
            all.insert_trained(&spec.name, &spec.shape, self.effective.get(id)?)?;
        }
        Ok(Some(all))
    }
}

/// Rounds a matrix `(rows, cols)` in place, as the quantiser does without calibration.
fn round(format: PackedFormat, mut matrix: Tensor) -> Result<()> {
    let (rows, cols) = matrix.size2()?;
    let (rows, cols) = (size(rows), size(cols));
    let mut values = to_vec(&matrix)?;
    let packed = sharp_quant::pack_f32(format, ScaleRule::Max, rows, cols, &values)?;
    sharp_quant::unpack(PackedRef::new(format, rows, cols, &packed)?, &mut values)?;
    matrix.f_copy_(&from_f32(&values, &[rows, cols], matrix.device())?)?;
    Ok(())
}
