//! The compressed model in training, with its replicas on the worker threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sharp_model::packed::PackedFile;
use sharp_model::recovery::Replacement;
use sharp_model::{ModelSource, Projection, Recovery, SharingPlan, names};
use sharp_quant::{PackedFormat, PackedRef, ScaleRule};
use tch::{Kind, Tensor};

use super::turns::{Turn, Turns, lowest_layers};
use super::{COLD, FinetuneOptions, TrainMlps};
use crate::attention::{Attention, AttentionTrain, Batch};
use crate::block::BlockTrain;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::head::{Head, Loss, LossSums, Targets};
use crate::llama::{Embedding, Llama};
use crate::mlp::{Mlp, MlpTrain, Sink, index};
use crate::params::{Group, Layout, ParamId, Params};
use crate::pool::Pool;
use crate::start::begin_cold;
use crate::target::{Recovered, reference_weights, saved_layers};
use crate::tensors::{dim, from_f32, shape_of, to_vec};
use crate::weights::Weights;

/// A row of tokens and what counts in it.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    pub(super) tokens: Vec<u32>,
    /// Where a token that counts comes next.
    pub(super) positions: Vec<i64>,
    /// That token.
    pub(super) labels: Vec<i64>,
}

/// What a worker thread holds: handles on the same memory.
struct Replica {
    model: Llama,
    /// The original's MLPs of the target layers, and its norms, where its predictions are needed.
    teacher: Option<Teacher>,
    train: Vec<BlockTrain>,
    final_norm: Option<ParamId>,
    /// The first layer with something to train.
    first: usize,
    layout: Arc<Layout>,
    values: Tensor,
    loss: Loss,
}

/// The original where it differs from the student: from layer `from` on.
struct Teacher {
    from: usize,
    /// Where the student's is another one.
    embedding: Option<Embedding>,
    blocks: Vec<crate::block::Block>,
    head: Head,
}

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
    /// Trained tensors that take the place of the base's: norms, attention's and shared MLPs' weights, and what pruned MLPs keep.
    replaced: Vec<ParamId>,
    owned: BTreeMap<usize, [ParamId; 3]>,
    /// Attention in training, with its parameters.
    attentions: Vec<(Attention, AttentionTrain)>,
    /// The lowest layer that each parameter is used in.
    lowest: Arc<Vec<usize>>,
    pool: Pool<Replica>,
}

impl Student {
    pub(super) fn new(
        source: &ModelSource,
        plan: &SharingPlan,
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
                if plan.target(layer).is_none() && block.mlp.is_some() {
                    block.mlp = Some(Mlp::load_stored(weights, layer, compute)?);
                }
            }
        }
        let mut layout = Layout::default();
        let mut targets = Vec::new();
        let layers = model.blocks.len();
        let blank = |layer: usize| -> Result<&Mlp> {
            original
                .blocks
                .get(layer)
                .and_then(|b| b.mlp.as_ref())
                .ok_or_else(|| Error::invalid(format!("layer {layer} has no MLP")))
        };
        for target in &plan.targets {
            let shape = blank(target.layer)?.blank_for(target)?;
            targets.extend(Recovered::register(target, &shape, &mut layout)?);
        }
        targets.sort_by_key(|t| t.layer);

        // Stored MLPs in training, then norms; both replace tensors of the base.
        let mut owned: BTreeMap<usize, [ParamId; 3]> = BTreeMap::new();
        for layer in owned_layers(plan, layers, options.train_mlps) {
            let mut add = |p: Projection| -> Result<ParamId> {
                let shape = shape_of(&blank(layer)?.weight(p)?);
                layout.add(names::mlp_weight(layer, p), &shape, Group::Stored)
            };
            owned.insert(layer, [add(Projection::Gate)?, add(Projection::Up)?, add(Projection::Down)?]);
        }
        let first_mlp = targets
            .iter()
            .map(|t| t.layer)
            .chain(owned.keys().copied())
            .chain(plan.targets.iter().filter(|_| options.train_norms).map(|t| t.layer))
            .min()
            .ok_or_else(|| {
                Error::invalid(
                    "nothing to train: the plan has no recovery parameters, and norms and MLPs stay",
                )
            })?;
        let mut train: Vec<BlockTrain> = (0..layers).map(|_| BlockTrain::default()).collect();
        let mut final_norm = None;
        if options.train_norms {
            let d = [source.config().hidden_size];
            for (layer, place) in train.iter_mut().enumerate().skip(first_mlp) {
                if layer > first_mlp {
                    place.input_norm = Some(layout.add(names::input_norm(layer), &d, Group::Norm)?);
                }
                // Nothing comes after the norm of an MLP that was left out.
                if !plan.target(layer).is_some_and(|t| t.dropped) {
                    place.mlp_norm = Some(layout.add(names::mlp_norm(layer), &d, Group::Norm)?);
                }
            }
            final_norm = Some(layout.add(names::FINAL_NORM, &d, Group::Norm)?);
        }
        if options.train_attention {
            for (layer, place) in train.iter_mut().enumerate().skip(first_mlp + 1) {
                let mut add = |matrix| -> Result<ParamId> {
                    let name = names::attention_weight(layer, matrix);
                    let shape = source.tensor(&name)?.shape().to_vec();
                    layout.add(name, &shape, Group::Stored)
                };
                let [q, k, v, o] = names::Attention::ALL;
                place.attention = Some(AttentionTrain([add(q)?, add(k)?, add(v)?, add(o)?]));
            }
        }
        for target in &targets {
            let shared = target.reference.and_then(|r| owned.get(&r)).copied();
            if let Some(place) = train.get_mut(target.layer) {
                place.mlp = Some(target.train(shared));
            }
        }
        for (&layer, &ids) in &owned {
            if let Some(place) = train.get_mut(layer) {
                place.mlp = Some(MlpTrain::Own(ids));
            }
        }

        let mut params = Params::zeros(layout, compute.device)?;
        let mut replaced = Vec::new();
        for spec in params.layout.specs().to_vec() {
            let Some(id) = params.layout.find(&spec.name) else { continue };
            // Base tensors in training begin as the base's.
            if matches!(spec.group, Group::Stored | Group::Norm) {
                params.set(id, &source.tensor(&spec.name)?.f32()?)?;
            }
            if matches!(spec.group, Group::Stored | Group::Norm | Group::Pruned) {
                replaced.push(id);
            }
        }
        for target in &targets {
            let planned = plan.target(target.layer);
            if let (None, Some(planned)) = (recovery, planned) {
                debug_assert_eq!(COLD, crate::start::Start::Zero);
                let pieces = begin_cold(planned, blank(target.layer)?, options.seed, compute)?;
                target.set(&params, &pieces)?;
            }
        }
        if let Some(recovery) = recovery {
            recovery.check(source.config(), plan)?;
            for target in &targets {
                if let Some(saved) = recovery.layers.get(&target.layer) {
                    target.set_saved(&mut params, saved)?;
                }
            }
            for (name, new) in &recovery.replacements {
                let id = params.layout.find(name).ok_or_else(|| {
                    Error::invalid(format!(
                        "`{name}` was trained before; train what was trained then: norms, shared MLPs or attention"
                    ))
                })?;
                params.set(id, &new.values)?;
            }
        }

        let rounded: Vec<(ParamId, PackedFormat)> = params
            .layout
            .specs()
            .iter()
            .filter_map(|spec| Some((params.layout.find(&spec.name)?, weights.format(&spec.name)?)))
            .collect();
        let flat = match rounded.is_empty() {
            false => params.layout.zeros(compute.device)?,
            true => params.flat.shallow_clone(),
        };
        let effective = Params { layout: params.layout.clone(), flat };

        // Weights of its own for every layer whose MLP is made of parameters.
        let mut references = BTreeMap::new();
        let mut merged = BTreeMap::new();
        for target in &targets {
            let planned = plan.target(target.layer);
            let original = blank(target.layer)?;
            merged.insert(target.layer, planned.map_or_else(|| original.blank(), |t| original.blank_for(t))?);
            if let Some(reference) = target.reference {
                let weights = match owned.get(&reference) {
                    Some([gate, up, down]) => {
                        [effective.view(*gate)?, effective.view(*up)?, effective.view(*down)?]
                    }
                    None => match model.blocks.get(reference).and_then(|block| block.mlp.as_ref()) {
                        Some(mlp) => reference_weights(mlp)?,
                        None => return Err(Error::invalid(format!("layer {reference} has no MLP"))),
                    },
                };
                references.insert(reference, weights);
            }
        }
        for &layer in owned.keys() {
            merged.insert(layer, blank(layer)?.blank()?);
        }
        for target in &plan.targets {
            let Some(block) = model.blocks.get_mut(target.layer) else { continue };
            if target.dropped {
                block.mlp = None;
            } else if let (true, Some(reference)) =
                (crate::forms::form(target.form).is_none(), target.reference)
            {
                block.mlp = Some(shared_directly(blank(reference)?, blank(target.layer)?));
            }
        }
        for (&layer, mlp) in &merged {
            if let Some(block) = model.blocks.get_mut(layer) {
                block.mlp = Some(mlp.share());
            }
        }
        let mut attentions = Vec::new();
        for (layer, (block, train)) in model.blocks.iter_mut().zip(&train).enumerate() {
            if let Some(ids) = train.attention {
                block.attention = Attention::load(weights, layer, compute)?;
                attentions.push((block.attention.share(), ids));
            }
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
            false => plan.targets.iter().map(|t| t.layer).chain([first_mlp]).min().unwrap_or(first_mlp),
        };
        let layout = Arc::new(params.layout.clone());
        let mut replicas = Vec::new();
        for _ in 0..compute.threads {
            let teacher = options.loss.needs_teacher().then(|| Teacher {
                from: differs,
                embedding: weights.are_rounded().then(|| original.embedding.share()),
                blocks: original.blocks.iter().skip(differs).map(crate::block::Block::share).collect(),
                head: original.head.share(),
            });
            replicas.push(Replica {
                model: model.share(),
                teacher,
                train: train.iter().map(BlockTrain::share).collect(),
                final_norm,
                first: first_mlp,
                layout: Arc::clone(&layout),
                values: effective.flat.shallow_clone(),
                loss: options.loss,
            });
        }
        let lowest = Arc::new(lowest_layers(&train, &layout));
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
            attentions,
            lowest,
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
        for (attention, ids) in &self.attentions {
            attention.set(*ids, &self.layout, &self.effective.flat)?;
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
    pub(super) fn gradient(&self, batch: Vec<Sequence>) -> Result<(Tensor, LossSums)> {
        let counted: usize = batch.iter().map(|s| s.positions.len()).sum();
        let scale = 1.0 / counted.max(1) as f64;
        let total = self.layout.zeros(self.params.flat.device())?;
        let batch: Vec<Sequence> = batch.into_iter().filter(|s| !s.positions.is_empty()).collect();
        let turns = Turns::new(Arc::clone(&self.lowest), batch.len());
        let items = batch
            .into_iter()
            .enumerate()
            .map(|(i, sequence)| (sequence, turns.of(i), total.shallow_clone()))
            .collect();
        let mut sums = LossSums::default();
        self.pool.run(
            "training",
            items,
            move |replica, (sequence, turn, total)| replica.differentiate(&sequence, scale, &turn, &total),
            |part| {
                sums.add(&part);
                Ok(())
            },
        )?;
        Ok((total, sums))
    }

    /// The loss's sums over held-out sequences.
    pub(super) fn measure(&self, sequences: &[Sequence]) -> Result<LossSums> {
        let mut sums = LossSums::default();
        let items: Vec<Sequence> = sequences.iter().filter(|s| !s.positions.is_empty()).cloned().collect();
        self.pool.run(
            "measuring",
            items,
            |replica, sequence| replica.measure(&sequence),
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
            let new = Replacement { shape: spec.shape.clone(), values: self.effective.get(id)? };
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

/// The layers whose own MLP is trained.
pub(super) fn owned_layers(plan: &SharingPlan, layers: usize, which: TrainMlps) -> BTreeSet<usize> {
    let shared: BTreeSet<usize> = plan.targets.iter().filter_map(|t| t.reference).collect();
    match which {
        TrainMlps::None => BTreeSet::new(),
        TrainMlps::Shared => shared,
        TrainMlps::All => {
            let first = plan.targets.iter().map(|t| t.layer).chain(shared).min().unwrap_or(layers);
            (first..layers).filter(|&layer| plan.target(layer).is_none()).collect()
        }
    }
}

/// A reference's weights with the target's own biases.
fn shared_directly(reference: &Mlp, own: &Mlp) -> Mlp {
    let mut mixed = reference.share();
    mixed.gate_up.bias = own.gate_up.bias.as_ref().map(Tensor::shallow_clone);
    mixed.down.bias = own.down.bias.as_ref().map(Tensor::shallow_clone);
    mixed
}

impl Replica {
    fn targets(&self, sequence: &Sequence) -> Result<Targets> {
        let device = self.values.device();
        Ok(Targets {
            positions: Tensor::f_from_slice(&sequence.positions)?.f_to_device(device)?,
            labels: Tensor::f_from_slice(&sequence.labels)?.f_to_device(device)?,
        })
    }

    /// The original's last hidden states from the residual stream at layer [`Teacher::from`].
    fn taught(&self, tokens: &[u32], hidden: &Tensor, batch: Batch) -> Result<Option<Tensor>> {
        let Some(teacher) = &self.teacher else { return Ok(None) };
        let mut hidden = match &teacher.embedding {
            Some(embedding) => embedding.forward(tokens)?,
            None => hidden.shallow_clone(),
        };
        for block in &teacher.blocks {
            hidden = block.forward(&hidden, &self.model.rope, batch)?;
        }
        Ok(Some(hidden))
    }

    fn measure(&mut self, sequence: &Sequence) -> Result<LossSums> {
        let batch = Batch { sequences: 1, time: dim(sequence.tokens.len())? };
        let mut hidden = self.model.embedding.forward(&sequence.tokens)?;
        let from = self.teacher.as_ref().map(|t| t.from);
        let mut taught = None;
        for (layer, block) in self.model.blocks.iter().enumerate() {
            if Some(layer) == from {
                taught = self.taught(&sequence.tokens, &hidden, batch)?;
            }
            hidden = block.forward(&hidden, &self.model.rope, batch)?;
        }
        let teacher = self.teacher.as_ref().zip(taught.as_ref()).map(|(t, h)| (&t.head, h));
        self.model.head.measure(&hidden, &self.targets(sequence)?, self.loss, teacher)
    }

    /// Adds the gradient of `scale` times the sequence's loss to `grad (total)`, in turn.
    fn differentiate(
        &mut self,
        sequence: &Sequence,
        scale: f64,
        turn: &Turn,
        grad: &Tensor,
    ) -> Result<LossSums> {
        let batch = Batch { sequences: 1, time: dim(sequence.tokens.len())? };
        let sink = Sink { layout: &self.layout, values: &self.values, grad, turn: Some(turn) };
        let mut hidden = self.model.embedding.forward(&sequence.tokens)?;
        let from = self.teacher.as_ref().map(|t| t.from);
        let mut taught = None;
        let mut kept = Vec::new();
        for (layer, block) in self.model.blocks.iter().enumerate() {
            if Some(layer) == from {
                taught = self.taught(&sequence.tokens, &hidden, batch)?;
            }
            if layer < self.first {
                hidden = block.forward(&hidden, &self.model.rope, batch)?;
            } else {
                let (output, saved) = block.forward_saving(hidden, &self.model.rope, batch)?;
                hidden = output;
                kept.push(saved);
            }
        }
        let teacher = self.teacher.as_ref().zip(taught.as_ref()).map(|(t, h)| (&t.head, h));
        let trained_norm = self.final_norm.map(|id| (id, &sink));
        let targets = self.targets(sequence)?;
        let (sums, mut d) =
            self.model.head.differentiate(&hidden, &targets, self.loss, teacher, scale, trained_norm)?;
        drop((hidden, taught));
        turn.pass(self.model.blocks.len());
        for (layer, block) in self.model.blocks.iter().enumerate().skip(self.first).rev() {
            let (Some(saved), Some(train)) = (kept.pop(), self.train.get(layer)) else { break };
            let want = layer > self.first;
            match block.backward(d, saved, &self.model.rope, batch, train, &sink, want)? {
                Some(below) => d = below,
                None => break,
            }
            turn.pass(layer);
        }
        Ok(sums)
    }
}

/// Values for a flat vector from a saved one.
pub(super) fn flat_from(values: &[f32], params: &Params) -> Result<Tensor> {
    from_f32(values, &[params.layout.total()], params.flat.device())?
        .f_to_kind(Kind::Float)
        .map_err(Error::from)
}
