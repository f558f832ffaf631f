//! Runs the original once, a layer at a time, and collects what enters and leaves each MLP.

use sharp_model::ModelSource;
use sharp_schema::Weighting;
use tch::{Kind, Tensor};

use super::activation_store::ActivationStore;
use super::options::WarmupOptions;
use crate::activations::Activations;
use crate::attention::Batch;
use crate::block::Block;
use crate::device::Compute;
use crate::error::Result;
use crate::job::Job;
use crate::llama::Embedding;
use crate::mlp::Mlp;
use crate::pool::Pool;
use crate::rope::Rope;
use crate::tensors::dim;
use crate::weights::Weights;

/// What one layer is fitted on.
#[derive(Debug)]
pub(crate) struct LayerSample {
    pub(crate) train: Activations,
    pub(crate) validation: Activations,
    /// The layer's own MLP.
    pub(crate) original: Mlp,
}

/// The residual stream of all calibration sequences at the input of the next layer.
pub(crate) struct LayerPass<'a> {
    source: &'a ModelSource,
    compute: Compute,
    weighting: Weighting,
    rope: Rope,
    hidden: ActivationStore,
    train_rows: usize,
    count: usize,
    batch: Batch,
}

impl<'a> LayerPass<'a> {
    /// Embeds the training rows, then the validation rows.
    pub(crate) fn new(job: &Job<'a>, options: &WarmupOptions) -> Result<Self> {
        let Job { source, train, validation, compute, .. } = *job;
        let d = source.config().hidden_size;
        let count = train.rows() + validation.rows();
        let bytes = (count * train.seq_len * d) as u64 * 4;
        // The stream, and a target's inputs and outputs: three of a kind at most.
        let mut hidden = match bytes.saturating_mul(3) > options.memory_bytes {
            true => ActivationStore::file(job.out, train.seq_len, d, compute.device)?,
            false => ActivationStore::memory(count),
        };
        let embedding = Embedding::load(Weights::of(source), compute.device)?;
        for (i, (tokens, _)) in train.iter().chain(validation.iter()).enumerate() {
            hidden.put(i, embedding.forward(tokens)?)?;
        }
        Ok(Self {
            source,
            compute,
            weighting: options.weighting,
            rope: Rope::new(source.config(), train.seq_len, compute.device)?,
            hidden,
            train_rows: train.rows(),
            count,
            batch: Batch { sequences: 1, time: dim(train.seq_len)? },
        })
    }

    /// Runs `layer` on the stream; returns the inputs and outputs of its MLP if they are `wanted`.
    pub(crate) fn step(
        &mut self,
        layer: usize,
        wanted: bool,
        pool: &Pool<()>,
    ) -> Result<Option<LayerSample>> {
        let block = Block::load(self.source, layer, &self.compute)?;
        let batch = self.batch;
        let (mut xs, mut ys, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        // A few sequences at a time, so that what lies in files stays there.
        let wave = 4 * self.compute.threads;
        let mut first = 0;
        while first < self.count {
            let last = (first + wave).min(self.count);
            let mut items = Vec::new();
            for i in first..last {
                items.push((block.shallow_clone(), self.rope.shallow_clone(), self.hidden.get(i)?));
            }
            let mut at = first;
            let (hidden, weighting) = (&mut self.hidden, self.weighting);
            pool.run(
                "running the original",
                items,
                move |_, (block, rope, input)| {
                    let mut middle = block.attend(&input, &rope, batch)?;
                    let Some(mlp) = &block.mlp else { return Ok((middle, None)) };
                    let x = block.mlp_input(&middle)?;
                    let y = mlp.forward(&x)?.y().f_to_kind(Kind::Float)?;
                    let _ = middle.f_add_(&y)?;
                    let seen = match wanted {
                        true => Some((x, y.shallow_clone(), square_sizes(weighting, &y, &middle)?)),
                        false => None,
                    };
                    Ok((middle, seen))
                },
                |(output, seen)| {
                    hidden.put(at, output)?;
                    at += 1;
                    if let Some((x, y, size)) = seen {
                        xs.push(x);
                        ys.push(y);
                        weights.push(size);
                    }
                    Ok(())
                },
            )?;
            first = last;
        }
        let (true, Some(original)) = (wanted, block.mlp) else { return Ok(None) };
        let held = |all: &mut Vec<Tensor>| -> Result<(Tensor, Tensor)> {
            let validation = all.split_off(self.train_rows.min(all.len()));
            let joined = (Tensor::f_cat(all, 0)?, Tensor::f_cat(&validation, 0)?);
            all.clear();
            Ok(joined)
        };
        let (x, x_validation) = held(&mut xs)?;
        let (y, y_validation) = held(&mut ys)?;
        let (size, size_validation) = held(&mut weights)?;
        let (weight, scale) = token_weights(self.weighting, &size, None)?;
        let (weight_validation, _) = token_weights(self.weighting, &size_validation, Some(scale))?;
        Ok(Some(LayerSample {
            train: Activations { x, y, weight },
            validation: Activations { x: x_validation, y: y_validation, weight: weight_validation },
            original,
        }))
    }
}

/// Computes the squared size that each token's error is divided by, `(n, 1)`.
fn square_sizes(weighting: Weighting, y: &Tensor, residual: &Tensor) -> Result<Tensor> {
    let of = match weighting {
        Weighting::Residual => residual,
        Weighting::Output | Weighting::None => y,
    };
    Ok(of.f_norm_scalaropt_dim(2, [1i64].as_slice(), true)?.f_square()?)
}

/// Computes weights `(n, 1)` with mean 1 over the training tokens, and the floor and factor that give them.
fn token_weights(
    weighting: Weighting,
    size: &Tensor,
    scale: Option<(f64, f64)>,
) -> Result<(Tensor, (f64, f64))> {
    if weighting == Weighting::None {
        return Ok((size.f_ones_like()?, (0.0, 1.0)));
    }
    let floor = match scale {
        Some((floor, _)) => floor,
        None => 0.1 * crate::tensors::scalar(&size.f_median()?)?,
    };
    let raw = size.f_add_scalar(floor.max(1e-20))?.f_reciprocal()?;
    let factor = match scale {
        Some((_, factor)) => factor,
        None => 1.0 / crate::tensors::scalar(&raw.f_mean(tch::Kind::Double)?)?,
    };
    Ok((raw.f_mul_scalar(factor)?, (floor, factor)))
}
