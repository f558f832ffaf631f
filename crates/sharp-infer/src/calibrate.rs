//! Rounding a model's matrices against the inputs that a text gives them.

use std::collections::HashMap;
use std::sync::Arc;

use sharp_model::{
    ModelSource, Projection, ProjectionSource, TensorRef,
    names::{self, Attention as Part},
};
use sharp_progress::Task;
use sharp_quant::{
    DType, Feedback, Gram, PackedFormat, Team,
    float::{self, KvCache},
};

use crate::elementwise::{add, for_each_row, row};
use crate::error::{Error, Result};
use crate::forward::Segment;
use crate::kv_target::SequenceKv;
use crate::linear::Linear;
use crate::model::{Mlp, Model, Options};
use crate::pack::Packer;
use crate::recipe::Recipe;
use crate::workspace::{Buffers, Workspace};

/// What is added to the diagonal of the second moments, as a fraction of its mean.
const DAMPING: f64 = 0.01;

/// Packs the matrices of a model's layers, a layer at a time, in order.
///
/// The texts pass through the unrounded model. Each matrix is rounded by the second moments of its inputs, as
/// soon as the last layer that uses it has been passed. So a few packed layers wait in memory where distant
/// layers share a matrix.
pub(crate) struct Calibrator<'a> {
    model: Model,
    segments: Vec<Segment>,
    /// The residual stream (n, d) that enters layer `next`.
    hidden: Vec<f32>,
    next: usize,
    work: Workspace,
    cache: KvCache,
    rounding: Rounding<'a>,
}

struct Rounding<'a> {
    source: &'a ModelSource,
    recipe: &'a Recipe,
    team: Arc<Team>,
    /// Layers that use a stored matrix, ascending; only matrices that are to be rounded so.
    users: HashMap<String, Vec<usize>>,
    /// Second moments of shared matrices, from the layers passed so far.
    sums: HashMap<String, Gram>,
    /// Packed matrices that [`Calibrator::take`] has not returned yet.
    made: HashMap<String, Vec<u8>>,
}

impl<'a> Calibrator<'a> {
    /// Of `source` on `sequences`, each a text from its beginning.
    pub(crate) fn new(
        source: &'a ModelSource,
        recipe: &'a Recipe,
        sequences: &[Vec<u32>],
        team: &Arc<Team>,
    ) -> Result<Self> {
        let model = Model::from_source(source, &Options { team: Some(team.clone()), ..Options::default() })?;
        let mut hidden = Vec::new();
        let mut segments = Vec::new();
        for tokens in sequences.iter().filter(|tokens| !tokens.is_empty()) {
            hidden.extend(model.embed_tokens(tokens)?);
            segments.push(Segment { at: 0, tokens: tokens.len() });
        }
        let Some(longest) = segments.iter().map(|s| s.tokens).max() else {
            return Err(Error::argument("there are no tokens to calibrate on"));
        };
        let mut users: HashMap<String, Vec<usize>> = HashMap::new();
        let mut used = |tensor: TensorRef, layer, format| {
            // 16-bit floats have no scales to choose, and round well enough alone.
            if format != PackedFormat::F16 {
                users.entry(tensor.name().to_owned()).or_default().push(layer);
            }
        };
        for (index, layer) in model.layers().iter().enumerate() {
            for part in Part::ALL {
                used(source.tensor(&names::attention_weight(index, part))?, index, recipe.attention);
            }
            for projection in Projection::ALL.into_iter().filter(|_| !layer.mlp.zero) {
                let stored = source.projection(index, projection)?;
                for tensor in [stored.base, stored.neurons].into_iter().flatten() {
                    used(tensor, index, recipe.mlp);
                }
            }
        }
        let config = model.config();
        let work = Workspace::new(config, model.inner.needs, hidden.len() / config.hidden_size, longest)?;
        let cache = KvCache::new(DType::F32, 1, config.num_key_value_heads, config.head_dim, longest)?;
        let rounding = Rounding {
            source,
            recipe,
            team: team.clone(),
            users,
            sums: HashMap::new(),
            made: HashMap::new(),
        };
        Ok(Self { model, segments, hidden, next: 0, work, cache, rounding })
    }

    /// Tokens of all sequences.
    pub(crate) fn tokens(&self) -> usize {
        self.segments.iter().map(|s| s.tokens).sum()
    }

    /// Returns the packed bytes of a layer's matrix, passing as many layers as that takes; each is returned
    /// once.
    ///
    /// `None`: the tensor is not rounded against its inputs.
    pub(crate) fn take(&mut self, name: &str, task: &dyn Task) -> Result<Option<Vec<u8>>> {
        if !self.rounding.users.contains_key(name) {
            return Ok(None);
        }
        while !self.rounding.made.contains_key(name) && self.next < self.model.layers().len() {
            self.pass()?;
            self.next += 1;
            task.advance(1);
        }
        Ok(self.rounding.made.remove(name))
    }

    /// Passes all tokens through the next layer and rounds the matrices that no later layer uses.
    fn pass(&mut self) -> Result<()> {
        let (index, n) = (self.next, self.tokens());
        let Self { model, hidden, rounding, segments, .. } = self;
        let (b, source, recipe) = (&mut self.work.run, rounding.source, rounding.recipe);
        let d = model.config().hidden_size;
        let q_size = model.config().query_size();
        let layer = model.layer(index)?;

        let attention = &*layer.attention;
        let stored = |part| -> Result<_> { Ok(Some(source.tensor(&names::attention_weight(index, part))?)) };
        model.norm_input(hidden, attention.norm.as_deref(), &mut b.normed[..n * d]);
        let inputs = [
            (stored(Part::Query)?, &attention.query),
            (stored(Part::Key)?, &attention.key),
            (stored(Part::Value)?, &attention.value),
        ];
        rounding.meet(index, inputs, recipe.attention, &b.normed[..n * d])?;
        let mut kv = SequenceKv { cache: &mut self.cache, layer: 0, at: 0, segments };
        model.run_heads(attention, n, b, &mut kv)?;
        let output = [(stored(Part::Output)?, &attention.output)];
        rounding.meet(index, output, recipe.attention, &b.mixed[..n * q_size])?;
        model.run_output(attention, n, b)?;
        add(&rounding.team, hidden, &b.delta[..n * d], d);

        let mlp = &*layer.mlp;
        if mlp.zero {
            return Ok(());
        }
        model.norm_input(hidden, layer.mlp_norm.as_deref(), &mut b.normed[..n * d]);
        rounding.pass_mlp(model, mlp, index, n, b, |source| source.base)?;
        if let Some(own) = &mlp.own {
            std::mem::swap(&mut b.delta, &mut b.beside);
            rounding.pass_mlp(model, own, index, n, b, |source| source.neurons)?;
            model.add_beside(n, b);
        }
        let delta = &mut b.delta[..n * d];
        model.finish_branch(layer.after_mlp.as_deref(), delta);
        add(&rounding.team, hidden, delta, d);
        Ok(())
    }
}

impl Rounding<'_> {
    /// Passes all tokens through an MLP, from `b.normed` (n, d) into `b.delta` (n, d), and rounds the
    /// matrices that no later layer uses. `stored` finds them among what a projection is made of.
    fn pass_mlp(
        &mut self,
        model: &Model,
        mlp: &Mlp,
        index: usize,
        n: usize,
        b: &mut Buffers,
        stored: impl Fn(ProjectionSource) -> Option<TensorRef>,
    ) -> Result<()> {
        let (source, format) = (self.source, self.recipe.mlp);
        let stored = |p| -> Result<_> { Ok(stored(source.projection(index, p)?)) };
        let inputs = [(stored(Projection::Gate)?, &mlp.gate), (stored(Projection::Up)?, &mlp.up)];
        self.meet(index, inputs, format, &b.normed[..n * model.config().hidden_size])?;
        model.run_gates(mlp, n, b)?;
        let down = [(stored(Projection::Down)?, &mlp.down)];
        self.meet(index, down, format, &b.gate[..n * mlp.down.cols()])?;
        model.run_down(mlp, n, b)
    }

    /// Counts the input `x` (n, cols) of some maps of a layer, given with their stored matrices, and rounds
    /// those matrices that no later layer uses.
    fn meet<const N: usize>(
        &mut self,
        index: usize,
        maps: [(Option<TensorRef>, &Linear); N],
        format: PackedFormat,
        x: &[f32],
    ) -> Result<()> {
        // Matrices of this layer alone differ in no second moments.
        let mut common = None;
        for (tensor, linear) in maps {
            let Some(tensor) = tensor else { continue };
            let name = tensor.name();
            let Some(layers) = self.users.get(name) else { continue };
            let own;
            let feedback = if layers.len() == 1 && linear.col_scale.is_none() {
                if common.is_none() {
                    common = Some(self.feedback(name, moments(&self.team, linear, x)?)?);
                }
                common.as_ref()
            } else {
                let mut gram = moments(&self.team, linear, x)?;
                if let Some(sum) = self.sums.remove(name) {
                    gram.merge(&sum)?;
                }
                if layers.last() != Some(&index) {
                    self.sums.insert(name.to_owned(), gram);
                    continue;
                }
                own = self.feedback(name, gram)?;
                Some(&own)
            };
            let packer = Packer { team: &self.team, path: self.source.path(), rule: self.recipe.rule() };
            let mut bytes = Vec::new();
            packer.pack(&tensor, format, (linear.rows(), linear.cols()), feedback, &mut bytes)?;
            self.made.insert(name.to_owned(), bytes);
        }
        Ok(())
    }

    fn feedback(&self, name: &str, gram: Gram) -> Result<Feedback> {
        Feedback::new(&self.team, gram, DAMPING).map_err(Error::tensor(name))
    }
}

/// Computes the second moments of a stored matrix's inputs where its map has the input `x` (n, cols).
///
/// Every token counts alike, however large its input; otherwise the few tokens with huge activations would
/// decide. An error of the matrix counts by the mean square of the map's row scales.
fn moments(team: &Team, linear: &Linear, x: &[f32]) -> Result<Gram> {
    let (isa, cols) = (team.isa(), linear.cols());
    let mut inputs = vec![0.0; x.len()];
    for_each_row(team, &mut inputs, cols, &|i, to| {
        let x = row(x, cols, i);
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
