//! Everything that is trained: where it belongs in the model, and the values it begins with.

use std::collections::{BTreeMap, BTreeSet};

use sharp_model::{PerProjection, Plan, Treatment, names};

use sharp_schema::TrainMlps;

use super::options::{FinetuneOptions, StartFrom};
use super::reuse::{NeuronPool, SecondPass};
use crate::block::BlockTrain;
use crate::error::{Error, Result};
use crate::forms::form;
use crate::job::Job;
use crate::llama::Llama;
use crate::mlp_train::MlpTrain;
use crate::params::{Group, Layout, ParamId, Params, relative_rate};
use crate::start::begin_cold;
use crate::tensors::{from_f32, shape_of};
use crate::trained_layer::TrainedLayer;

/// All trained parameters of a model.
pub(super) struct TrainedParameters {
    pub(super) layout: Layout,
    /// The changed layers that have recovery parameters, by layer.
    pub(super) layers: Vec<TrainedLayer>,
    /// Stored MLPs that are trained, by layer.
    pub(super) stored_mlps: BTreeMap<usize, PerProjection<ParamId>>,
    /// Neurons that several layers run.
    pub(super) pools: Vec<NeuronPool>,
    /// Layers that run twice.
    pub(super) second_passes: Vec<SecondPass>,
    /// What is trained of each layer.
    pub(super) places: Vec<BlockTrain>,
    pub(super) final_norm: Option<ParamId>,
    /// The first layer with something to train.
    pub(super) first: usize,
}

impl TrainedParameters {
    /// Registers what the plan and the options ask to train: recovery parameters, stored MLPs, norms, in this
    /// order.
    pub(super) fn register(job: &Job<'_>, original: &Llama, options: &FinetuneOptions) -> Result<Self> {
        let plan = job.plan;
        let mut layout = Layout::default();
        let mut layers = Vec::new();
        let pools = NeuronPool::register(job, original, &options.reuse, &mut layout)?;
        for pool in &pools {
            layers.extend(pool.layers(job, &mut layout)?);
        }
        let pooled = |layer| pools.iter().any(|pool| pool.has(layer));
        for change in plan.changes.iter().filter(|change| !pooled(change.layer)) {
            if let Some(form) = form(&change.treatment) {
                let (config, own) = (job.source.config(), original.mlp(change.layer)?);
                layers.push(TrainedLayer::register(change, form, config, own, &mut layout)?);
            }
        }
        layers.sort_by_key(|t| t.layer);
        let stored_mlps = register_mlps(plan, original, options.train_mlps, &mut layout)?;
        let direct = direct_shares(plan, &stored_mlps);
        let normed = plan.changes.iter().filter(|_| options.train_norms).map(|change| change.layer);
        let first = layers
            .iter()
            .map(|t| t.layer)
            .chain(stored_mlps.keys().copied())
            .chain(direct.keys().copied())
            .chain(options.reuse.twice.iter().copied())
            .chain(normed)
            .min()
            .ok_or_else(|| {
                Error::invalid(
                    "nothing to train: the plan has no recovery parameters, and norms and MLPs stay",
                )
            })?;
        let mut all = Self {
            layout,
            layers,
            stored_mlps,
            pools,
            second_passes: Vec::new(),
            places: original.blocks.iter().map(|_| BlockTrain::default()).collect(),
            final_norm: None,
            first,
        };
        if options.train_norms {
            all.register_norms(plan, job.source.config().hidden_size)?;
        }
        for layer in &all.layers {
            let reference = layer.reference.and_then(|r| all.trained_reference(r));
            all.places[layer.layer].mlp = Some(layer.train(reference));
        }
        for (&layer, &ids) in all.stored_mlps.iter().chain(&direct) {
            all.places[layer].mlp = Some(MlpTrain::Stored(ids));
        }
        let hidden = job.source.config().hidden_size;
        all.second_passes = SecondPass::register(&options.reuse, hidden, &mut all.layout)?;
        Ok(all)
    }

    /// Counts the gains, gates and norms of reused weights.
    pub(super) fn reuse_parameters(&self) -> usize {
        let pooled = |layer: &&TrainedLayer| self.pools.iter().any(|pool| pool.has(layer.layer));
        let gains = self.layers.iter().filter(pooled).filter_map(|layer| layer.ids.down.col);
        let passes = self.second_passes.iter().flat_map(SecondPass::parameters);
        gains.chain(passes).map(|id| self.layout.spec(id).len()).sum()
    }

    /// Returns the parameters of an MLP that other layers use, or of a pool by its first layer.
    pub(super) fn trained_reference(&self, layer: usize) -> Option<PerProjection<ParamId>> {
        let pool = self.pools.iter().find(|pool| pool.home() == layer).map(|pool| pool.ids);
        pool.or_else(|| self.stored_mlps.get(&layer).copied())
    }

    /// Registers the norms from the first trained layer on. That layer's input norm stays: no gradient goes
    /// that far down.
    fn register_norms(&mut self, plan: &Plan, hidden: usize) -> Result<()> {
        let (first, shape) = (self.first, [hidden]);
        for (layer, place) in self.places.iter_mut().enumerate().skip(first) {
            if layer > first {
                place.input_norm = Some(self.layout.add(names::input_norm(layer), &shape, Group::Norm)?);
            }
            // Nothing comes after the norm of an MLP that was left out.
            if plan.treatment(layer) != Some(Treatment::Drop) {
                place.mlp_norm = Some(self.layout.add(names::mlp_norm(layer), &shape, Group::Norm)?);
            }
        }
        self.final_norm = Some(self.layout.add(names::FINAL_NORM, &shape, Group::Norm)?);
        Ok(())
    }

    /// Makes the values that training begins with: the original's for stored MLPs and norms, a recovery's or
    /// the paper's zero start for the rest.
    pub(super) fn initial_values(
        &self,
        job: &Job<'_>,
        from: StartFrom<'_>,
        original: &Llama,
        seed: u64,
    ) -> Result<Params> {
        let mut params = Params::zeros(self.layout.clone(), job.compute.device)?;
        for (id, spec) in self.layout.all() {
            if matches!(spec.group, Group::StoredMlp | Group::Norm) {
                params.set(id, &job.source.tensor(&spec.name)?.f32()?)?;
            }
        }
        for pass in &self.second_passes {
            pass.begin(job, &mut params)?;
        }
        let Some(recovery) = from.recovery() else {
            if !self.pools.is_empty() {
                return Err(Error::invalid(
                    "pools begin with the neurons that a warm-up kept: give its recovery",
                ));
            }
            for layer in &self.layers {
                let change = job.plan.change(layer.layer).expect("a trained layer is changed by the plan");
                let (treatment, own) = (&change.treatment, original.mlp(layer.layer)?);
                layer.set(&params, &begin_cold(treatment, layer, &self.layout, own, seed, &job.compute)?)?;
            }
            return Ok(params);
        };
        recovery.check(job.source.config(), job.plan)?;
        for layer in &self.layers {
            if let Some(saved) = recovery.layers.get(&layer.layer) {
                layer.set_from_recovery(&mut params, saved)?;
            }
        }
        for pool in &self.pools {
            for layer in self.layers.iter().filter(|layer| pool.has(layer.layer)) {
                pool.open(&params, layer)?;
            }
        }
        for (name, (shape, values)) in recovery.trained() {
            if self.place_in_pool(&params, &name, &shape, values)? {
                continue;
            }
            let id = self.layout.find(&name).ok_or_else(|| {
                Error::invalid(format!("`{name}` was trained before; train norms and stored MLPs again"))
            })?;
            params.set(id, values)?;
        }
        Ok(params)
    }

    /// Puts what a pruned layer keeps into its pool; false where it is in none.
    fn place_in_pool(&self, params: &Params, name: &str, shape: &[usize], values: &[f32]) -> Result<bool> {
        let Some((layer, projection)) = names::parse_mlp_weight(name) else { return Ok(false) };
        let Some(pool) = self.pools.iter().find(|pool| pool.has(layer)) else { return Ok(false) };
        pool.place(params, layer, projection, &from_f32(values, shape, params.flat.device())?)?;
        Ok(true)
    }
}

/// Lists the layers that share a trained MLP without repair, with its parameters.
fn direct_shares(
    plan: &Plan,
    stored_mlps: &BTreeMap<usize, PerProjection<ParamId>>,
) -> BTreeMap<usize, PerProjection<ParamId>> {
    let direct = plan.changes.iter().filter(|change| form(&change.treatment).is_none());
    direct
        .filter_map(|change| Some((change.layer, *stored_mlps.get(&change.treatment.reference()?)?)))
        .collect()
}

/// Registers the three weights of each stored MLP that is trained.
fn register_mlps(
    plan: &Plan,
    original: &Llama,
    which: TrainMlps,
    layout: &mut Layout,
) -> Result<BTreeMap<usize, PerProjection<ParamId>>> {
    let mut all = BTreeMap::new();
    for layer in trained_mlp_layers(plan, original.blocks.len(), which) {
        let ids = PerProjection::try_from_fn(|p| {
            let weight = original.mlp(layer)?.weight(p)?;
            let id = layout.add(names::mlp_weight(layer, p), &shape_of(&weight), Group::StoredMlp)?;
            layout.set_rate(id, relative_rate(&weight)?);
            Ok::<_, Error>(id)
        })?;
        all.insert(layer, ids);
    }
    Ok(all)
}

/// Lists the layers whose stored MLP is trained.
pub(super) fn trained_mlp_layers(plan: &Plan, layers: usize, which: TrainMlps) -> BTreeSet<usize> {
    let shared = plan.references();
    match which {
        TrainMlps::None => BTreeSet::new(),
        TrainMlps::Shared => shared,
        TrainMlps::All => {
            // A plan that changes nothing is no reason to begin anywhere but at the bottom.
            let first = plan.changes.iter().map(|change| change.layer).chain(shared).min().unwrap_or(0);
            (first..layers).filter(|&layer| plan.is_unchanged(layer)).collect()
        }
    }
}
