//! Estimates how long fine-tuning takes on this machine, from one layer and the head on random tokens.
//!
//! A step is so many layers forwards, so many backwards, the head, and the optimiser. Each of these is timed
//! once, on all workers together, which share caches and memory as they will in training. It takes as long
//! as a few layers do, whatever the model's depth.

use std::sync::Arc;
use std::time::Instant;

use sharp_model::{ModelSource, PerProjection, Plan, Projection, names};
use tch::{Device, Kind, Tensor};

use super::options::FinetuneOptions;
use super::outline::Outline;
use crate::adamw::{AdamW, AdamWConfig, clip};
use crate::attention::Batch;
use crate::block::{BackwardPass, Block, BlockTrain};
use crate::device::Compute;
use crate::error::Result;
use crate::gradients::Sink;
use crate::head::{Head, Loss, Targets};
use crate::mlp_train::MlpTrain;
use crate::params::{Group, Layout};
use crate::pool::Pool;
use crate::rope::Rope;
use crate::tensors::{dim, scalar};
use crate::weights::Weights;

/// How fast fine-tuning will be.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Pace {
    /// Training tokens a second.
    pub tokens_per_second: f64,
    /// Seconds of all steps and of the measurements between them; loading and saving come on top.
    pub seconds: f64,
}

/// Times a layer and the head of `source`, and adds up what fine-tuning takes under `plan`. Rows are of
/// `seq_len` tokens, and `measured` of them are measured on.
///
/// # Errors
/// [`Error::Model`](crate::Error::Model) from files, [`Error::Torch`](crate::Error::Torch) if memory runs
/// out.
pub fn estimate_pace(
    source: &ModelSource,
    plan: &Plan,
    (seq_len, measured): (usize, usize),
    compute: &Compute,
    options: &FinetuneOptions,
) -> Result<Pace> {
    let outline = Outline::new(source.config(), plan, options);
    let at_once = compute.sequences_at_once(seq_len);
    let rows = (options.batch_tokens / seq_len.max(1)).max(1);
    let passes = rows.div_ceil(at_once);
    let workers = passes.min(compute.threads);
    let bench = Bench::load(source, outline.first, (at_once.min(rows), seq_len), compute, options.loss)?;
    let pool = Pool::new((0..workers).map(|_| bench.shallow_clone()).collect())?;
    // The first time libtorch prepares its products.
    pool.map("trying out a step", vec![(); workers], |bench, ()| bench.time())?;
    let times = pool.map("timing a step", vec![(); workers], |bench, ()| bench.time())?;
    let mean = |of: fn(&Times) -> f64| times.iter().map(of).sum::<f64>() / workers as f64;

    let layers = outline.config.num_hidden_layers;
    let teacher = if options.loss.needs_teacher() { layers - outline.changed } else { 0 };
    let backwards = outline.backward_layers();
    let trained = outline.trained_layers().min(backwards);
    let forward = mean(|t| t.forward);
    let pass = (outline.first + teacher) as f64 * forward
        + trained as f64 * mean(|t| t.trained)
        + (backwards - trained) as f64 * mean(|t| t.frozen)
        + mean(|t| t.head);
    let step = passes.div_ceil(workers) as f64 * pass
        + outline.trained as f64 * bench.optimiser_seconds_a_value()?;
    let measurement = measured.div_ceil(at_once).div_ceil(compute.threads) as f64
        * ((outline.first + backwards + teacher) as f64 * forward + mean(|t| t.head));
    let between = options.steps.checked_div(options.eval_every).unwrap_or(0);
    Ok(Pace {
        tokens_per_second: (rows * seq_len) as f64 / step,
        seconds: options.steps as f64 * step + (between + 1) as f64 * measurement,
    })
}

/// Seconds of one pass through a part of the model.
struct Times {
    /// A layer forwards.
    forward: f64,
    /// A layer forwards and backwards, its MLP being trained.
    trained: f64,
    /// A layer forwards and backwards, nothing of it being trained.
    frozen: f64,
    /// The head, its loss and gradient.
    head: f64,
}

/// One layer and the head, with random activations.
struct Bench {
    block: Block,
    head: Head,
    rope: Rope,
    batch: Batch,
    hidden: Tensor,
    targets: Targets,
    loss: Loss,
    layout: Arc<Layout>,
    train: BlockTrain,
    values: Tensor,
}

impl Bench {
    fn load(
        source: &ModelSource,
        layer: usize,
        (sequences, time): (usize, usize),
        compute: &Compute,
        loss: Loss,
    ) -> Result<Self> {
        let config = source.config();
        let layer = layer.min(config.num_hidden_layers - 1);
        let mut layout = Layout::default();
        let ids = PerProjection::try_from_fn(|p: Projection| {
            let (out, input) = p.shape_with(config.hidden_size, config.intermediate_size);
            layout.add(names::mlp_weight(layer, p), &[out, input], Group::StoredMlp)
        })?;
        let (n, device) = (dim(sequences * time)?, compute.device);
        let like = (Kind::Float, device);
        let counted = n - 1;
        Ok(Self {
            block: Block::load(source, layer, compute)?,
            head: Head::load(Weights::of(source), compute)?,
            rope: Rope::new(config, time, device)?,
            batch: Batch { sequences: dim(sequences)?, time: dim(time)? },
            hidden: Tensor::f_randn([n, dim(config.hidden_size)?], like)?,
            targets: Targets {
                positions: Tensor::f_arange(counted, (Kind::Int64, device))?,
                labels: Tensor::f_zeros([counted], (Kind::Int64, device))?,
            },
            loss,
            values: layout.zeros(device)?,
            layout: Arc::new(layout),
            train: BlockTrain { mlp: Some(MlpTrain::Stored(ids)), ..BlockTrain::default() },
        })
    }

    fn shallow_clone(&self) -> Self {
        Self {
            block: self.block.shallow_clone(),
            head: self.head.shallow_clone(),
            rope: self.rope.shallow_clone(),
            batch: self.batch,
            hidden: self.hidden.shallow_clone(),
            targets: Targets {
                positions: self.targets.positions.shallow_clone(),
                labels: self.targets.labels.shallow_clone(),
            },
            loss: self.loss,
            layout: Arc::clone(&self.layout),
            train: self.train.clone(),
            values: self.values.shallow_clone(),
        }
    }

    fn time(&self) -> Result<Times> {
        let both_ways = |train: &BlockTrain| -> Result<f64> {
            let grad = self.layout.zeros(self.values.device())?;
            let sink = Sink { layout: &self.layout, values: &self.values, grad: &grad, slot: None };
            let pass = BackwardPass { rope: &self.rope, batch: self.batch, sink: &sink };
            let begun = Instant::now();
            let (output, kept) =
                self.block.forward_keeping(self.hidden.shallow_clone(), &self.rope, self.batch)?;
            let d = self.block.backward(output, kept, train, &pass, true)?;
            settled(d.as_ref().unwrap_or(&grad))?;
            Ok(begun.elapsed().as_secs_f64())
        };
        let trained = both_ways(&self.train)?;
        let frozen = both_ways(&BlockTrain::default())?;
        let begun = Instant::now();
        settled(&self.block.forward(&self.hidden, &self.rope, self.batch)?)?;
        let forward = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        let teacher = self.loss.needs_teacher().then_some((&self.head, &self.hidden));
        let (_, d) = self.head.differentiate(&self.hidden, &self.targets, self.loss, teacher, 1e-3, None)?;
        settled(&d)?;
        Ok(Times { forward, trained, frozen, head: begun.elapsed().as_secs_f64() })
    }

    /// Times clipping and AdamW on the layer's weights.
    fn optimiser_seconds_a_value(&self) -> Result<f64> {
        let device: Device = self.values.device();
        let mut optimiser = AdamW::new(AdamWConfig::default(), &self.layout, device)?;
        let (mut values, mut grad) = (self.layout.zeros(device)?, self.layout.zeros(device)?);
        let mut seconds = 0.0;
        for _ in 0..2 {
            let begun = Instant::now();
            clip(&mut grad, 1.0)?;
            optimiser.step(&mut values, &grad, 1e-3)?;
            settled(&values)?;
            seconds = begun.elapsed().as_secs_f64();
        }
        Ok(seconds / self.layout.total() as f64)
    }
}

/// Waits until a tensor is computed, which a GPU does later than it says.
fn settled(tensor: &Tensor) -> Result<()> {
    scalar(&tensor.f_sum(Kind::Double)?)?;
    Ok(())
}
