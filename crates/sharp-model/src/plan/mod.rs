//! The plan: what each changed layer has in place of its MLP, and why.
//!
//! A plan is a TOML file that a person may read and edit; inside a compact checkpoint it is the
//! `sharp_config` of `config.json`. It holds no tensors.

mod estimate;
mod file;
mod treatment;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::error::{Error, Result};

pub use estimate::Estimate;
pub use treatment::{Ranks, Repair, Scales, Treatment};

/// The plan version this crate reads and writes.
pub const PLAN_VERSION: u32 = 1;

/// One layer that does not keep its whole MLP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerChange {
    /// The layer, from 0.
    pub layer: usize,
    /// What it has in place of its MLP.
    pub treatment: Treatment,
    /// Why, in plain words, with the numbers it was decided by.
    pub reason: String,
}

impl LayerChange {
    /// A change without a reason.
    pub fn new(layer: usize, treatment: Treatment) -> Self {
        Self { layer, treatment, reason: String::new() }
    }

    /// A layer that runs with `reference`'s MLP.
    pub fn share(layer: usize, reference: usize, repair: Repair) -> Self {
        Self::new(layer, Treatment::Share { reference, repair })
    }

    /// A layer that runs with low-rank matrices alone.
    pub fn low_rank(layer: usize, ranks: Ranks) -> Self {
        Self::new(layer, Treatment::LowRank { ranks })
    }

    /// A layer that keeps `neurons` of its MLP's neurons.
    pub fn prune(layer: usize, neurons: usize) -> Self {
        Self::new(layer, Treatment::Prune { neurons })
    }

    /// A layer without an MLP.
    pub fn drop(layer: usize) -> Self {
        Self::new(layer, Treatment::Drop)
    }

    /// The same with a reason.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }
}

/// What a model's layers have in place of their MLPs. Layers that are not named keep theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "file::PlanFile", into = "file::PlanFile")]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// What decided it: a strategy's name, or `explicit`.
    pub strategy: String,
    /// The layers that change, in any order.
    pub changes: Vec<LayerChange>,
}

impl Plan {
    /// A plan of this version.
    pub fn new(strategy: impl Into<String>, changes: Vec<LayerChange>) -> Self {
        Self { version: PLAN_VERSION, strategy: strategy.into(), changes }
    }

    /// What changes in a layer; `None` for a layer that keeps its MLP.
    pub fn change(&self, layer: usize) -> Option<&LayerChange> {
        self.changes.iter().find(|c| c.layer == layer)
    }

    /// What a layer has in place of its MLP; `None` for a layer that keeps its MLP.
    pub fn treatment(&self, layer: usize) -> Option<Treatment> {
        self.change(layer).map(|c| c.treatment)
    }

    /// Whether a layer keeps its whole MLP.
    pub fn is_unchanged(&self, layer: usize) -> bool {
        self.change(layer).is_none()
    }

    /// The layers whose MLPs other layers run with.
    pub fn references(&self) -> BTreeSet<usize> {
        self.changes.iter().filter_map(|c| c.treatment.reference()).collect()
    }

    /// The same plan without anything trained, the baseline: see [`Treatment::untrained`].
    #[must_use]
    pub fn untrained(mut self) -> Self {
        for change in &mut self.changes {
            change.treatment = change.treatment.untrained();
        }
        self
    }

    /// Checks that the plan can be carried out on a model.
    ///
    /// # Errors
    /// [`Error::Plan`] for the first fault: an unknown version, a layer out of range or named twice, a
    /// reference that does not keep its own MLP, ranks above `min(d, f)` or of nothing, or neurons that the
    /// MLP has not.
    pub fn validate(&self, config: &ModelConfig) -> Result<()> {
        check_version(self.version)?;
        let mut changed = BTreeSet::new();
        for change in &self.changes {
            if !changed.insert(change.layer) {
                return Err(Error::plan(Some(change.layer), "named twice"));
            }
        }
        for LayerChange { layer, treatment, .. } in &self.changes {
            let check = check_layer(*layer, config)
                .and_then(|()| treatment.check_ranks())
                .and_then(|()| check_treatment(*layer, treatment, config))
                .and_then(|()| match treatment.reference() {
                    Some(r) if changed.contains(&r) => {
                        Err(format!("its reference {r} is a target too; a reference must keep its own MLP"))
                    }
                    _ => Ok(()),
                });
            check.map_err(|what| Error::plan(Some(*layer), what))?;
        }
        Ok(())
    }
}

fn check_version(version: u32) -> Result<()> {
    match version {
        PLAN_VERSION => Ok(()),
        _ => {
            let what = format!("version {version}; this program reads version {PLAN_VERSION}");
            Err(Error::plan(None, what))
        }
    }
}

fn check_layer(layer: usize, config: &ModelConfig) -> std::result::Result<(), String> {
    match config.num_hidden_layers {
        layers if layer < layers => Ok(()),
        layers => Err(format!("the model has layers 0 to {}", layers - 1)),
    }
}

/// Checks what depends on the model's sizes.
fn check_treatment(
    layer: usize,
    treatment: &Treatment,
    config: &ModelConfig,
) -> std::result::Result<(), String> {
    let most = config.hidden_size.min(config.intermediate_size);
    if let Some((projection, rank)) = treatment.ranks().into_iter().find(|&(_, rank)| rank > most) {
        return Err(format!("rank {rank} of {} is above min(d, f) = {most}", projection.name()));
    }
    match *treatment {
        Treatment::Share { reference, .. } if reference == layer => Err("its reference is itself".into()),
        Treatment::Share { repair: Repair::Neurons { neurons }, .. } | Treatment::Prune { neurons }
            if !(1..=config.intermediate_size).contains(&neurons) =>
        {
            Err(format!(
                "keeps {neurons} neurons; the MLP has {}, and at least one must stay",
                config.intermediate_size
            ))
        }
        Treatment::Share { repair: Repair::Neurons { .. }, .. } | Treatment::Prune { .. }
            if config.mlp_bias =>
        {
            Err(format!("form `{}` is for MLPs without biases, and this model's have some", treatment.form()))
        }
        Treatment::Share { reference, .. } => {
            check_layer(reference, config).map_err(|what| format!("reference {reference}: {what}"))
        }
        Treatment::Prune { .. } | Treatment::LowRank { .. } | Treatment::Drop => Ok(()),
    }
}

/// The rank at which low-rank matrices on all three projections cost the fraction `rho` of one MLP:
/// `rho = r (d + f) / (d f)`. The paper's figures follow from 0.134.
pub fn rank_for_rho(config: &ModelConfig, rho: f64) -> usize {
    let (d, f) = (config.hidden_size as f64, config.intermediate_size as f64);
    let most = config.hidden_size.min(config.intermediate_size);
    let rank = (rho * d * f / (d + f)).round();
    if rank.is_finite() { (rank.max(1.0) as usize).min(most) } else { 1 }
}
