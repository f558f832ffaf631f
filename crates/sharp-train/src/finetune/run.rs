//! One fine-tuning run, step by step: resume, measure, train, log, save.

use std::path::PathBuf;
use std::time::Instant;

use sharp_model::RECOVERY_FILE;
use sharp_schema::metrics::{FinetuneLine, HeldOut};

use super::checkpoint;
use super::options::{FinetuneOptions, FinetuneSummary, StartFrom};
use super::sequences::{RowOrder, Sequences};
use super::student::Student;
use crate::adamw::{AdamW, AdamWConfig, clip};
use crate::error::{Error, Result};
use crate::head::{Loss, LossSums};
use crate::job::Job;
use crate::metrics;
use crate::schedule::Schedule;

/// A fine-tuning run in progress.
pub(super) struct Run<'a> {
    job: &'a Job<'a>,
    options: &'a FinetuneOptions,
    student: Student,
    optimiser: AdamW,
    schedule: Schedule,
    /// What a checkpoint must have been made with.
    fingerprint: String,
    order: RowOrder,
    rows_per_step: usize,
    held_out: Vec<Sequences>,
    metrics_path: PathBuf,
    /// The lines of `metrics.jsonl`, those before a resume included.
    lines: Vec<FinetuneLine>,
    /// The step of the checkpoint that this call went on from.
    resumed_from: Option<u64>,
    /// Seconds that earlier calls took up to that checkpoint.
    seconds_before: f64,
    begun: Instant,
    /// Tokens trained on in this call, and the seconds that took.
    tokens: u64,
    working: f64,
    /// Held-out loss before the first step, and the last one measured, in nats a token.
    start_nll: f64,
    last_nll: f64,
}

/// The figures of one step.
pub(super) struct StepResult {
    step: u64,
    sums: LossSums,
    grad_norm: f64,
    lr: f64,
}

impl<'a> Run<'a> {
    /// Loads the model and lays out everything that is trained, at its first values.
    pub(super) fn new(job: &'a Job<'a>, from: StartFrom<'_>, options: &'a FinetuneOptions) -> Result<Self> {
        let student = Student::new(job, from, options)?;
        let layout = &student.params.layout;
        let config = AdamWConfig { weight_decay: options.weight_decay, ..AdamWConfig::default() };
        let optimiser = AdamW::new(config, layout, job.compute.device)?;
        let fingerprint = checkpoint::fingerprint(job, from, layout, options)?;
        Ok(Self {
            job,
            options,
            student,
            optimiser,
            schedule: options.schedule(),
            fingerprint,
            order: RowOrder::new(job.train.rows(), options.seed),
            rows_per_step: (options.batch_tokens / job.train.seq_len).max(1),
            held_out: Sequences::of_rows(job.held_out, 0..job.held_out.rows()),
            metrics_path: job.out.join(metrics::FILE),
            lines: Vec::new(),
            resumed_from: None,
            seconds_before: 0.0,
            begun: Instant::now(),
            tokens: 0,
            working: 0.0,
            start_nll: f64::NAN,
            last_nll: f64::NAN,
        })
    }

    /// Restores the last checkpoint, if there is one; returns the steps taken before this call.
    pub(super) fn resume(&mut self) -> Result<u64> {
        if let Some(found) = checkpoint::latest(self.job.out)? {
            let (params, optimiser) = (&mut self.student.params, &mut self.optimiser);
            let step = checkpoint::load(&found, &self.fingerprint, params, optimiser)?;
            self.lines = metrics::finetune_lines(&self.metrics_path)?;
            // What a killed run did after its last checkpoint is done again.
            self.lines.retain(|line| line.step() <= step);
            self.seconds_before = self.lines.last().map_or(0.0, FinetuneLine::seconds);
            self.resumed_from = Some(step);
            tracing::info!(step, "resumed");
        }
        self.student.merge()?;
        self.begun = Instant::now();
        Ok(self.resumed_from.unwrap_or(0))
    }

    /// Measures the held-out loss before the first step, unless an earlier call has done so.
    pub(super) fn measure_start(&mut self) -> Result<()> {
        self.start_nll = match self.lines.first().and_then(FinetuneLine::held_out) {
            Some(held_out) => held_out.loss,
            None => {
                let held_out = self.measure()?;
                self.lines.push(FinetuneLine::Start { step: 0, held_out, seconds: 0.0 });
                metrics::write_finetune(&self.metrics_path, &self.lines)?;
                held_out.loss
            }
        };
        self.last_nll = self.start_nll;
        Ok(())
    }

    /// Takes step number `step`, counted from 1: gradient, clipping, AdamW, merging.
    pub(super) fn step(&mut self, step: u64) -> Result<StepResult> {
        let begun = Instant::now();
        let first = (step - 1) * self.rows_per_step as u64;
        let rows: Vec<usize> = (0..self.rows_per_step).map(|i| self.order.at(first + i as u64)).collect();
        let (mut grad, sums) = self.student.gradient(Sequences::of_rows(self.job.train, rows))?;
        let mean = sums.mean(self.options.loss);
        if !mean.is_finite() {
            return Err(Error::NotFinite { what: "the training loss".into(), step, value: mean });
        }
        let grad_norm = clip(&mut grad, self.options.clip)?;
        if !grad_norm.is_finite() {
            return Err(Error::NotFinite { what: "the gradient's norm".into(), step, value: grad_norm });
        }
        let lr = self.schedule.at(step);
        self.optimiser.step(&mut self.student.params.flat, &grad, lr)?;
        drop(grad);
        self.student.merge()?;
        self.tokens += (self.rows_per_step * self.job.train.seq_len) as u64;
        self.working += begun.elapsed().as_secs_f64();
        Ok(StepResult { step, sums, grad_norm, lr })
    }

    /// Adds a step's line to the metrics, with the held-out loss where it is due.
    pub(super) fn log(&mut self, result: &StepResult) -> Result<()> {
        let StepResult { step, sums, grad_norm, lr } = *result;
        let options = self.options;
        let seconds = self.seconds_before + self.begun.elapsed().as_secs_f64();
        let due = options.eval_every > 0 && step.is_multiple_of(options.eval_every);
        let held_out = if due || step == options.steps { Some(self.measure()?) } else { None };
        self.last_nll = held_out.map_or(self.last_nll, |held_out| held_out.loss);
        self.lines.push(FinetuneLine::Step {
            step,
            train_loss: sums.mean_nll(),
            train_kl: mean_kl(options.loss, &sums),
            lr,
            grad_norm,
            tokens_per_second: self.tokens_per_second(),
            seconds,
            held_out,
        });
        Ok(())
    }

    /// Measures the model on the held-out rows.
    fn measure(&self) -> Result<HeldOut> {
        let sums = self.student.measure(&self.held_out)?;
        let loss = sums.mean_nll();
        Ok(HeldOut { loss, perplexity: loss.exp(), kl: mean_kl(self.options.loss, &sums) })
    }

    /// Says in a few words how training goes.
    pub(super) fn note(&self, result: &StepResult) -> String {
        let loss = result.sums.mean(self.options.loss);
        format!("loss {loss:.3}, held-out perplexity {:.2}", self.last_nll.exp())
    }

    /// Writes a checkpoint where one is due.
    pub(super) fn save(&self, step: u64) -> Result<()> {
        let every = self.options.save_every;
        if every == 0 || !step.is_multiple_of(every) || step == self.options.steps {
            return Ok(());
        }
        metrics::write_finetune(&self.metrics_path, &self.lines)?;
        let recovery = self.student.recovery()?;
        checkpoint::save(
            self.job.out,
            step,
            &self.fingerprint,
            &recovery,
            &self.student.params,
            &self.optimiser,
        )
    }

    /// Writes the result if all steps are taken, and sums up.
    pub(super) fn finish(self) -> Result<FinetuneSummary> {
        let steps = self.lines.last().map_or(0, FinetuneLine::step);
        if steps == self.options.steps {
            metrics::write_finetune(&self.metrics_path, &self.lines)?;
            self.student.recovery()?.save(self.job.out.join(RECOVERY_FILE))?;
        }
        Ok(FinetuneSummary {
            steps,
            resumed_from: self.resumed_from,
            parameters: self.student.params.layout.total() as u64,
            start_perplexity: self.start_nll.exp(),
            perplexity: self.last_nll.exp(),
            tokens_per_second: self.tokens_per_second(),
        })
    }

    fn tokens_per_second(&self) -> f64 {
        if self.working > 0.0 { self.tokens as f64 / self.working } else { 0.0 }
    }
}

/// Computes the mean divergence from the original in nats a token; `None` for a loss without it.
fn mean_kl(loss: Loss, sums: &LossSums) -> Option<f64> {
    loss.needs_teacher().then(|| sums.kl / sums.tokens.max(1) as f64)
}
