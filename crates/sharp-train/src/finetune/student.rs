//! The compressed model in training, with its replicas on the worker threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use sharp_model::packed::PackedFile;
use sharp_model::recovery::StoredTensor;
use sharp_model::{ModelSource, Plan, Projection, Recovery, Repair, Treatment};
use sharp_quant::{PackedFormat, PackedRef, ScaleRule};
use tch::{Kind, Tensor};

use super::FinetuneOptions;
use super::replica::{Replica, Sequences, Teacher};
use super::trained::Trained;
use super::turns::{Turns, lowest_layers};
use crate::attention::Attention;
use crate::block::{Block, BlockTrain};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::head::{Head, LossSums};
use crate::llama::{Embedding, Llama};
use crate::mlp::{Mlp, index};
use crate::params::{Group, Layout, ParamId, ParamSpec, Params};
use crate::pool::Pool;
use crate::target::{Recovered, reference_weights, saved_layers};
use crate::tensors::{from_f32, to_vec};
use crate::weights::Weights;

/// The compressed model in training.
pub(super) struct Student {
    /// What the optimiser moves.
    pub(super) params: Params,
    /// What the model computes with: the same memory, or, where matrices are rounded, those rounded and the rest a copy.
    effective: Params,
    /// The matrices that are rounded, and to what.
    rounded: Vec<(ParamId, PackedFormat)>,
    layout: Arc<Layout>,
    targets: Vec<Recovered>,
    /// Float32 weights of the layers that are shared, by layer; views of the parameters where those are trained.
    references: BTreeMap<usize, [Tensor; 3]>,
    /// The effective weights of the targets and, where shared MLPs are trained, of those, by layer.
    merged: BTreeMap<usize, Mlp>,
    /// Trained tensors that take the place of the base's: norms, shared MLP weights, and what pruned MLPs keep.
    replaced: Vec<ParamId>,
    owned: BTreeMap<usize, [ParamId; 3]>,
    /// The lowest layer that each parameter is used in.
    lowest: Arc<Vec<usize>>,
    /// Sequences that go through the model together.
    pub(super) at_once: usize,
    pool: Pool<Replica>,
}

impl Student {
    pub(super) fn new(
        source: &ModelSource,
        plan: &Plan,
        recovery: Option<&Recovery>,
        runtime: Option<&PackedFile>,
        positions: usize,
        compute: &Compute,
        options: &FinetuneOptions,
    ) -> Result<Self> {
        let original = Llama::load(source, compute, positions)?;
        let mut model = original.share();
        let weights = match runtime {
            None => Weights::of(source),
            Some(runtime) => Weights::rounded(source, runtime, plan)?,
        };
        if weights.are_rounded() {
            model.embedding = Embedding::load(weights, compute.device)?;
            model.head = Head::load(weights, compute)?;
            for (layer, block) in model.blocks.iter_mut().enumerate() {
                block.attention = Attention::load(weights, layer, compute)?;
                if plan.is_unchanged(layer) && block.mlp.is_some() {
                    block.mlp = Some(Mlp::load_stored(weights, layer, compute)?);
                }
            }
        }
        let trained = Trained::new(source, plan, &original, options)?;
        let params = trained.begin(source, plan, recovery, &original, options.seed, compute)?;
        let Trained { layout, targets, owned, places, final_norm, first } = trained;
        let stored = |group| matches!(group, Group::Shared | Group::Norm | Group::Pruned);
        let replaced = layout.specs().iter().filter(|spec| stored(spec.group));
        let replaced = replaced.filter_map(|spec| layout.find(&spec.name)).collect();

        let format = |spec: &ParamSpec| Some((layout.find(&spec.name)?, weights.format(&spec.name)?));
        let rounded: Vec<(ParamId, PackedFormat)> = layout.specs().iter().filter_map(format).collect();
        let flat = match rounded.is_empty() {
            false => layout.zeros(compute.device)?,
            true => params.flat.shallow_clone(),
        };
        let effective = Params { layout: params.layout.clone(), flat };

        // Weights of its own for every layer whose MLP is made of parameters.
        let mut references = BTreeMap::new();
        let mut merged = BTreeMap::new();
        for target in &targets {
            let planned = plan.treatment(target.layer);
            let whole = original.mlp(target.layer)?;
            merged.insert(target.layer, planned.map_or_else(|| whole.blank(), |t| whole.blank_for(&t))?);
            if let Some(reference) = target.reference {
                let weights = match owned.get(&reference) {
                    Some([gate, up, down]) => {
                        [effective.view(*gate)?, effective.view(*up)?, effective.view(*down)?]
                    }
                    None => reference_weights(model.mlp(reference)?)?,
                };
                references.insert(reference, weights);
            }
        }
        for &layer in owned.keys() {
            merged.insert(layer, original.mlp(layer)?.blank()?);
        }
        for change in &plan.changes {
            let Some(block) = model.blocks.get_mut(change.layer) else { continue };
            match change.treatment {
                Treatment::Drop => block.mlp = None,
                Treatment::Share { reference, repair: Repair::None } => {
                    let own = original.mlp(change.layer)?;
                    block.mlp = Some(shared_directly(original.mlp(reference)?, own));
                }
                Treatment::Share { repair: Repair::LowRank { .. }, .. }
                | Treatment::LowRank { .. }
                | Treatment::Prune { .. } => {}
            }
        }
        for (&layer, mlp) in &merged {
            if let Some(block) = model.blocks.get_mut(layer) {
                block.mlp = Some(mlp.share());
            }
        }
        for (block, train) in model.blocks.iter_mut().zip(&places) {
            if let Some(id) = train.input_norm {
                block.input_norm = effective.view(id)?;
            }
            if let Some(id) = train.mlp_norm {
                block.mlp_norm = effective.view(id)?;
            }
        }
        if let Some(id) = final_norm {
            model.head.norm = effective.view(id)?;
        }

        // The original is needed from the first layer that differs, trained or not.
        let differs = match weights.are_rounded() {
            true => 0,
            false => plan.changes.iter().map(|t| t.layer).chain([first]).min().unwrap_or(first),
        };
        let layout = Arc::new(layout);
        let mut replicas = Vec::new();
        for _ in 0..compute.threads {
            let teacher = options.loss.needs_teacher().then(|| Teacher {
                from: differs,
                embedding: weights.are_rounded().then(|| original.embedding.share()),
                blocks: original.blocks.iter().skip(differs).map(Block::share).collect(),
                head: original.head.share(),
            });
            replicas.push(Replica {
                model: model.share(),
                teacher,
                train: places.iter().map(BlockTrain::share).collect(),
                final_norm,
                first,
                layout: Arc::clone(&layout),
                values: effective.flat.shallow_clone(),
                loss: options.loss,
            });
        }
        let lowest = Arc::new(lowest_layers(&places, &layout));
        let pool = Pool::new(replicas)?;
        Ok(Self {
            params,
            effective,
            rounded,
            layout,
            targets,
            references,
            merged,
            replaced,
            owned,
            lowest,
            at_once: compute.sequences_at_once(positions),
            pool,
        })
    }

    /// Puts the parameters into the effective weights.
    pub(super) fn merge(&self) -> Result<()> {
        self.round()?;
        let mut items = Vec::new();
        for target in &self.targets {
            let Some(mlp) = self.merged.get(&target.layer) else { continue };
            for projection in Projection::ALL {
                let reference = target
                    .reference
                    .and_then(|r| self.references.get(&r))
                    .and_then(|w| w.get(index(projection)))
                    .map(Tensor::shallow_clone);
                items.push((target.share(), projection, reference, mlp.share()));
            }
        }
        self.pool.map("merging weights", items, |replica, (target, projection, reference, mlp)| {
            target.merge(projection, &replica.layout, &replica.values, reference.as_ref(), &mlp)
        })?;
        for (layer, ids) in &self.owned {
            let Some(mlp) = self.merged.get(layer) else { continue };
            for (projection, id) in Projection::ALL.into_iter().zip(ids) {
                mlp.weight(projection)?.f_copy_(&self.effective.view(*id)?)?;
            }
        }
        Ok(())
    }

    /// Rounds the matrices that the runtime file stores in few bits to what it will hold. Gradients are taken at the rounded
    /// values and moved to the exact ones as they are (the straight-through estimator of Bengio et al., 2013).
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

    /// The gradient `(total)` of the mean loss over the counted tokens of a batch, and the loss's sums.
    pub(super) fn gradient(&self, batch: Vec<Sequences>) -> Result<(Tensor, LossSums)> {
        let counted: usize = batch.iter().map(|s| s.positions.len()).sum();
        let scale = 1.0 / counted.max(1) as f64;
        let total = self.layout.zeros(self.params.flat.device())?;
        let counting = batch.into_iter().filter(|s| !s.positions.is_empty());
        let batch = Sequences::stacked(counting, self.at_once)?;
        let turns = Turns::new(Arc::clone(&self.lowest), batch.len());
        let items = batch
            .into_iter()
            .enumerate()
            .map(|(i, sequences)| (sequences, turns.of(i), total.shallow_clone()))
            .collect();
        let mut sums = LossSums::default();
        self.pool.run(
            "training",
            items,
            move |replica, (sequences, turn, total)| replica.differentiate(&sequences, scale, &turn, &total),
            |part| {
                sums.add(&part);
                Ok(())
            },
        )?;
        Ok((total, sums))
    }

    /// The loss's sums over held-out sequences.
    pub(super) fn measure(&self, held_out: &[Sequences]) -> Result<LossSums> {
        let mut sums = LossSums::default();
        let counting = held_out.iter().filter(|s| !s.positions.is_empty()).cloned();
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

    /// Everything trained, as it is saved: rounded where it is rounded.
    pub(super) fn recovery(&self) -> Result<Recovery> {
        let mut all =
            Recovery { layers: saved_layers(&self.targets, &self.effective)?, ..Recovery::default() };
        for &id in &self.replaced {
            let spec = self.params.layout.spec(id)?;
            let new = StoredTensor { shape: spec.shape.clone(), values: self.effective.get(id)? };
            all.replacements.insert(spec.name.clone(), new);
        }
        Ok(all)
    }
}

/// Rounds a matrix `(rows, cols)` in place, as the quantiser does without calibration.
fn round(format: PackedFormat, mut matrix: Tensor) -> Result<()> {
    let (rows, cols) = matrix.size2()?;
    let (rows, cols) = (usize::try_from(rows).unwrap_or(0), usize::try_from(cols).unwrap_or(0));
    let mut values = to_vec(&matrix)?;
    let packed = sharp_quant::pack_f32(format, ScaleRule::Max, rows, cols, &values)?;
    sharp_quant::unpack(PackedRef::new(format, rows, cols, &packed)?, &mut values)?;
    matrix.f_copy_(&from_f32(&values, &[rows, cols], matrix.device())?)?;
    Ok(())
}

/// A reference's weights with the target's own biases.
fn shared_directly(reference: &Mlp, own: &Mlp) -> Mlp {
    let mut mixed = reference.share();
    mixed.gate_up.bias = own.gate_up.bias.as_ref().map(Tensor::shallow_clone);
    mixed.down.bias = own.down.bias.as_ref().map(Tensor::shallow_clone);
    mixed
}

/// Values for a flat vector from a saved one.
pub(super) fn flat_from(values: &[f32], params: &Params) -> Result<Tensor> {
    from_f32(values, &[params.layout.total()], params.flat.device())?
        .f_to_kind(Kind::Float)
        .map_err(Error::from)
}
