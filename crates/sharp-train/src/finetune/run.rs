//! One fine-tuning run, step by step: resume, measure, train, log, save.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use sharp_model::RECOVERY_FILE;
use sharp_schema::metrics::{FinetuneLine, ResultLine, TextLoss, Validation};

use super::best::{Best, Verdict};
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
    validation: Vec<Sequences>,
    metrics_path: PathBuf,
    /// Where the result is taken from; `None` until the start is measured.
    best: Option<Best>,
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
    /// The measurement before the first step.
    start: Option<Validation>,
    /// Validation loss of the last measurement, in nats a token.
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
            validation: Sequences::of_rows(job.validation, 0..job.validation.rows()),
            metrics_path: job.out.join(metrics::FILE),
            best: None,
            lines: Vec::new(),
            resumed_from: None,
            seconds_before: 0.0,
            begun: Instant::now(),
            tokens: 0,
            working: 0.0,
            start: None,
            last_nll: f64::NAN,
        })
    }

    /// Restores the last checkpoint, if there is one; returns the steps taken before this call.
    pub(super) fn resume(&mut self) -> Result<u64> {
        let (params, optimiser) = (&mut self.student.params, &mut self.optimiser);
        if let Some(found) = checkpoint::resume(self.job.out, &self.fingerprint, params, optimiser)? {
            let step = found.step;
            self.best = Some(found.best);
            self.start = Some(found.start);
            self.lines = found.lines;
            self.seconds_before = self.lines.last().map_or(0.0, FinetuneLine::seconds);
            self.resumed_from = Some(step);
            tracing::info!(step, "resumed");
        }
        self.student.merge()?;
        self.begun = Instant::now();
        Ok(self.resumed_from.unwrap_or(0))
    }

    /// Measures the validation loss before the first step, unless an earlier call has done so.
    pub(super) fn measure_start(&mut self) -> Result<()> {
        let start = match self.start {
            Some(start) => start,
            None => {
                let (validation, loss) = self.measure()?;
                self.best = Some(Best::start(loss, validation.perplexity, &self.student.params.flat)?);
                self.lines = vec![FinetuneLine::Start { step: 0, validation, seconds: 0.0 }];
                metrics::write_finetune(&self.metrics_path, &self.lines, None)?;
                validation
            }
        };
        self.start = Some(start);
        self.last_nll = start.loss;
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
        let lr = self.schedule.at(step) * self.best.as_ref().map_or(1.0, |best| best.record.rate());
        self.optimiser.step(&mut self.student.params.flat, &grad, lr)?;
        drop(grad);
        self.student.merge()?;
        self.tokens += (self.rows_per_step * self.job.train.seq_len) as u64;
        self.working += begun.elapsed().as_secs_f64();
        Ok(StepResult { step, sums, grad_norm, lr })
    }

    /// Adds a step's line to the metrics, with the validation loss where it is due. Where that says that
    /// training has diverged, goes back to the best state.
    pub(super) fn log(&mut self, result: &StepResult) -> Result<()> {
        let StepResult { step, sums, grad_norm, lr } = *result;
        let options = self.options;
        let seconds = self.seconds_before + self.begun.elapsed().as_secs_f64();
        let due = options.eval_every > 0 && step.is_multiple_of(options.eval_every);
        let measured = if due || step == options.steps { Some(self.measure()?) } else { None };
        let validation = measured.map(|(validation, _)| validation);
        self.last_nll = validation.map_or(self.last_nll, |validation| validation.loss);
        self.lines.push(FinetuneLine::Step {
            step,
            train_loss: sums.mean_nll(),
            train_kl: mean_kl(options.loss, &sums),
            lr,
            grad_norm,
            tokens_per_second: self.tokens_per_second(),
            seconds,
            validation,
        });
        let Some((validation, loss)) = measured else { return Ok(()) };
        let best = self.best.as_mut().expect("the start was measured");
        let verdict = best.measured(step, loss, validation.perplexity, &self.student.params.flat)?;
        if verdict == Verdict::Diverged && step < options.steps {
            self.go_back(step, validation.perplexity)?;
        }
        Ok(())
    }

    /// Puts the best state in the place of the present one, and halves the learning rate.
    fn go_back(&mut self, step: u64, perplexity: f64) -> Result<()> {
        let best = self.best.as_mut().expect("the start was measured");
        best.went_back();
        let (to, rate) = (best.record.step, best.record.rate());
        self.student.params.flat.f_copy_(&best.flat)?;
        self.optimiser.reset()?;
        self.student.merge()?;
        tracing::warn!(step, perplexity, to, rate, "training diverged; it goes back and on more slowly");
        Ok(())
    }

    /// Measures the model on the validation rows; also returns the mean of what is minimised.
    fn measure(&self) -> Result<(Validation, f64)> {
        let sums = self.student.measure(&self.validation)?;
        let loss = sums.mean_nll();
        let validation = Validation { loss, perplexity: loss.exp(), kl: mean_kl(self.options.loss, &sums) };
        Ok((validation, sums.mean(self.options.loss)))
    }

    /// Says in a few words how training goes.
    pub(super) fn note(&self, result: &StepResult) -> String {
        let loss = result.sums.mean(self.options.loss);
        format!("loss {loss:.3}, validation perplexity {:.2}", self.last_nll.exp())
    }

    /// Writes a checkpoint where one is due.
    pub(super) fn save(&self, step: u64) -> Result<()> {
        let every = self.options.save_every;
        if every == 0 || !step.is_multiple_of(every) || step == self.options.steps {
            return Ok(());
        }
        metrics::write_finetune(&self.metrics_path, &self.lines, None)?;
        let recovery = self.student.recovery()?;
        let progress = checkpoint::Progress {
            step,
            best: self.best.as_ref().expect("the start was measured"),
            start: self.start.expect("the start was measured"),
            lines: &self.lines,
        };
        let (params, optimiser) = (&self.student.params, &self.optimiser);
        checkpoint::save(self.job.out, &self.fingerprint, &progress, recovery.as_ref(), params, optimiser)
    }

    /// Writes the best state if all steps are taken, and sums up.
    pub(super) fn finish(mut self) -> Result<FinetuneSummary> {
        let steps = self.lines.last().map_or(0, FinetuneLine::step);
        let best = self.best.as_ref().expect("the start was measured");
        let record = best.record;
        if steps == self.options.steps {
            if record.step < steps {
                let (step, last, kept) = (steps, self.last_nll.exp(), record.step);
                self.student.params.flat.f_copy_(&best.flat)?;
                self.student.merge()?;
                self.last_nll = record.perplexity.ln();
                tracing::warn!(
                    step,
                    last,
                    kept,
                    "an earlier state was better on validation text, and is kept"
                );
            }
            let result = self.result(record.step)?;
            metrics::write_finetune(&self.metrics_path, &self.lines, result)?;
            if let Some(recovery) = self.student.recovery()? {
                recovery.save(self.job.out.join(RECOVERY_FILE))?;
            }
        }
        Ok(FinetuneSummary {
            steps,
            resumed_from: self.resumed_from,
            parameters: self.student.params.layout.total() as u64,
            start_perplexity: self.start.map_or(f64::NAN, |start| start.loss.exp()),
            perplexity: self.last_nll.exp(),
            kept_step: if steps == self.options.steps { record.step } else { steps },
            setbacks: record.setbacks,
            tokens_per_second: self.tokens_per_second(),
        })
    }

    /// Measures the result, the state after `kept_step`, on the texts; `None` without any.
    fn result(&self, kept_step: u64) -> Result<Option<ResultLine>> {
        if self.options.texts.is_empty() {
            return Ok(None);
        }
        let mut texts = BTreeMap::new();
        for (name, rows) in &self.options.texts {
            let sums = self.student.measure(&Sequences::of_rows(rows, 0..rows.rows()))?;
            let kl = mean_kl(self.options.loss, &sums);
            texts.insert(name.clone(), TextLoss { loss: sums.mean_nll(), kl });
        }
        let tokens = self.options.steps * (self.rows_per_step * self.job.train.seq_len) as u64;
        let config = self.job.source.config();
        let stored = self.job.plan.stored_mlp_parameters(config);
        Ok(Some(ResultLine {
            kept_step,
            tokens,
            mlp_parameters: stored + self.student.reuse_parameters as u64,
            original_mlp_parameters: self.job.plan.original_mlp_parameters(config),
            texts,
        }))
    }

    fn tokens_per_second(&self) -> f64 {
        if self.working > 0.0 { self.tokens as f64 / self.working } else { 0.0 }
    }
}

/// Computes the mean divergence from the original in nats a token; `None` for a loss without it.
fn mean_kl(loss: Loss, sums: &LossSums) -> Option<f64> {
    loss.needs_teacher().then(|| sums.kl / sums.tokens.max(1) as f64)
}
