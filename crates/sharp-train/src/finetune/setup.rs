//! Builds the compressed model in training, in four steps whose order matters.
//!
//! 1. The frozen weights are loaded: the shapes of all parameters follow from them.
//! 2. What is trained is registered. The layout must be complete before there is a flat tensor, since a
//!    view's place in it never changes.
//! 3. Effective weights take the place of the frozen ones in the model.
//! 4. Each thread gets a replica, a shallow clone of the model. A tensor that took its place in the model
//!    later would be missing there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sharp_model::{PerProjection, Repair, Treatment};
use sharp_quant::PackedFormat;
use tch::Tensor;

use super::options::{FinetuneOptions, StartFrom};
use super::parameters::TrainedParameters;
use super::replica::{Replica, Teacher};
use super::reuse::SecondPass;
use super::student::Student;
use crate::attention::Attention;
use crate::block::{Block, BlockTrain};
use crate::device::Compute;
use crate::error::Result;
use crate::head::Head;
use crate::job::Job;
use crate::llama::{Embedding, Llama};
use crate::mlp::Mlp;
use crate::params::{Group, Layout, ParamId, Params};
use crate::pool::Pool;
use crate::weights::Weights;

impl Student {
    /// Loads the original and makes the compressed model of it, with everything trained at its first values.
    pub(super) fn new(job: &Job<'_>, from: StartFrom<'_>, options: &FinetuneOptions) -> Result<Self> {
        let Frozen { weights, original, mut model } = Frozen::load(job, from)?;

        let mut trained = TrainedParameters::register(job, &original, options)?;
        let params = trained.initial_values(job, from, &original, options.seed)?;
        let rounded: Vec<(ParamId, PackedFormat)> =
            trained.layout.all().filter_map(|(id, spec)| Some((id, weights.format(&spec.name)?))).collect();
        let flat = match rounded.is_empty() {
            true => params.flat.shallow_clone(),
            false => trained.layout.zeros(job.compute.device)?,
        };
        let effective = Params { layout: params.layout.clone(), flat };

        let references = references(&trained, &model, &effective)?;
        let mlps = effective_mlps(job, &trained, &original)?;
        lay_effective(&mut model, job, &trained, &original, &mlps, &effective)?;
        let teacher_from = match weights.are_rounded() {
            true => 0,
            false => first_changed_layer(job, &trained),
        };
        SecondPass::insert(&trained.second_passes, &mut model.blocks, &mut trained.places, &effective)?;

        let layout = Arc::new(trained.layout.clone());
        let reuse_parameters = trained.reuse_parameters();
        let new_replica = || Replica {
            model: model.shallow_clone(),
            teacher: options.loss.needs_teacher().then(|| Teacher {
                from: teacher_from,
                embedding: weights.are_rounded().then(|| original.embedding.shallow_clone()),
                blocks: original.blocks.iter().skip(teacher_from).map(Block::shallow_clone).collect(),
                head: original.head.shallow_clone(),
            }),
            train: trained.places.clone(),
            final_norm: trained.final_norm,
            first: trained.first,
            layout: Arc::clone(&layout),
            values: effective.flat.shallow_clone(),
            loss: options.loss,
        };
        let pool = Pool::new((0..job.compute.threads).map(|_| new_replica()).collect())?;
        let replaced = |group| matches!(group, Group::StoredMlp | Group::Norm | Group::Pruned);
        Ok(Self {
            lowest: Arc::new(lowest_layers(&trained.places, &layout)),
            replaced: layout.all().filter(|(_, spec)| replaced(spec.group)).map(|(id, _)| id).collect(),
            params,
            effective,
            rounded,
            layout,
            layers: trained.layers,
            references,
            mlps,
            stored_mlps: trained.stored_mlps,
            at_once: job.compute.sequences_at_once(job.train.seq_len),
            pool,
            reuse_parameters,
        })
    }
}

/// Everything that is not trained.
struct Frozen<'a> {
    weights: Weights<'a>,
    /// The original, whose predictions are the teacher's.
    original: Llama,
    /// The model to train: the original, or, onto a runtime file, the weights that it will hold.
    model: Llama,
}

impl<'a> Frozen<'a> {
    fn load(job: &Job<'a>, from: StartFrom<'a>) -> Result<Self> {
        let compute = &job.compute;
        let original = Llama::load(job.source, compute, job.train.seq_len)?;
        let mut model = original.shallow_clone();
        let weights = match from.runtime_file() {
            None => Weights::of(job.source),
            Some(file) => {
                let weights = Weights::rounded(job.source, file, job.plan)?;
                load_rounded(&mut model, weights, job, compute)?;
                weights
            }
        };
        Ok(Self { weights, original, model })
    }
}

/// Puts a runtime file's weights in the place of the original's, except for the MLPs that the plan changes.
fn load_rounded(model: &mut Llama, weights: Weights<'_>, job: &Job<'_>, compute: &Compute) -> Result<()> {
    model.embedding = Embedding::load(weights, compute.device)?;
    model.head = Head::load(weights, compute)?;
    for (layer, block) in model.blocks.iter_mut().enumerate() {
        block.attention = Attention::load(weights, layer, compute)?;
        if job.plan.is_unchanged(layer) && block.mlp.is_some() {
            block.mlp = Some(Mlp::load_stored(weights, layer, compute)?);
        }
    }
    Ok(())
}

/// Collects the float32 weights of the MLPs that other layers use: views of the parameters where these are
/// trained.
fn references(
    trained: &TrainedParameters,
    model: &Llama,
    effective: &Params,
) -> Result<BTreeMap<usize, PerProjection<Tensor>>> {
    let mut all = BTreeMap::new();
    let used: BTreeSet<usize> = trained.layers.iter().filter_map(|layer| layer.reference).collect();
    for reference in used {
        let weights = match trained.trained_reference(reference) {
            Some(ids) => PerProjection::try_from_fn(|p| effective.view(ids[p]))?,
            None => model.mlp(reference)?.float_weights()?,
        };
        all.insert(reference, weights);
    }
    Ok(all)
}

/// Makes an MLP with weights of its own, not yet set, for every layer whose MLP is made of parameters.
fn effective_mlps(
    job: &Job<'_>,
    trained: &TrainedParameters,
    original: &Llama,
) -> Result<BTreeMap<usize, Mlp>> {
    let mut all = BTreeMap::new();
    for layer in &trained.layers {
        let pool = trained.pools.iter().find(|pool| pool.has(layer.layer));
        let treatment = match pool {
            Some(pool) => pool.treatment(),
            None => job.plan.treatment(layer.layer).expect("a trained layer is changed by the plan"),
        };
        all.insert(layer.layer, original.mlp(layer.layer)?.blank_for(&treatment)?);
    }
    for &layer in trained.stored_mlps.keys() {
        all.insert(layer, original.mlp(layer)?.blank()?);
    }
    Ok(all)
}

/// Puts effective MLPs, MLPs shared without repair, norms and the places of dropped MLPs into the model.
fn lay_effective(
    model: &mut Llama,
    job: &Job<'_>,
    trained: &TrainedParameters,
    original: &Llama,
    mlps: &BTreeMap<usize, Mlp>,
    effective: &Params,
) -> Result<()> {
    for (&layer, mlp) in mlps {
        model.blocks[layer].mlp = Some(mlp.shallow_clone());
    }
    for change in &job.plan.changes {
        match change.treatment {
            Treatment::Drop => model.blocks[change.layer].mlp = None,
            // The reference's weights as they are by now: frozen, rounded or trained.
            Treatment::Share { reference, repair: Repair::None } => {
                let mlp = model.mlp(reference)?.with_biases_of(original.mlp(change.layer)?);
                model.blocks[change.layer].mlp = Some(mlp);
            }
            // Made of parameters: among `mlps`.
            Treatment::Share { .. } | Treatment::LowRank { .. } | Treatment::Prune { .. } => {}
        }
    }
    for (block, train) in model.blocks.iter_mut().zip(&trained.places) {
        if let Some(id) = train.input_norm {
            block.input_norm = effective.view(id)?;
        }
        if let Some(id) = train.mlp_norm {
            block.mlp_norm = effective.view(id)?;
        }
    }
    if let Some(id) = trained.final_norm {
        model.head.norm = effective.view(id)?;
    }
    Ok(())
}

/// Finds the first layer that differs from the original, trained or not: below it the two need not be
/// computed twice.
fn first_changed_layer(job: &Job<'_>, trained: &TrainedParameters) -> usize {
    let changed = job.plan.changes.iter().map(|change| change.layer);
    changed.fold(trained.first, usize::min)
}

/// Finds, for each parameter, the lowest layer that adds to its gradient; the number of layers where only the
/// head does.
fn lowest_layers(train: &[BlockTrain], layout: &Layout) -> Vec<usize> {
    let mut lowest = vec![train.len(); layout.specs().len()];
    for (layer, train) in train.iter().enumerate().rev() {
        for id in train.parameters() {
            lowest[id.index()] = layer;
        }
    }
    lowest
}
