//! What of a model is trained, told by configuration, plan and options before anything is loaded.

use std::collections::BTreeSet;

use sharp_model::{ModelConfig, Plan, Projection, Treatment};

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
}

impl<'a> Outline<'a> {
    pub(super) fn new(config: &'a ModelConfig, plan: &'a Plan, options: &FinetuneOptions) -> Self {
        let layers = config.num_hidden_layers;
        let mlps = trained_mlp_layers(plan, layers, options.train_mlps);
        let follows = |t: &Treatment| t.reference().is_some_and(|reference| mlps.contains(&reference));
        let trains = |t: &Treatment| options.train_norms || form(t).is_some() || follows(t);
        let changes = plan.changes.iter().filter(|change| trains(&change.treatment));
        let first = changes.map(|change| change.layer).chain(mlps.iter().copied()).min().unwrap_or(layers);
        let changed = plan.changes.iter().map(|change| change.layer).fold(first, usize::min);
        let trained = plan.stored_parameters(config) + mlps.len() as u64 * config.mlp_parameters_per_layer();
        Self { config, plan, mlps, first, changed, trained }
    }

    /// Counts the layers whose MLP gives gradients of its weights or of recovery parameters.
    pub(super) fn trained_layers(&self) -> usize {
        let follows = |t: &Treatment| t.reference().is_some_and(|reference| self.mlps.contains(&reference));
        let recovers = |t: &Treatment| form(t).is_some() || follows(t);
        self.mlps.len() + self.plan.changes.iter().filter(|change| recovers(&change.treatment)).count()
    }

    /// Counts the MLP weights that a changed layer computes with.
    pub(super) fn effective_mlp(&self, treatment: &Treatment) -> u64 {
        let of = |projection| {
            let (out, input) = treatment.shape(projection, self.config);
            out as u64 * input as u64
        };
        Projection::ALL.into_iter().map(of).sum()
    }

    /// Returns the neurons of the widest MLP.
    pub(super) fn widest_mlp(&self) -> u64 {
        let of = |treatment: &Treatment| treatment.shape(Projection::Gate, self.config).0;
        let changed = self.plan.changes.iter().map(|change| of(&change.treatment));
        changed.fold(self.config.intermediate_size, usize::max) as u64
    }
}
