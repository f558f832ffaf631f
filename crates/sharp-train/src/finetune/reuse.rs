//! Ways to use weights more than once that no plan names yet: pools of neurons, and layers that run twice.
//!
//! Both begin as the model without them and store next to nothing more. They exist in training alone, to be
//! measured against what plans can say; their result is measured, not written.

use std::collections::{BTreeMap, BTreeSet};

use sharp_model::{PerProjection, Plan, Projection, Treatment, names};
use tch::Tensor;

use crate::block::{Block, BlockTrain, Gates};
use crate::error::{Error, Result};
use crate::forms::{Form, Pooled, Size};
use crate::job::Job;
use crate::llama::Llama;
use crate::params::{Group, Layout, ParamId, Params, relative_rate};
use crate::tensors::{dim, shape_of};
use crate::trained_layer::TrainedLayer;

/// What the learning rate of gains and gates that begin at 0 is multiplied by: they have the way to 1 before
/// them, where other scales begin near their place.
const GAIN_RATE: f64 = 8.0;

/// What is used more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Neighbouring pruned layers that run the neurons of all of them, each with gains of its own. Begins
    /// with gains of 1 for a layer's own neurons and 0 for the others.
    pub pool: Option<usize>,
    /// Layers that run twice in a row, the second time with norms and output gates of their own. Begins with
    /// gates of 0.
    pub twice: BTreeSet<usize>,
}

impl Reuse {
    /// Whether nothing is.
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Lists the layers that are in a pool, with the pool's neurons.
    pub(super) fn pooled(&self, plan: &Plan) -> BTreeMap<usize, usize> {
        let pools = self.pool.map_or_else(Vec::new, |size| pools(plan, size));
        let members = |pool: Vec<(usize, usize)>| {
            let neurons = neurons_of(&pool);
            pool.into_iter().map(move |(layer, _)| (layer, neurons))
        };
        pools.into_iter().flat_map(members).collect()
    }

    /// Checks that the settings fit the plan.
    pub(super) fn check(&self, plan: &Plan, layers: usize) -> Result<()> {
        if let Some(size) = self.pool {
            if size < 2 {
                return Err(Error::invalid(format!(
                    "a pool of {size} layers shares nothing: give 2 or more"
                )));
            }
            if pools(plan, size).is_empty() {
                let what = "no two neighbouring layers are pruned, so there is nothing to pool";
                return Err(Error::invalid(what));
            }
        }
        for &layer in &self.twice {
            if layer >= layers {
                return Err(Error::invalid(format!("layer {layer} of {layers} cannot run twice")));
            }
            if plan.treatment(layer) == Some(Treatment::Drop) {
                return Err(Error::invalid(format!("layer {layer} has no MLP that could run twice")));
            }
        }
        Ok(())
    }
}

/// Neurons that several layers run.
pub(super) struct NeuronPool {
    /// The layers, in order, with the neurons that each brings.
    members: Vec<(usize, usize)>,
    /// Gate and up `(neurons, d)`, down `(d, neurons)`.
    pub(super) ids: PerProjection<ParamId>,
}

impl NeuronPool {
    /// Registers the neurons of each pool that is asked for.
    pub(super) fn register(
        job: &Job<'_>,
        original: &Llama,
        reuse: &Reuse,
        layout: &mut Layout,
    ) -> Result<Vec<Self>> {
        let pool = |members: Vec<(usize, usize)>| {
            let (home, treatment) = (members[0].0, Treatment::Prune { neurons: neurons_of(&members) });
            let ids = PerProjection::try_from_fn(|p| {
                let (out, input) = treatment.shape(p, job.source.config());
                let id = layout.add(pool_name(home, p), &[out, input], Group::Pruned)?;
                layout.set_rate(id, relative_rate(&original.mlp(home)?.weight(p)?)?);
                Ok::<_, Error>(id)
            })?;
            Ok(Self { members, ids })
        };
        reuse.pool.map_or_else(Vec::new, |size| pools(job.plan, size)).into_iter().map(pool).collect()
    }

    /// Returns the first of its layers, by which it is called.
    pub(super) fn home(&self) -> usize {
        self.members[0].0
    }

    /// Returns what its layers have as their MLP.
    pub(super) fn treatment(&self) -> Treatment {
        Treatment::Prune { neurons: neurons_of(&self.members) }
    }

    pub(super) fn has(&self, layer: usize) -> bool {
        self.members.iter().any(|&(member, _)| member == layer)
    }

    /// Registers each layer's gains.
    pub(super) fn layers(&self, job: &Job<'_>, layout: &mut Layout) -> Result<Vec<TrainedLayer>> {
        let (treatment, neurons) = (self.treatment(), neurons_of(&self.members));
        let member = |&(layer, _): &(usize, usize)| {
            let ids = PerProjection::try_from_fn(|projection| {
                let (out, input) = treatment.shape(projection, job.source.config());
                let shapes = Pooled.shapes(&Size { projection, out, input, rank: 0, neurons });
                shapes.try_map(|piece, shape| {
                    let id = layout.add(piece.tensor_name(layer, projection), shape, piece.group())?;
                    layout.set_rate(id, GAIN_RATE);
                    Ok(id)
                })
            })?;
            Ok(TrainedLayer { layer, reference: Some(self.home()), form: &Pooled, ids })
        };
        self.members.iter().map(member).collect()
    }

    /// Puts a weight `(out, in)` that a pruned layer keeps into its place.
    pub(super) fn place(
        &self,
        params: &Params,
        layer: usize,
        projection: Projection,
        weight: &Tensor,
    ) -> Result<()> {
        let (start, len) = self.range(layer)?;
        let along = if projection == Projection::Down { 1 } else { 0 };
        let mut place = params.view(self.ids[projection])?.f_narrow(along, start, len)?;
        if place.size() != weight.size() {
            let what = names::mlp_weight(layer, projection);
            return Err(Error::Shape { what, expected: shape_of(&place), found: shape_of(weight) });
        }
        place.f_copy_(weight)?;
        Ok(())
    }

    /// Returns where a layer's own neurons begin, and how many there are.
    fn range(&self, layer: usize) -> Result<(i64, i64)> {
        let at = self.members.iter().position(|&(member, _)| member == layer);
        let at = at.expect("a layer is asked for in its own pool");
        Ok((dim(neurons_of(&self.members[..at]))?, dim(self.members[at].1)?))
    }

    /// Sets the gains of a layer's own neurons to 1; the others' are 0.
    pub(super) fn open(&self, params: &Params, layer: &TrainedLayer) -> Result<()> {
        let (start, len) = self.range(layer.layer)?;
        if let Some(gains) = layer.ids.down.col {
            let _ = params.view(gains)?.f_narrow(0, start, len)?.f_fill_(1.0)?;
        }
        Ok(())
    }
}

/// Lists the pools: runs of `size` neighbouring pruned layers, each with its neurons. What is left of a run
/// is a pool too, unless it is a single layer.
fn pools(plan: &Plan, size: usize) -> Vec<Vec<(usize, usize)>> {
    let mut pruned: Vec<(usize, usize)> = plan
        .changes
        .iter()
        .filter_map(|change| match change.treatment {
            Treatment::Prune { neurons } => Some((change.layer, neurons)),
            _ => None,
        })
        .collect();
    pruned.sort_unstable();
    let mut all: Vec<Vec<(usize, usize)>> = Vec::new();
    for (layer, neurons) in pruned {
        match all.last_mut() {
            Some(pool) if pool.len() < size && pool.last().is_some_and(|last| last.0 + 1 == layer) => {
                pool.push((layer, neurons));
            }
            _ => all.push(vec![(layer, neurons)]),
        }
    }
    all.retain(|pool| pool.len() > 1);
    all
}

/// Counts the neurons that some layers bring.
fn neurons_of(members: &[(usize, usize)]) -> usize {
    members.iter().map(|(_, neurons)| neurons).sum()
}

fn pool_name(home: usize, projection: Projection) -> String {
    format!("model.layers.{home}.mlp.{}.pool.weight", projection.name())
}

/// A layer's second run.
#[derive(Debug, Clone, Copy)]
pub(super) struct SecondPass {
    layer: usize,
    input_norm: ParamId,
    mlp_norm: ParamId,
    gates: Gates<ParamId>,
}

impl SecondPass {
    /// Registers norms and gates `(hidden)` of each layer that runs twice.
    pub(super) fn register(reuse: &Reuse, hidden: usize, layout: &mut Layout) -> Result<Vec<Self>> {
        let pass = |&layer: &usize| {
            let mut add = |what: &str, rate| {
                let name = format!("model.layers.{layer}.second_pass.{what}.weight");
                let id = layout.add(name, &[hidden], Group::Scale)?;
                layout.set_rate(id, rate);
                Ok::<_, Error>(id)
            };
            Ok(Self {
                layer,
                input_norm: add("input_layernorm", 1.0)?,
                mlp_norm: add("post_attention_layernorm", 1.0)?,
                gates: Gates {
                    attention: add("attention_gate", GAIN_RATE)?,
                    mlp: add("mlp_gate", GAIN_RATE)?,
                },
            })
        };
        reuse.twice.iter().map(pass).collect()
    }

    pub(super) fn parameters(&self) -> [ParamId; 4] {
        [self.input_norm, self.mlp_norm, self.gates.attention, self.gates.mlp]
    }

    /// Sets the norms to the layer's; the gates are 0.
    pub(super) fn begin(&self, job: &Job<'_>, params: &mut Params) -> Result<()> {
        let norms =
            [(self.input_norm, names::input_norm(self.layer)), (self.mlp_norm, names::mlp_norm(self.layer))];
        for (id, name) in norms {
            params.set(id, &job.source.tensor(&name)?.f32()?)?;
        }
        Ok(())
    }

    /// Puts each second run behind the first, with the same weights.
    pub(super) fn insert(
        all: &[Self],
        blocks: &mut Vec<Block>,
        places: &mut Vec<BlockTrain>,
        effective: &Params,
    ) -> Result<()> {
        // From the last on, so that those before it keep their places.
        for pass in all.iter().rev() {
            let mut block = blocks[pass.layer].shallow_clone();
            block.input_norm = effective.view(pass.input_norm)?;
            block.mlp_norm = effective.view(pass.mlp_norm)?;
            block.gates = Some(Gates {
                attention: effective.view(pass.gates.attention)?,
                mlp: effective.view(pass.gates.mlp)?,
            });
            blocks.insert(pass.layer + 1, block);
            let train = BlockTrain {
                mlp: places[pass.layer].mlp.clone(),
                input_norm: Some(pass.input_norm),
                mlp_norm: Some(pass.mlp_norm),
                gates: Some(pass.gates),
            };
            places.insert(pass.layer + 1, train);
        }
        Ok(())
    }
}
