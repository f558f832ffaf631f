//! What is trained, where in the model it belongs, and where it begins.

use std::collections::{BTreeMap, BTreeSet};

use sharp_model::{ModelSource, Plan, Projection, Recovery, Treatment, names};

use super::{COLD, FinetuneOptions, TrainMlps};
use crate::block::BlockTrain;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::llama::Llama;
use crate::mlp::MlpTrain;
use crate::params::{Group, Layout, ParamId, Params};
use crate::start::begin_cold;
use crate::target::Recovered;
use crate::tensors::shape_of;

/// All that is trained.
pub(super) struct Trained {
    pub(super) layout: Layout,
    /// The plan's targets that have parameters, by layer.
    pub(super) targets: Vec<Recovered>,
    /// Stored MLPs, by layer, in the order of [`Projection::ALL`].
    pub(super) owned: BTreeMap<usize, [ParamId; 3]>,
    /// By layer.
    pub(super) places: Vec<BlockTrain>,
    pub(super) final_norm: Option<ParamId>,
    /// The first layer with something to train.
    pub(super) first: usize,
}

impl Trained {
    pub(super) fn new(
        source: &ModelSource,
        plan: &Plan,
        original: &Llama,
        options: &FinetuneOptions,
    ) -> Result<Self> {
        let mut layout = Layout::default();
        let mut targets = Vec::new();
        let layers = original.blocks.len();
        for change in &plan.changes {
            let shape = original.mlp(change.layer)?.blank_for(&change.treatment)?;
            targets.extend(Recovered::register(change, &shape, &mut layout)?);
        }
        targets.sort_by_key(|t| t.layer);

        // Stored MLPs in training, then norms; both replace tensors of the base.
        let mut owned: BTreeMap<usize, [ParamId; 3]> = BTreeMap::new();
        for layer in owned_layers(plan, layers, options.train_mlps) {
            let mut add = |p: Projection| -> Result<ParamId> {
                let shape = shape_of(&original.mlp(layer)?.weight(p)?);
                layout.add(names::mlp_weight(layer, p), &shape, Group::Shared)
            };
            owned.insert(layer, [add(Projection::Gate)?, add(Projection::Up)?, add(Projection::Down)?]);
        }
        let first = targets
            .iter()
            .map(|t| t.layer)
            .chain(owned.keys().copied())
            .chain(plan.changes.iter().filter(|_| options.train_norms).map(|t| t.layer))
            .min()
            .ok_or_else(|| {
                Error::invalid(
                    "nothing to train: the plan has no recovery parameters, and norms and MLPs stay",
                )
            })?;
        let mut places: Vec<BlockTrain> = (0..layers).map(|_| BlockTrain::default()).collect();
        let mut final_norm = None;
        if options.train_norms {
            let d = [source.config().hidden_size];
            for (layer, place) in places.iter_mut().enumerate().skip(first) {
                if layer > first {
                    place.input_norm = Some(layout.add(names::input_norm(layer), &d, Group::Norm)?);
                }
                // Nothing comes after the norm of an MLP that was left out.
                if plan.treatment(layer) != Some(Treatment::Drop) {
                    place.mlp_norm = Some(layout.add(names::mlp_norm(layer), &d, Group::Norm)?);
                }
            }
            final_norm = Some(layout.add(names::FINAL_NORM, &d, Group::Norm)?);
        }
        for target in &targets {
            let shared = target.reference.and_then(|r| owned.get(&r)).copied();
            if let Some(place) = places.get_mut(target.layer) {
                place.mlp = Some(target.train(shared));
            }
        }
        for (&layer, &ids) in &owned {
            if let Some(place) = places.get_mut(layer) {
                place.mlp = Some(MlpTrain::Own(ids));
            }
        }
        Ok(Self { layout, targets, owned, places, final_norm, first })
    }

    /// The values that training begins with: a recovery's, or those of the paper's start.
    pub(super) fn begin(
        &self,
        source: &ModelSource,
        plan: &Plan,
        recovery: Option<&Recovery>,
        original: &Llama,
        seed: u64,
        compute: &Compute,
    ) -> Result<Params> {
        let mut params = Params::zeros(self.layout.clone(), compute.device)?;
        for spec in self.layout.specs() {
            let Some(id) = self.layout.find(&spec.name) else { continue };
            // Base tensors in training begin as the base's.
            if matches!(spec.group, Group::Shared | Group::Norm) {
                params.set(id, &source.tensor(&spec.name)?.f32()?)?;
            }
        }
        for target in &self.targets {
            let planned = plan.change(target.layer);
            if let (None, Some(planned)) = (recovery, planned) {
                debug_assert_eq!(COLD, crate::start::Start::Zero);
                let pieces = begin_cold(planned, original.mlp(target.layer)?, seed, compute)?;
                target.set(&params, &pieces)?;
            }
        }
        if let Some(recovery) = recovery {
            recovery.check(source.config(), plan)?;
            for target in &self.targets {
                if let Some(saved) = recovery.layers.get(&target.layer) {
                    target.set_saved(&mut params, saved)?;
                }
            }
            for (name, new) in &recovery.replacements {
                let id = self.layout.find(name).ok_or_else(|| {
                    Error::invalid(format!(
                        "`{name}` was trained before; train norms and shared weights again"
                    ))
                })?;
                params.set(id, &new.values)?;
            }
        }
        Ok(params)
    }
}

/// The layers whose own MLP is trained.
pub(super) fn owned_layers(plan: &Plan, layers: usize, which: TrainMlps) -> BTreeSet<usize> {
    let shared = plan.references();
    match which {
        TrainMlps::None => BTreeSet::new(),
        TrainMlps::Shared => shared,
        TrainMlps::All => {
            let first = plan.changes.iter().map(|t| t.layer).chain(shared).min().unwrap_or(layers);
            (first..layers).filter(|&layer| plan.is_unchanged(layer)).collect()
        }
    }
}
