//! Fits one layer alone to what the original's MLP does.

use std::sync::Arc;
use std::time::Instant;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sharp_model::{LayerChange, PerProjection, Projection};
use sharp_progress::Task;
use sharp_schema::Start;
use sharp_schema::metrics::WarmupLine;
use tch::{Kind, Tensor};

use super::layer_pass::LayerSample;
use super::options::{LayerSummary, WarmupOptions};
use crate::activations::Activations;
use crate::adamw::{AdamW, AdamWConfig, clip};
use crate::error::{Error, Result};
use crate::forms::Form;
use crate::gradients::Sink;
use crate::job::Job;
use crate::mlp::Mlp;
use crate::params::{Layout, Params};
use crate::pool::Pool;
use crate::start::{StartInput, begin};
use crate::tensors::{dim, scalar, size};
use crate::trained_layer::{TrainedLayer, all_finite};

/// Neighbouring tokens that go into batches together: few enough that a batch is a mixture, enough that
/// gathering is a copy.
const RUN: i64 = 64;

/// A fit's part of the progress bar, in layers passed.
pub(super) const FIT_UNITS: u64 = 8;

/// Fits layers, one after another.
pub(super) struct Fitter<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) options: &'a WarmupOptions,
    pub(super) pool: &'a Pool<()>,
    pub(super) task: &'a dyn Task,
}

/// The result of a layer's fit.
pub(super) struct FittedLayer {
    pub(super) layer: TrainedLayer,
    /// The best parameters found.
    pub(super) params: Params,
    pub(super) summary: LayerSummary,
    /// Lines of `metrics.jsonl`.
    pub(super) lines: Vec<WarmupLine>,
}

impl Fitter<'_> {
    /// Fits `form` in the layer of `change` to what the original's MLP does on the sample.
    pub(super) fn fit(
        &self,
        change: &LayerChange,
        form: &'static dyn Form,
        sample: &LayerSample,
    ) -> Result<FittedLayer> {
        let layer = change.layer;
        let LayerSample { train, validation, original } = sample;
        let reference = self.reference(change)?;
        let direct = match &reference {
            None => None,
            Some(reference) => Some(measure(&reference.with_biases_of(original), validation, self.pool)?),
        };
        let mut log = Log::new(change, self.options.start);
        self.task.note(&format!("layer {layer}: start"));
        let mut fit = self.begin(change, form, train, original, reference.as_ref())?;
        let start = measure(&fit.student, validation, self.pool)?;
        log.push(0, &start, None, 0.0);
        let (errors, steps) = self.train(&mut fit, sample, start, &mut log)?;
        if !all_finite(&fit.params.flat)? {
            let what = format!("the recovery parameters of layer {layer}");
            return Err(Error::NotFinite { what, step: steps, value: f64::NAN });
        }
        self.task.advance(FIT_UNITS);
        let summary = LayerSummary {
            layer,
            reference: change.treatment.reference(),
            direct_error: direct.map(|e| e.plain),
            start_error: start.plain,
            error: errors.plain,
            token_error: errors.token,
            weighted_error: errors.weighted,
            steps,
            seconds: log.begun.elapsed().as_secs_f64(),
        };
        Ok(FittedLayer { layer: fit.layer, params: fit.params, summary, lines: log.lines })
    }

    /// Loads the MLP that a layer uses.
    fn reference(&self, change: &LayerChange) -> Result<Option<Mlp>> {
        let Some(reference) = change.treatment.reference() else { return Ok(None) };
        let mlp = Mlp::load(self.job.source, reference, &self.job.compute)?;
        Ok(Some(mlp.ok_or_else(|| Error::invalid(format!("layer {reference} has no MLP to share")))?))
    }

    /// Registers the layer's parameters and sets them to their start.
    fn begin(
        &self,
        change: &LayerChange,
        form: &'static dyn Form,
        train: &Activations,
        original: &Mlp,
        reference: Option<&Mlp>,
    ) -> Result<Fit<'_>> {
        let mut layout = Layout::default();
        let student = original.blank_for(&change.treatment)?;
        let layer = TrainedLayer::register(change, form, self.job.source.config(), original, &mut layout)?;
        let params = Params::zeros(layout.clone(), self.job.compute.device)?;
        let given = StartInput {
            original,
            reference,
            activations: train,
            seed: self.options.seed,
            pool: self.pool,
            compute: &self.job.compute,
        };
        layer.set(&params, &begin(self.options.start, &change.treatment, &layer, &layout, &given)?)?;
        let reference = reference.map(Mlp::float_weights).transpose()?;
        let fit = Fit { layer, params, layout: Arc::new(layout), reference, student, pool: self.pool };
        fit.merge()?;
        Ok(fit)
    }

    /// Takes AdamW steps until the validation error no longer falls; leaves the best parameters in `fit` and
    /// returns their errors and the steps taken.
    fn train(
        &self,
        fit: &mut Fit<'_>,
        sample: &LayerSample,
        start: Errors,
        log: &mut Log,
    ) -> Result<(Errors, u64)> {
        let LayerSample { train, validation, .. } = sample;
        let (options, layer) = (self.options, fit.layer.layer);
        let schedule = options.schedule();
        let config = AdamWConfig { weight_decay: options.weight_decay, ..AdamWConfig::default() };
        let mut optimiser = AdamW::new(config, &fit.layout, self.job.compute.device)?;
        let mut batches =
            Batches::new(train.rows()?, options.batch_tokens, options.seed ^ (layer as u64) << 32)?;
        let energy = weighted_energy(train)?;
        let mut best = (start, fit.params.flat.f_detach_copy()?);
        let (mut since_best, mut steps, mut running) = (0, 0, Running::default());
        for step in 1..=options.steps {
            let (mut grad, loss) = fit.gradient(train, batches.next(), energy)?;
            running.add(loss);
            let norm = clip(&mut grad, 0.0)?;
            if !norm.is_finite() {
                let what = format!("the gradient's norm of layer {layer}");
                return Err(Error::NotFinite { what, step, value: norm });
            }
            optimiser.step(&mut fit.params.flat, &grad, schedule.at(step))?;
            fit.merge()?;
            steps = step;
            if !step.is_multiple_of(options.eval_every) && step != options.steps {
                continue;
            }
            let errors = measure(&fit.student, validation, self.pool)?;
            log.push(step, &errors, Some(running.take()), schedule.at(step));
            self.task.note(&format!("layer {layer}: step {step}, error {:.4}", errors.weighted));
            if errors.weighted < best.0.weighted {
                best = (errors, fit.params.flat.f_detach_copy()?);
                since_best = 0;
            } else {
                since_best += 1;
                if since_best >= options.patience {
                    break;
                }
            }
        }
        let (errors, flat) = best;
        fit.params.flat.f_copy_(&flat)?;
        Ok((errors, steps))
    }
}

/// Errors of a fit, all relative.
#[derive(Debug, Clone, Copy)]
struct Errors {
    plain: f64,
    token: f64,
    weighted: f64,
}

/// Collects a layer's lines of metrics.
struct Log {
    layer: usize,
    reference: Option<usize>,
    start: Start,
    begun: Instant,
    lines: Vec<WarmupLine>,
}

impl Log {
    fn new(change: &LayerChange, start: Start) -> Self {
        let (layer, reference) = (change.layer, change.treatment.reference());
        Self { layer, reference, start, begun: Instant::now(), lines: Vec::new() }
    }

    fn push(&mut self, step: u64, errors: &Errors, train_error: Option<f64>, lr: f64) {
        self.lines.push(WarmupLine {
            layer: self.layer,
            reference: self.reference,
            start: self.start,
            step,
            validation_error: errors.plain,
            validation_token_error: errors.token,
            validation_weighted_error: errors.weighted,
            train_weighted_error: train_error,
            lr,
            seconds: self.begun.elapsed().as_secs_f64(),
        });
    }
}

/// One layer's fit in progress.
struct Fit<'a> {
    layer: TrainedLayer,
    params: Params,
    layout: Arc<Layout>,
    reference: Option<PerProjection<Tensor>>,
    student: Mlp,
    pool: &'a Pool<()>,
}

impl Fit<'_> {
    /// Computes the student's effective weights from the parameters, the three projections at the same time.
    fn merge(&self) -> Result<()> {
        let mut items = Vec::new();
        for projection in Projection::ALL {
            let reference = self.reference.as_ref().map(|weights| weights[projection].shallow_clone());
            let (layout, flat) = (Arc::clone(&self.layout), self.params.flat.shallow_clone());
            items.push((
                projection,
                self.layer.clone(),
                layout,
                flat,
                reference,
                self.student.shallow_clone(),
            ));
        }
        self.pool.map(
            "merging weights",
            items,
            |_, (projection, layer, layout, flat, reference, student)| {
                layer.merge(projection, &layout, &flat, reference.as_ref(), &student)
            },
        )?;
        Ok(())
    }

    /// Computes the gradient of a batch's weighted relative squared error, and that error.
    fn gradient(
        &self,
        train: &Activations,
        batch: Vec<Vec<(i64, i64)>>,
        energy: f64,
    ) -> Result<(Tensor, f64)> {
        let tokens: i64 = batch.iter().flatten().map(|(_, n)| n).sum();
        let scale = 1.0 / (energy * tokens.max(1) as f64);
        let mut items = Vec::new();
        for part in batch {
            let rows = train.shallow_clone();
            let (layout, flat) = (Arc::clone(&self.layout), self.params.flat.shallow_clone());
            items.push((part, rows, self.layer.train(None), layout, flat, self.student.shallow_clone()));
        }
        let mut total: Option<Tensor> = None;
        let mut loss = 0.0;
        self.pool.run(
            "fitting",
            items,
            move |_, (part, rows, train, layout, flat, student)| {
                let gathered = gather(&rows, &part)?;
                let grad = layout.zeros(flat.device())?;
                let kept = student.forward(&gathered.x)?;
                let off = kept.y().f_sub(&gathered.y)?;
                let weighted = off.f_mul(&gathered.weight)?;
                let loss = scalar(&weighted.f_mul(&off)?.f_sum(Kind::Double)?)? * scale;
                let dy = weighted.f_mul_scalar(2.0 * scale)?;
                let sink = Sink { layout: &layout, values: &flat, grad: &grad, slot: None };
                student.backward(&gathered.x, &kept, &dy, Some((&train, &sink)), false)?;
                Ok((grad, loss))
            },
            |(grad, part)| {
                loss += part;
                match &mut total {
                    None => total = Some(grad),
                    Some(total) => drop(total.f_add_(&grad)?),
                }
                Ok(())
            },
        )?;
        Ok((total.ok_or_else(|| Error::invalid("an empty batch"))?, loss))
    }
}

/// Copies runs of rows `(start, length)` one under another.
fn gather(rows: &Activations, runs: &[(i64, i64)]) -> Result<Activations> {
    let join = |t: &Tensor| -> Result<Tensor> {
        let parts =
            runs.iter().map(|&(start, n)| Ok(t.f_narrow(0, start, n)?)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&parts, 0)?)
    };
    Ok(Activations { x: join(&rows.x)?, y: join(&rows.y)?, weight: join(&rows.weight)? })
}

/// Computes the mean weighted squared size of the outputs wanted.
fn weighted_energy(rows: &Activations) -> Result<f64> {
    let mut sum = 0.0;
    for part in rows.chunks(4096)? {
        sum += scalar(&part.y.f_square()?.f_mul_(&part.weight)?.f_sum(Kind::Double)?)?;
    }
    Ok((sum / rows.rows()?.max(1) as f64).max(1e-30))
}

/// Measures the student's errors on `rows`.
fn measure(student: &Mlp, rows: &Activations, pool: &Pool<()>) -> Result<Errors> {
    let items: Vec<(Mlp, Activations)> =
        rows.chunks(512)?.into_iter().map(|part| (student.shallow_clone(), part)).collect();
    let mut sums = [0.0; 5];
    let mut tokens = 0.0;
    pool.run(
        "measuring",
        items,
        |_, (student, part)| {
            let kept = student.forward(&part.x)?;
            let per_token = |t: &Tensor| -> Result<Tensor> {
                Ok(t.f_square()?.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Double)?)
            };
            let off = per_token(&kept.y().f_sub(&part.y)?)?;
            let energy = per_token(&part.y)?;
            let ratio = off.f_div(&energy.f_clamp_min(1e-30)?)?.f_clamp_max(1e3)?;
            let total = |t: Tensor| -> Result<f64> { scalar(&t.f_sum(Kind::Double)?) };
            Ok([
                total(off.f_mul(&part.weight)?)?,
                total(energy.f_mul(&part.weight)?)?,
                total(off)?,
                total(energy)?,
                total(ratio)?,
                part.rows()? as f64,
            ])
        },
        |part| {
            let [.., n] = part;
            tokens += n;
            for (sum, part) in sums.iter_mut().zip(part) {
                *sum += part;
            }
            Ok(())
        },
    )?;
    let [weighted_off, weighted_size, off, size, ratio] = sums;
    Ok(Errors {
        plain: off / size.max(1e-30),
        token: ratio / f64::max(tokens, 1.0),
        weighted: weighted_off / weighted_size.max(1e-30),
    })
}

/// Batches of runs of tokens, every run once in each epoch, in an order that follows from the seed.
struct Batches {
    runs: Vec<(i64, i64)>,
    order: Vec<usize>,
    at: usize,
    runs_per_batch: usize,
    rng: ChaCha8Rng,
}

impl Batches {
    fn new(rows: i64, batch_tokens: usize, seed: u64) -> Result<Self> {
        assert!(rows > 0 && batch_tokens > 0, "batches of nothing");
        let length = RUN.min(dim(batch_tokens)?);
        let runs: Vec<(i64, i64)> =
            (0..rows).step_by(size(length)).map(|start| (start, length.min(rows - start))).collect();
        let runs_per_batch = batch_tokens.div_ceil(size(length)).min(runs.len());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // One draw is unused; without it every batch would be another one than in the runs made so far.
        let _ = rng.random::<u64>();
        Ok(Self { order: Vec::new(), at: 0, runs, runs_per_batch, rng })
    }

    /// Returns the next batch, in two parts or more of at most 512 tokens. The parts, not the threads, decide
    /// the order of sums.
    fn next(&mut self) -> Vec<Vec<(i64, i64)>> {
        let mut batch = Vec::with_capacity(self.runs_per_batch);
        while batch.len() < self.runs_per_batch {
            if self.at == self.order.len() {
                self.order = (0..self.runs.len()).collect();
                self.order.shuffle(&mut self.rng);
                self.at = 0;
            }
            batch.push(self.runs[self.order[self.at]]);
            self.at += 1;
        }
        let part = batch.len().div_ceil(2).clamp(1, 8);
        batch.chunks(part).map(<[_]>::to_vec).collect()
    }
}

/// A mean of the values since it was last taken.
#[derive(Default)]
struct Running {
    sum: f64,
    n: f64,
}

impl Running {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.n += 1.0;
    }

    fn take(&mut self) -> f64 {
        let mean = self.sum / self.n.max(1.0);
        *self = Self::default();
        mean
    }
}
