//! Fits one target to its original.

use std::sync::Arc;
use std::time::Instant;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use sharp_model::{LayerChange, ModelSource, Projection, Recovery};
use sharp_progress::Task;
use tch::{Kind, Tensor};

use super::walk::Reached;
use super::{LayerSummary, WarmupOptions};
use crate::adamw::{AdamW, AdamWConfig, clip};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::mlp::{Mlp, Sink, index};
use crate::params::{Layout, Params};
use crate::pool::Pool;
use crate::schedule::Schedule;
use crate::start::{Activations, begin};
use crate::target::{Recovered, all_finite, reference_weights};
use crate::tensors::{dim, scalar};

/// Neighbouring tokens that go into batches together: few enough that a batch is a mixture, enough that gathering is a copy.
const RUN: i64 = 64;

/// What is the same for every step of a fit.
struct Fit<'a> {
    recovered: Recovered,
    layout: Arc<Layout>,
    reference: Option<[Tensor; 3]>,
    student: Mlp,
    pool: &'a Pool<()>,
}

/// Errors of a fit, all relative.
#[derive(Debug, Clone, Copy)]
struct Errors {
    plain: f64,
    token: f64,
    weighted: f64,
}

/// Fits `target`; returns what it stores of its own, a summary, and the lines of metrics.
pub(super) fn fit(
    source: &ModelSource,
    target: &LayerChange,
    reached: Reached,
    options: &WarmupOptions,
    pool: &Pool<()>,
    compute: &Compute,
    task: &dyn Task,
) -> Result<(Recovery, LayerSummary, Vec<Value>)> {
    let layer = target.layer;
    let Reached { train, held_out, original } = reached;
    let reference = match target.treatment.reference() {
        None => None,
        Some(reference) => {
            let mlp = Mlp::load(source, reference, compute)?;
            Some(mlp.ok_or_else(|| Error::invalid(format!("layer {reference} has no MLP to share")))?)
        }
    };
    let mut lines = Vec::new();
    let direct = match &reference {
        None => None,
        Some(reference) => Some(measure(&with_biases_of(reference, &original), &held_out, pool)?),
    };
    let begun = Instant::now();
    let mut layout = Layout::default();
    let student = original.blank_for(&target.treatment)?;
    let recovered = Recovered::register(target, &student, &mut layout)?
        .ok_or_else(|| Error::invalid(format!("layer {layer} has nothing to fit")))?;
    let mut params = Params::zeros(layout.clone(), compute.device)?;
    task.note(&format!("layer {layer}: start"));
    let seed = options.seed;
    let pieces = begin(options.start, target, &original, reference.as_ref(), &train, seed, pool, compute)?;
    recovered.set(&params, &pieces)?;
    drop(pieces);
    let fit = Fit {
        recovered,
        layout: Arc::new(layout),
        reference: reference.as_ref().map(reference_weights).transpose()?,
        student,
        pool,
    };
    fit.merge(&params.flat)?;
    let mut errors = measure(&fit.student, &held_out, pool)?;
    let start = errors;
    let line = |step: u64, errors: &Errors, train_error: Option<f64>, lr: f64| {
        json!({
            "stage": "warmup", "layer": layer, "reference": target.treatment.reference(), "start": options.start.name(),
            "step": step, "held_out_error": errors.plain, "held_out_token_error": errors.token,
            "held_out_weighted_error": errors.weighted, "train_weighted_error": train_error, "lr": lr,
            "seconds": begun.elapsed().as_secs_f64(),
        })
    };
    lines.push(line(0, &errors, None, 0.0));

    let schedule = Schedule {
        peak: options.lr,
        warmup_steps: (options.steps / 20).max(1),
        total_steps: options.steps,
        floor: 0.05,
    };
    let config = AdamWConfig { weight_decay: options.weight_decay, ..AdamWConfig::default() };
    let mut optimiser = AdamW::new(config, &fit.layout, compute.device)?;
    let mut batches = Batches::new(train.rows()?, options.batch_tokens, seed ^ (layer as u64) << 32)?;
    let energy = weighted_energy(&train)?;
    let mut best = (errors, params.flat.f_detach_copy()?);
    let (mut since_best, mut steps, mut running) = (0, 0, Running::default());
    for step in 1..=options.steps {
        let batch = batches.next();
        let (mut grad, loss) = fit.gradient(&params.flat, &train, batch, energy)?;
        running.add(loss);
        let norm = clip(&mut grad, 0.0)?;
        if !norm.is_finite() {
            let what = format!("the gradient's norm of layer {layer}");
            return Err(Error::NotFinite { what, step, value: norm });
        }
        optimiser.step(&mut params.flat, &grad, schedule.at(step))?;
        fit.merge(&params.flat)?;
        steps = step;
        if step % options.eval_every == 0 || step == options.steps {
            errors = measure(&fit.student, &held_out, pool)?;
            lines.push(line(step, &errors, Some(running.take()), schedule.at(step)));
            task.note(&format!("layer {layer}: step {step}, error {:.4}", errors.weighted));
            if errors.weighted < best.0.weighted {
                best = (errors, params.flat.f_detach_copy()?);
                since_best = 0;
            } else {
                since_best += 1;
                if since_best >= options.patience {
                    break;
                }
            }
        }
    }
    let (errors, flat) = best;
    params.flat.f_copy_(&flat)?;
    if !all_finite(&params.flat)? {
        let what = format!("the recovery parameters of layer {layer}");
        return Err(Error::NotFinite { what, step: steps, value: f64::NAN });
    }
    task.advance(8);
    let summary = LayerSummary {
        layer,
        reference: target.treatment.reference(),
        direct_error: direct.map(|e| e.plain),
        start_error: start.plain,
        error: errors.plain,
        token_error: errors.token,
        weighted_error: errors.weighted,
        steps,
        seconds: begun.elapsed().as_secs_f64(),
    };
    Ok((fit.recovered.recovery(&params)?, summary, lines))
}

/// A reference's weights with the target's own biases: what direct sharing computes.
fn with_biases_of(reference: &Mlp, target: &Mlp) -> Mlp {
    let mut mixed = reference.share();
    mixed.gate_up.bias = target.gate_up.bias.as_ref().map(Tensor::shallow_clone);
    mixed.down.bias = target.down.bias.as_ref().map(Tensor::shallow_clone);
    mixed
}

impl Fit<'_> {
    /// Puts the parameters into the student's effective weights, the three projections side by side.
    fn merge(&self, flat: &Tensor) -> Result<()> {
        let mut items = Vec::new();
        for projection in Projection::ALL {
            let reference =
                self.reference.as_ref().and_then(|r| r.get(index(projection))).map(Tensor::shallow_clone);
            let layout = Arc::clone(&self.layout);
            let flat = flat.shallow_clone();
            items.push((projection, self.recovered.share(), layout, flat, reference, self.student.share()));
        }
        self.pool.map(
            "merging weights",
            items,
            |_, (projection, recovered, layout, flat, reference, student)| {
                recovered.merge(projection, &layout, &flat, reference.as_ref(), &student)
            },
        )?;
        Ok(())
    }

    /// The gradient of a batch's weighted relative squared error, and that error.
    fn gradient(
        &self,
        flat: &Tensor,
        train: &Activations,
        batch: Vec<Vec<(i64, i64)>>,
        energy: f64,
    ) -> Result<(Tensor, f64)> {
        let tokens: i64 = batch.iter().flatten().map(|(_, n)| n).sum();
        let scale = 1.0 / (energy * tokens.max(1) as f64);
        let mut items = Vec::new();
        for part in batch {
            let rows = train.share();
            let (layout, flat) = (Arc::clone(&self.layout), flat.shallow_clone());
            items.push((part, rows, self.recovered.train(None), layout, flat, self.student.share()));
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
                let sink = Sink { layout: &layout, values: &flat, grad: &grad, turn: None };
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

/// Runs of rows `(start, length)` one under another.
fn gather(rows: &Activations, runs: &[(i64, i64)]) -> Result<Activations> {
    let join = |t: &Tensor| -> Result<Tensor> {
        let parts =
            runs.iter().map(|&(start, n)| Ok(t.f_narrow(0, start, n)?)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&parts, 0)?)
    };
    Ok(Activations { x: join(&rows.x)?, y: join(&rows.y)?, weight: join(&rows.weight)? })
}

/// Mean weighted squared size of the outputs wanted.
fn weighted_energy(rows: &Activations) -> Result<f64> {
    let mut sum = 0.0;
    for part in rows.chunks(4096)? {
        sum += scalar(&part.y.f_square()?.f_mul_(&part.weight)?.f_sum(Kind::Double)?)?;
    }
    Ok((sum / rows.rows()?.max(1) as f64).max(1e-30))
}

/// The student's errors on `rows`.
fn measure(student: &Mlp, rows: &Activations, pool: &Pool<()>) -> Result<Errors> {
    let items: Vec<(Mlp, Activations)> =
        rows.chunks(512)?.into_iter().map(|part| (student.share(), part)).collect();
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
            let size = per_token(&part.y)?;
            let ratio = off.f_div(&size.f_clamp_min(1e-30)?)?.f_clamp_max(1e3)?;
            let total = |t: Tensor| -> Result<f64> { scalar(&t.f_sum(Kind::Double)?) };
            Ok([
                total(off.f_mul(&part.weight)?)?,
                total(size.f_mul(&part.weight)?)?,
                total(off)?,
                total(size)?,
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
        let length = RUN.min(dim(batch_tokens)?).max(1);
        let runs: Vec<(i64, i64)> = (0..rows)
            .step_by(usize::try_from(length).unwrap_or(1))
            .map(|s| (s, length.min(rows - s)))
            .collect();
        let per_batch =
            batch_tokens.div_ceil(usize::try_from(length).unwrap_or(1)).clamp(1, runs.len().max(1));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let _ = rng.random::<u64>();
        Ok(Self { order: Vec::new(), at: 0, runs, runs_per_batch: per_batch, rng })
    }

    /// The next batch, in two parts or more of at most 512 tokens: the parts, not the threads, decide the order of sums.
    fn next(&mut self) -> Vec<Vec<(i64, i64)>> {
        let mut batch = Vec::with_capacity(self.runs_per_batch);
        while batch.len() < self.runs_per_batch {
            if self.at >= self.order.len() {
                self.order = (0..self.runs.len()).collect();
                self.order.shuffle(&mut self.rng);
                self.at = 0;
            }
            if let Some(&run) = self.order.get(self.at).and_then(|&i| self.runs.get(i)) {
                batch.push(run);
            }
            self.at += 1;
        }
        let part = batch.len().div_ceil(2).clamp(1, 8);
        batch.chunks(part).map(<[_]>::to_vec).collect()
    }
}

/// A mean since it was last asked.
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
