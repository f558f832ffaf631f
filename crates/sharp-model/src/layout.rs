//! Which tensors a model has under a plan: the one interpretation of a plan, for checkpoints and packed files
//! alike.

use crate::config::ModelConfig;
use crate::names;
use crate::plan::{LayerChange, Plan, Treatment};
use crate::projection::Projection;
use crate::projection_source::{LoraSource, ProjectionSource};
use crate::tensors::{self, Part, Role, TENSORS};

/// A tensor that a model needs, by name and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSlot {
    /// What it is to the computation.
    pub role: Role,
    /// The layer that computes with it; `None` for tensors there is one of.
    pub layer: Option<usize>,
    /// The layer's own name for it. Packed files know a shared weight by the name of every layer that uses
    /// it.
    pub name: String,
    /// The name it is stored under: another layer's where that layer's weight is shared.
    pub stored_as: String,
    /// Row-major.
    pub shape: Vec<usize>,
}

/// The tensors of a model with a configuration and, where layers change, a plan.
///
/// ```
/// use sharp_model::{LayerChange, ModelConfig, ModelLayout, Plan, Projection, Repair};
/// let config = ModelConfig::llama(64, 176, 4, 4, 2, 256)?;
/// let plan = Plan::new("explicit", vec![LayerChange::share(3, 2, Repair::None)]);
/// let base = ModelLayout::new(&config, Some(&plan)).projection(3, Projection::Up).base.unwrap();
/// assert_eq!(base.name, "model.layers.3.mlp.up_proj.weight");
/// assert_eq!(base.stored_as, "model.layers.2.mlp.up_proj.weight");
/// # Ok::<(), sharp_model::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct ModelLayout<'a> {
    config: &'a ModelConfig,
    plan: Option<&'a Plan>,
}

impl<'a> ModelLayout<'a> {
    /// The layout of a model; the plan is one that [`Plan::validate`] accepts for it.
    pub fn new(config: &'a ModelConfig, plan: Option<&'a Plan>) -> Self {
        Self { config, plan }
    }

    /// Finds a tensor that no plan changes: anything but an MLP's maps, for which see
    /// [`ModelLayout::projection`]. `layer` is `None` for tensors there is one of. `None`: the model has no
    /// such tensor.
    pub fn tensor(&self, role: Role, layer: Option<usize>) -> Option<TensorSlot> {
        let rule = TENSORS.iter().find(|r| r.role == role && r.when.holds(self.config))?;
        let name = rule.name_of(layer);
        let shape = rule.shape_of(self.config);
        Some(TensorSlot { role, layer, stored_as: name.clone(), name, shape })
    }

    /// Finds the output head `(vocab_size, hidden_size)`: its own tensor, or the embedding where they are
    /// tied.
    pub fn head(&self) -> Option<TensorSlot> {
        self.tensor(Role::Head, None).or_else(|| self.tensor(Role::Embedding, None))
    }

    /// Says what a layer's projection is made of.
    pub fn projection(&self, layer: usize, projection: Projection) -> ProjectionSource<TensorSlot> {
        let treatment = self.plan.and_then(|p| p.treatment(layer));
        let (out, input) = self.shape(layer, projection);
        let slot = |part: Part, name: String, shape: Vec<usize>| TensorSlot {
            role: Role::Mlp(projection, part),
            layer: Some(layer),
            stored_as: name.clone(),
            name,
            shape,
        };
        let mut source = ProjectionSource {
            layer,
            projection,
            out_features: out,
            in_features: input,
            base: None,
            lora: None,
            neurons: None,
            row_scale: None,
            col_scale: None,
            bias: None,
        };
        if treatment == Some(Treatment::Drop) {
            return source;
        }
        if let Some(owner) = treatment.map_or(Some(layer), |t| t.owner_of_weights(layer)) {
            let (out, input) = match treatment {
                Some(treatment) if treatment.stores_weights() => treatment.own_shape(projection, self.config),
                _ => projection.shape(self.config),
            };
            let own = slot(Part::Weight, names::mlp_weight(layer, projection), vec![out, input]);
            source.base = Some(TensorSlot { stored_as: names::mlp_weight(owner, projection), ..own });
        }
        if self.config.mlp_bias {
            source.bias = Some(slot(Part::Bias, names::mlp_bias(layer, projection), vec![out]));
        }
        let Some(treatment) = treatment else { return source };
        let (rank, scales) = (treatment.ranks()[projection], treatment.scales(projection));
        if treatment.has_neurons_beside() {
            let (out, input) = treatment.own_shape(projection, self.config);
            source.neurons = Some(slot(Part::Neurons, names::neurons(layer, projection), vec![out, input]));
        }
        if rank > 0 {
            source.lora = Some(LoraSource {
                rank,
                a: slot(Part::LoraA, names::lora_a(layer, projection), vec![rank, input]),
                b: slot(Part::LoraB, names::lora_b(layer, projection), vec![out, rank]),
            });
        }
        if scales.rows() {
            source.row_scale = Some(slot(Part::RowScale, names::row_scale(layer, projection), vec![out]));
        }
        if scales.columns() {
            source.col_scale = Some(slot(Part::ColScale, names::col_scale(layer, projection), vec![input]));
        }
        source
    }

    /// Lists every tensor that the layers compute with, in the order of the computation. A shared weight is
    /// listed for each layer that uses it.
    pub fn in_order_of_use(&self) -> Vec<TensorSlot> {
        let mut all = Vec::new();
        for rule in TENSORS.iter().filter(|r| r.when.holds(self.config)) {
            match rule.role {
                // Those of the MLPs are the plan's.
                Role::Mlp(..) => {}
                role if rule.per_layer() => {
                    all.extend((0..self.config.num_hidden_layers).filter_map(|l| self.tensor(role, Some(l))));
                }
                role => all.extend(self.tensor(role, None)),
            }
        }
        for layer in 0..self.config.num_hidden_layers {
            for projection in Projection::ALL {
                all.extend(self.projection(layer, projection).into_tensors());
            }
        }
        all.sort_by_key(|slot| (slot.role.stage(), slot.layer, slot.role));
        all
    }

    /// Lists every tensor that a checkpoint stores, each once, in the checkpoint's order: the model's own,
    /// then what changed layers have besides.
    pub fn stored(&self) -> Vec<TensorSlot> {
        let mut all = Vec::new();
        for (rule, layer, info) in tensors::tensors_of(self.config, sharp_quant::DType::F32) {
            let treatment = layer.zip(self.plan).and_then(|(l, plan)| plan.treatment(l));
            let shape = match (rule.role, treatment) {
                (Role::Mlp(..), Some(Treatment::Drop)) => continue,
                (Role::Mlp(_, Part::Weight), Some(t)) if !t.stores_weights() => continue,
                (Role::Mlp(projection, Part::Weight), Some(treatment)) => {
                    let (out, input) = treatment.own_shape(projection, self.config);
                    vec![out, input]
                }
                _ => info.shape,
            };
            let (role, name) = (rule.role, info.name);
            all.push(TensorSlot { role, layer, stored_as: name.clone(), name, shape });
        }
        for LayerChange { layer, .. } in self.plan.map_or(&[][..], |p| &p.changes) {
            for projection in Projection::ALL {
                let parts =
                    ProjectionSource { base: None, bias: None, ..self.projection(*layer, projection) };
                all.extend(parts.into_tensors());
            }
        }
        all
    }

    /// How many neurons an MLP must have so that every layer's fits into it: the width of a dense export.
    pub fn widest_mlp(&self) -> usize {
        let changed = self.plan.map_or(&[][..], |p| &p.changes).iter();
        let beside = changed.filter(|c| c.treatment.has_neurons_beside()).map(|c| c.treatment.neurons());
        self.config.intermediate_size + beside.max().unwrap_or(0)
    }

    fn shape(&self, layer: usize, projection: Projection) -> (usize, usize) {
        match self.plan.and_then(|p| p.treatment(layer)) {
            Some(treatment) => treatment.shape(projection, self.config),
            None => projection.shape(self.config),
        }
    }
}
