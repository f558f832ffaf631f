//! What of a model is trained, told by configuration, plan and options before anything is loaded.

use std::collections::{BTreeMap, BTreeSet};

use sharp_model::{LayerChange, ModelConfig, Plan, Projection, Treatment};

use super::options::FinetuneOptions;
use super::parameters::trained_mlp_layers;
use crate::forms::form;

/// The outline of a fine-tuning.
pub(super) struct Outline<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) plan: &'a Plan,
    /// The layers whose stored MLP is trained.
    pub(super) mlps: BTreeSet<usize>,
    /// The first layer with something to train, which is the first to keep what its backward pass needs.
    pub(super) first: usize,
    /// The first layer that differs from the original's.
    pub(super) changed: usize,
    /// Values trained, norms aside.
    pub(super) trained: u64,
    /// Pruned layers that run the neurons of a pool, with its neurons.
    pooled: BTreeMap<usize, usize>,
    /// Layers that run twice.
    twice: &'a BTreeSet<usize>,
}

impl<'a> Outline<'a> {
    pub(super) fn new(config: &'a ModelConfig, plan: &'a Plan, options: &'a FinetuneOptions) -> Self {
        let layers = config.num_hidden_layers;
        let mlps = trained_mlp_layers(plan, layers, options.train_mlps);
        let follows = |t: &Treatment| t.reference().is_some_and(|reference| mlps.contains(&reference));
        let trains = |t: &Treatment| options.train_norms || form(t).is_some() || follows(t);
        let changes = plan.changes.iter().filter(|change| trains(&change.treatment));
        let twice = &options.reuse.twice;
        let others = mlps.iter().chain(twice).copied();
        let first = changes.map(|change| change.layer).chain(others).min().unwrap_or(layers);
        let changed = plan.changes.iter().map(|change| change.layer).fold(first, usize::min);
        let pooled = options.reuse.pooled(plan);
        // Each layer of a pool has a gain for each of its neurons; a second run has norms and gates.
        let gains = pooled.values().sum::<usize>() as u64;
        let second = (4 * config.hidden_size * twice.len()) as u64;
        let stored = plan.stored_parameters(config) + mlps.len() as u64 * config.mlp_parameters_per_layer();
        Self { config, plan, mlps, first, changed, trained: stored + gains + second, pooled, twice }
    }

    /// Counts the runs of layers whose MLP gives gradients of its weights or of recovery parameters.
    pub(super) fn trained_layers(&self) -> usize {
        let follows = |t: &Treatment| t.reference().is_some_and(|reference| self.mlps.contains(&reference));
        let recovers = |t: &Treatment| form(t).is_some() || follows(t);
        let changed = self.plan.changes.iter().filter(|change| recovers(&change.treatment));
        let trained: BTreeSet<usize> =
            changed.map(|change| change.layer).chain(self.mlps.iter().copied()).collect();
        trained.len() + trained.intersection(self.twice).count()
    }

    /// Counts the runs of layers that a backward pass goes through.
    pub(super) fn backward_layers(&self) -> usize {
        self.config.num_hidden_layers - self.first + self.twice.len()
    }

    /// Whether some layer runs twice.
    pub(super) fn twice(&self) -> bool {
        !self.twice.is_empty()
    }

    /// Counts the MLP weights that the layers with recovery parameters compute with.
    pub(super) fn effective_mlps(&self) -> u64 {
        let of = |change: &LayerChange| -> u64 {
            let treatment = self.runs(change);
            let weights = |projection| {
                let (out, input) = treatment.shape(projection, self.config);
                out as u64 * input as u64
            };
            Projection::ALL.into_iter().map(weights).sum()
        };
        self.plan.changes.iter().filter(|change| form(&change.treatment).is_some()).map(of).sum()
    }

    /// Returns what a changed layer runs: its own treatment, or all neurons of its pool.
    fn runs(&self, change: &LayerChange) -> Treatment {
        let pool = self.pooled.get(&change.layer);
        pool.map_or(change.treatment, |&neurons| Treatment::Prune { neurons })
    }

    /// Returns the neurons of the widest MLP.
    pub(super) fn widest_mlp(&self) -> u64 {
        let of = |change| self.runs(change).shape(Projection::Gate, self.config).0;
        let changed = self.plan.changes.iter().map(of);
        changed.fold(self.config.intermediate_size, usize::max) as u64
    }
}
