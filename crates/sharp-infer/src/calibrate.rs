//! Rounding a model's matrices against the inputs that a text gives them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use sharp_model::{
    ModelSource, Projection, TensorBytes, TensorRef,
    names::{self, Attention as Part},
};
use sharp_progress::Task;
use sharp_quant::{
    Feedback, Gram, PackedFormat, Team,
    float::{self, KvCache},
};

use crate::error::{Error, Result};
use crate::forward::{Place, Segment, add, part, part_mut, rows};
use crate::linear::{Factors, Linear, Weight};
use crate::model::{Attention, Mlp, Model, Needs, Options};
use crate::quantize::{Recipe, pack_tensor};
use crate::workspace::Workspace;

/// What is added to the diagonal of the second moments, as a fraction of its mean.
const DAMPING: f64 = 0.01;

/// Makes the packed matrices of a model's layers, a layer at a time, in order.
///
/// The inputs of a matrix are those that the matrices already rounded, in this layer and the layers before, give it. So each product is
/// computed once, with the rounded matrix. A matrix that several layers share is rounded at the first of them, with the second
/// moments of all: for the later layers they come from the unrounded model, which a second pass computes up to the last of them.
pub(crate) struct Calibrator<'a> {
    source: &'a ModelSource,
    recipe: &'a Recipe,
    /// Unrounded.
    model: Model,
    segments: Vec<Segment>,
    /// The residual stream (n, d) that enters the next layer to be rounded.
    hidden: Vec<f32>,
    /// Layers that are rounded.
    done: usize,
    /// Where matrices are shared: the unrounded model's residual stream, and the layer that it enters.
    ahead: Option<(Vec<f32>, usize)>,
    work: Workspace,
    cache: KvCache,
    /// Layers that use a stored matrix, ascending.
    users: HashMap<String, Vec<usize>>,
    /// Second moments from layers that will meet a matrix rounded earlier.
    later: HashMap<String, Gram>,
    /// Packed matrices that a layer to come uses again.
    kept: HashMap<String, Arc<Weight>>,
    /// Packed matrices that nobody has fetched yet.
    made: HashMap<String, TensorBytes>,
}

/// A linear map of a layer and the stored tensors behind it.
struct Map<'m> {
    linear: &'m Linear,
    base: Option<TensorRef>,
    factors: Option<(TensorRef, TensorRef)>,
    format: PackedFormat,
}

impl<'a> Calibrator<'a> {
    /// Of `source` on `sequences`, each a text from its beginning.
    pub(crate) fn new(
        source: &'a ModelSource,
        recipe: &'a Recipe,
        sequences: &[Vec<u32>],
        team: &Arc<Team>,
    ) -> Result<Self> {
        let options = Options { team: Some(team.clone()), ..Options::default() };
        let model = Model::from_source(source, &options)?;
        let mut hidden = Vec::new();
        let mut segments = Vec::new();
        for tokens in sequences.iter().filter(|tokens| !tokens.is_empty()) {
            hidden.extend(model.embed_tokens(tokens)?);
            segments.push(Segment { at: 0, tokens: tokens.len() });
        }
        let Some(longest) = segments.iter().map(|s| s.tokens).max() else {
            return Err(Error::argument("there are no tokens to calibrate on"));
        };
        let config = model.config();
        let n = hidden.len() / config.hidden_size;
        let mut users: HashMap<String, Vec<usize>> = HashMap::new();
        let mut shared = false;
        for layer in 0..config.num_hidden_layers {
            for part in Part::ALL {
                let tensor = source.tensor(&names::attention_weight(layer, part))?;
                users.entry(tensor.name().to_owned()).or_default().push(layer);
            }
            for projection in Projection::ALL {
                let parts = source.projection(layer, projection)?;
                let factors = parts.lora.map(|l| [l.a, l.b]).into_iter().flatten();
                for tensor in parts.base.into_iter().chain(factors) {
                    let layers = users.entry(tensor.name().to_owned()).or_default();
                    layers.push(layer);
                    shared |= layers.len() > 1;
                }
            }
        }
        let needs = Needs { packed: true, dense: true, floats: true, unfused_mlp: true, ..model.inner.needs };
        let work = Workspace::new(config, needs, n, longest)?;
        let kv = sharp_quant::DType::F32;
        let cache = KvCache::new(kv, 1, config.num_key_value_heads, config.head_dim, longest)?;
        let ahead = shared.then(|| (hidden.clone(), 0));
        Ok(Self {
            source,
            recipe,
            segments,
            hidden,
            done: 0,
            ahead,
            work,
            cache,
            users,
            later: HashMap::new(),
            kept: HashMap::new(),
            made: HashMap::new(),
            model,
        })
    }

    /// Tokens of all sequences.
    pub(crate) fn tokens(&self) -> usize {
        self.segments.iter().map(|s| s.tokens).sum()
    }

    /// The packed bytes of a matrix of the layers, which are rounded up to the first that has it; `None` for any other tensor.
    /// Each is handed out once.
    pub(crate) fn take(&mut self, name: &str, task: &dyn Task) -> Result<Option<TensorBytes>> {
        if !self.users.contains_key(name) {
            return Ok(None);
        }
        while !self.made.contains_key(name) && self.done < self.model.layers().len() {
            self.round_layer(self.done)?;
            self.done += 1;
            task.advance(1);
        }
        Ok(self.made.remove(name))
    }

    fn round_layer(&mut self, index: usize) -> Result<()> {
        self.look_ahead(index)?;
        let layer = self.model.layer(index)?.clone();
        let (d, f) = (self.model.config().hidden_size, self.model.config().intermediate_size);
        let q_size = self.model.config().query_size();
        let n = self.tokens();

        let original = &*layer.attention;
        self.norm(original.norm.as_deref(), n);
        let (source, recipe) = (self.source, self.recipe);
        let attention_map = |part: Part, linear| -> Result<Map<'_>> {
            let base = Some(source.tensor(&names::attention_weight(index, part))?);
            Ok(Map { linear, base, factors: None, format: recipe.attention })
        };
        let heads = [
            attention_map(Part::Query, &original.query)?,
            attention_map(Part::Key, &original.key)?,
            attention_map(Part::Value, &original.value)?,
        ];
        let last = attention_map(Part::Output, &original.output)?;
        let normed = std::mem::take(&mut self.work.run.normed);
        let rounded = self.round(index, heads, part(&normed, n * d));
        self.work.run.normed = normed;
        let [query, key, value] = rounded?;
        let mut attention = Attention {
            norm: original.norm.clone(),
            after: original.after.clone(),
            kind: original.kind,
            query,
            key,
            value,
            output: original.output.clone(),
            q_norm: original.q_norm.clone(),
            k_norm: original.k_norm.clone(),
        };
        self.heads(&attention, n)?;
        let mixed = std::mem::take(&mut self.work.run.mixed);
        let rounded = self.round(index, [last], part(&mixed, n * q_size));
        self.work.run.mixed = mixed;
        [attention.output] = rounded?;
        let team = self.model.inner.team.clone();
        self.model.run_output(&attention, n, &mut self.work.run)?;
        add(&team, &mut self.hidden, part(&self.work.run.delta, n * d), d);

        let original = &*layer.mlp;
        if original.zero {
            return Ok(());
        }
        self.norm(layer.mlp_norm.as_deref(), n);
        let mlp_map = |projection: Projection, linear| -> Result<Map<'_>> {
            let parts = source.projection(index, projection)?;
            let factors = parts.lora.map(|l| (l.a, l.b));
            Ok(Map { linear, base: parts.base, factors, format: recipe.mlp })
        };
        let gates = [mlp_map(Projection::Gate, &original.gate)?, mlp_map(Projection::Up, &original.up)?];
        let last = mlp_map(Projection::Down, &original.down)?;
        let normed = std::mem::take(&mut self.work.run.normed);
        let rounded = self.round(index, gates, part(&normed, n * d));
        self.work.run.normed = normed;
        let [gate, up] = rounded?;
        let mut mlp = Mlp::new(gate, up, original.down.clone(), original.activation);
        self.model.run_gates(&mlp, n, &mut self.work.run)?;
        let inner = std::mem::take(&mut self.work.run.gate);
        let rounded = self.round(index, [last], part(&inner, n * f));
        self.work.run.gate = inner;
        [mlp.down] = rounded?;
        self.model.run_down(&mlp, n, &mut self.work.run)?;
        let delta = part_mut(&mut self.work.run.delta, n * d);
        self.model.finish_branch(layer.after_mlp.as_deref(), delta);
        add(&team, &mut self.hidden, delta, d);
        Ok(())
    }

    /// The unrounded model up to the last layer that shares a matrix with this one, which is the first to use it.
    fn look_ahead(&mut self, index: usize) -> Result<()> {
        let Some((mut hidden, mut next)) = self.ahead.take() else { return Ok(()) };
        let first = |layers: &&Vec<usize>| layers.first() == Some(&index);
        let last = self.users.values().filter(first).filter_map(|layers| layers.last()).max().copied();
        let shares = self.users.values().filter(first).any(|layers| layers.len() > 1);
        while shares && last.is_some_and(|last| next <= last) {
            std::mem::swap(&mut self.hidden, &mut hidden);
            let passed = self.pass_unrounded(next);
            std::mem::swap(&mut self.hidden, &mut hidden);
            passed?;
            next += 1;
        }
        // The last layer that shares: nobody will look further.
        if self.users.values().any(|layers| layers.len() > 1 && layers.last().is_some_and(|l| *l >= next)) {
            self.ahead = Some((hidden, next));
        }
        Ok(())
    }

    /// `self.hidden` through an unrounded layer, the second moments of whose matrices are noted where an earlier layer has them.
    fn pass_unrounded(&mut self, index: usize) -> Result<()> {
        let layer = self.model.layer(index)?.clone();
        let (d, f) = (self.model.config().hidden_size, self.model.config().intermediate_size);
        let n = self.tokens();
        let team = self.model.inner.team.clone();
        self.norm(layer.attention.norm.as_deref(), n);
        self.heads(&layer.attention, n)?;
        self.model.run_output(&layer.attention, n, &mut self.work.run)?;
        add(&team, &mut self.hidden, part(&self.work.run.delta, n * d), d);
        if layer.mlp.zero {
            return Ok(());
        }
        self.norm(layer.mlp_norm.as_deref(), n);
        let [gate, up, down] = layer.mlp.projections();
        let b = &self.work.run;
        for (projection, linear) in [(Projection::Gate, gate), (Projection::Up, up)] {
            note(
                &team,
                self.source,
                &self.users,
                &mut self.later,
                (index, projection),
                linear,
                part(&b.normed, n * d),
            )?;
        }
        self.model.run_gates(&layer.mlp, n, &mut self.work.run)?;
        let inner = part(&self.work.run.gate, n * f);
        note(&team, self.source, &self.users, &mut self.later, (index, Projection::Down), down, inner)?;
        self.model.run_down(&layer.mlp, n, &mut self.work.run)?;
        let delta = part_mut(&mut self.work.run.delta, n * d);
        self.model.finish_branch(layer.after_mlp.as_deref(), delta);
        add(&team, &mut self.hidden, delta, d);
        Ok(())
    }

    /// `self.hidden`, normed, into the workspace.
    fn norm(&mut self, weight: Option<&[f32]>, n: usize) {
        let d = self.model.config().hidden_size;
        self.model.norm_input(&self.hidden, weight, part_mut(&mut self.work.run.normed, n * d));
    }

    fn heads(&mut self, attention: &Attention, n: usize) -> Result<()> {
        let place = Place::Sequence { cache: &mut self.cache, layer: 0, at: 0, segments: &self.segments };
        self.model.run_heads(attention, n, &mut self.work.run, place)
    }

    /// The maps of a layer that have the same input `x` (n, cols), packed: matrices met for the first time are rounded, and
    /// their bytes kept until they are fetched.
    fn round<const N: usize>(&mut self, index: usize, maps: [Map<'_>; N], x: &[f32]) -> Result<[Linear; N]> {
        let team = self.model.inner.team.clone();
        // Matrices of this layer alone differ in no second moments.
        let mut common: Option<Feedback> = None;
        let mut out = maps.each_ref().map(|map| map.linear.clone());
        for (map, out) in maps.iter().zip(&mut out) {
            let cols = map.linear.cols();
            let base = match &map.base {
                None => None,
                Some(tensor) => Some(match self.kept.get(tensor.name()) {
                    Some(weight) => weight.clone(),
                    None => {
                        let name = tensor.name();
                        let alone = self.users.get(name).is_none_or(|layers| layers.len() < 2)
                            && map.linear.col_scale.is_none();
                        let feedback = |later: Option<&Gram>| -> Result<Feedback> {
                            let mut gram = moments(&team, map.linear, x)?;
                            if let Some(later) = later {
                                gram.merge(later)?;
                            }
                            Feedback::new(&team, gram, DAMPING).map_err(Error::tensor(name))
                        };
                        let own;
                        let feedback = if map.format == PackedFormat::F16 {
                            None
                        } else if alone {
                            if common.is_none() {
                                common = Some(feedback(None)?);
                            }
                            common.as_ref()
                        } else {
                            own = feedback(self.later.remove(name).as_ref())?;
                            Some(&own)
                        };
                        self.pack(tensor, map.format, (map.linear.rows(), cols), feedback)?
                    }
                }),
            };
            let factors = match &map.factors {
                None => None,
                Some((a, b)) => {
                    let (format, rank) = (self.recipe.recovery, map.linear.rank());
                    Some(Factors {
                        a: self.pack(a, format, (rank, cols), None)?,
                        b: self.pack(b, format, (map.linear.rows(), rank), None)?,
                    })
                }
            };
            if let Some(tensor) = &map.base {
                let again = self.users.get(tensor.name()).and_then(|l| l.last()).is_some_and(|l| *l > index);
                match &base {
                    Some(weight) if again => self.kept.insert(tensor.name().to_owned(), weight.clone()),
                    _ => self.kept.remove(tensor.name()),
                };
            }
            let linear = map.linear;
            *out = Linear::new(
                (linear.rows(), cols),
                base,
                factors,
                linear.row_scale.clone(),
                linear.col_scale.clone(),
                linear.bias.clone(),
            )?;
        }
        Ok(out)
    }

    fn pack(
        &mut self,
        tensor: &TensorRef,
        format: PackedFormat,
        (rows, cols): (usize, usize),
        feedback: Option<&Feedback>,
    ) -> Result<Arc<Weight>> {
        let mut bytes = Vec::new();
        let path: &Path = self.source.path();
        let team = &self.model.inner.team;
        pack_tensor(team, path, tensor, format, self.recipe.rule(), (rows, cols), feedback, &mut bytes)?;
        let bytes = TensorBytes::owned(bytes);
        self.made.insert(tensor.name().to_owned(), bytes.clone());
        Ok(Arc::new(Weight::Packed { format, rows, cols, bytes }))
    }
}

/// Second moments of what a map's stored matrix gets where the map gets `x` (n, cols). Every token counts alike, however large its
/// input: otherwise the few tokens with huge activations decide. An error of the matrix counts by the mean square of the map's row scales.
fn moments(team: &Team, linear: &Linear, x: &[f32]) -> Result<Gram> {
    let (isa, cols) = (team.isa(), linear.cols());
    let mut inputs = vec![0.0; x.len()];
    rows(team, &mut inputs, cols, &|i, to| {
        let x = x.get(i * cols..(i + 1) * cols).unwrap_or_default();
        match &linear.col_scale {
            None => to.copy_from_slice(x),
            Some(scale) => float::scale(isa, x, scale, to),
        }
        let mean = float::dot(isa, to, to) / cols as f32;
        let factor = if mean == 0.0 { 0.0 } else { 1.0 / mean.sqrt() };
        to.iter_mut().for_each(|v| *v *= factor);
    });
    let weight = linear.row_scale.as_ref().map_or(1.0, |scale| {
        scale.iter().map(|r| f64::from(*r).powi(2)).sum::<f64>() / scale.len().max(1) as f64
    });
    let mut gram = Gram::new(cols)?;
    gram.add(team, &inputs, weight)?;
    Ok(gram)
}

/// Adds the second moments of a layer's matrix to those of the same matrix, if an earlier layer has it.
fn note(
    team: &Team,
    source: &ModelSource,
    users: &HashMap<String, Vec<usize>>,
    later: &mut HashMap<String, Gram>,
    (index, projection): (usize, Projection),
    linear: &Linear,
    x: &[f32],
) -> Result<()> {
    let Some(base) = source.projection(index, projection)?.base else { return Ok(()) };
    if users.get(base.name()).is_none_or(|layers| layers.first() == Some(&index)) {
        return Ok(());
    }
    let gram = moments(team, linear, x)?;
    match later.entry(base.name().to_owned()) {
        std::collections::hash_map::Entry::Occupied(mut sum) => sum.get_mut().merge(&gram)?,
        std::collections::hash_map::Entry::Vacant(place) => {
            place.insert(gram);
        }
    }
    Ok(())
}
