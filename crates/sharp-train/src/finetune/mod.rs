//! Supervised Fine-Tuning: all targets' recovery parameters together, on completion loss or on the original's own
//! distribution, with everything else frozen unless asked.
//!
//! A step's sequences go to worker threads one by one; gradients are added up in the sequences' order (`turns.rs`), so the result
//! does not depend on the number of threads, and a run resumed from a checkpoint is bit-equal to one never stopped. On a GPU, a
//! single worker takes many sequences through the model together.

mod checkpoint;
mod memory;
mod replica;
mod student;
mod trained;
mod turns;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sharp_data::{TokenBlocks, shuffle};
use sharp_model::packed::PackedFile;
use sharp_model::{ModelSource, Plan, Recovery};
use sharp_progress::Progress;

use crate::adamw::{AdamW, AdamWConfig, clip};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::head::{Loss, LossSums};
use crate::metrics;
use crate::schedule::Schedule;
use crate::start::Start;
pub use memory::{check_memory, least_memory};
use replica::Sequences;
use student::Student;
pub(crate) use turns::Turn;

/// Which stored MLPs are trained along with the recovery parameters. The compressed model is as large whichever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrainMlps {
    /// None: the recovery parameters alone (the paper's).
    #[default]
    None,
    /// Those that other layers use too, for all layers that use them.
    Shared,
    /// Those, and every other layer's above the first of them.
    All,
}

impl TrainMlps {
    /// `none`, `shared` or `all`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Shared => "shared",
            Self::All => "all",
        }
    }
}

impl std::str::FromStr for TrainMlps {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::None, Self::Shared, Self::All]
            .into_iter()
            .find(|which| which.name() == text)
            .ok_or_else(|| Error::invalid(format!("MLPs to train `{text}`: use none, shared or all")))
    }
}

/// How to fine-tune.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FinetuneOptions {
    /// What is minimised.
    pub loss: Loss,
    /// Steps.
    pub steps: u64,
    /// Tokens in a step: whole rows, at least one.
    pub batch_tokens: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Steps of warm-up; `None` is a twentieth of all.
    pub lr_warmup: Option<u64>,
    /// The last step's rate as a fraction of the highest.
    pub lr_floor: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Largest L2 norm of the gradient; 0 leaves it alone.
    pub clip: f64,
    /// Also train the RMS norms from the first target on.
    pub train_norms: bool,
    /// Which MLPs' own weights are trained as well.
    pub train_mlps: TrainMlps,
    /// Write a checkpoint every so many steps; 0 writes none.
    pub save_every: u64,
    /// Measure the held-out loss every so many steps; 0 only at the beginning and the end.
    pub eval_every: u64,
    /// Seed of the order of rows, and of the start where there is no warm-up.
    pub seed: u64,
    /// Bytes of memory that may be taken; `None` is what the machine has.
    pub memory_bytes: Option<u64>,
    /// Stop after this many steps of this call, as a kill would, leaving the last checkpoint behind.
    pub stop_after: Option<u64>,
}

impl Default for FinetuneOptions {
    fn default() -> Self {
        Self {
            loss: Loss::Completion,
            steps: 200,
            batch_tokens: 2048,
            lr: 1e-3,
            lr_warmup: None,
            lr_floor: 0.1,
            weight_decay: 0.01,
            clip: 1.0,
            train_norms: false,
            train_mlps: TrainMlps::None,
            save_every: 50,
            eval_every: 25,
            seed: 0,
            memory_bytes: None,
            stop_after: None,
        }
    }
}

/// What fine-tuning came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneSummary {
    /// Steps taken in all, those before a resume included.
    pub steps: u64,
    /// The step a checkpoint was resumed from.
    pub resumed_from: Option<u64>,
    /// Values trained.
    pub parameters: u64,
    /// Held-out perplexity before the first step.
    pub start_perplexity: f64,
    /// Held-out perplexity at the end.
    pub perplexity: f64,
    /// Training tokens a second in this call.
    pub tokens_per_second: f64,
}

/// Fine-tunes from `recovery` (a warm-up's), or from the paper's zero start without one; writes
/// `out/step-NNNNNN/{recovery.safetensors, optimizer.safetensors, state.json}`, `out/metrics.jsonl` and, at the end,
/// `out/recovery.safetensors`. Goes on from the last checkpoint in `out`.
///
/// With a `runtime` file, made from the same model, plan and `recovery`, training repairs its rounding: everything frozen is as the file has it,
/// and what is trained is rounded to the file's formats wherever the model computes (plainly, by the largest magnitude of each block), while the
/// optimiser moves the exact values. What is written is rounded, so that a quantiser of the same format finds nothing to round.
///
/// # Errors
/// [`Error::Invalid`] for settings that make no sense, [`Error::Memory`] for a machine that is too small, [`Error::State`] for a checkpoint made with other settings,
/// [`Error::NotFinite`] if training diverges, [`Error::Model`] and [`Error::Io`] from files.
#[allow(clippy::too_many_arguments)]
pub fn finetune(
    source: &ModelSource,
    plan: &Plan,
    recovery: Option<&Recovery>,
    runtime: Option<&PackedFile>,
    train: &TokenBlocks,
    held_out: &TokenBlocks,
    out: &Path,
    compute: &Compute,
    options: &FinetuneOptions,
    progress: &dyn Progress,
) -> Result<FinetuneSummary> {
    check(source, plan, train, held_out, options)?;
    check_memory(source, plan, compute, options)?;
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let rows_per_step = (options.batch_tokens / train.seq_len).max(1);
    let mut student = Student::new(source, plan, recovery, runtime, train.seq_len, compute, options)?;
    let layout = student.params.layout.clone();
    let config = AdamWConfig { weight_decay: options.weight_decay, ..AdamWConfig::default() };
    let mut optimiser = AdamW::new(config, &layout, compute.device)?;
    let metrics_path = out.join(metrics::FILE);
    let print = checkpoint::fingerprint(plan, &layout, train, recovery, runtime, options)?;

    let mut lines = Vec::new();
    let mut resumed_from = None;
    if let Some(found) = checkpoint::latest(out)? {
        let step = checkpoint::load(&found, &print, &mut student.params, &mut optimiser)?;
        lines = metrics::up_to_step(metrics::read(&metrics_path)?, step);
        resumed_from = Some(step);
        tracing::info!(step, "resumed");
    }
    let first = resumed_from.unwrap_or(0);
    student.merge()?;
    let held: Vec<Sequences> = sequences(held_out, 0..held_out.rows())?;
    let seconds_before = lines.last().and_then(|l| l.get("seconds")).and_then(Value::as_f64).unwrap_or(0.0);
    let begun = Instant::now();
    let task = progress.task("fine-tune", options.steps, "steps");
    task.advance(first);
    let start_nll = match lines.first().and_then(|l| l.get("held_out_loss")).and_then(Value::as_f64) {
        Some(loss) => loss,
        None => {
            let sums = student.measure(&held)?;
            lines.push(json!({
                "stage": "finetune", "step": 0, "held_out_loss": sums.mean_nll(),
                "held_out_perplexity": sums.mean_nll().exp(), "held_out_kl": kl_of(options.loss, &sums), "seconds": 0.0,
            }));
            metrics::write(&metrics_path, &lines)?;
            sums.mean_nll()
        }
    };
    let schedule = Schedule {
        peak: options.lr,
        warmup_steps: options.lr_warmup.unwrap_or(options.steps / 20).max(1),
        total_steps: options.steps,
        floor: options.lr_floor,
    };
    let mut order = Order::new(train.rows(), options.seed);
    let (mut tokens, mut working) = (0u64, 0.0);
    let mut last_nll = start_nll;
    for step in first + 1..=options.steps {
        if options.stop_after.is_some_and(|n| step > first + n) {
            break;
        }
        let step_begun = Instant::now();
        let rows: Vec<usize> =
            (0..rows_per_step).map(|i| order.at((step - 1) * rows_per_step as u64 + i as u64)).collect();
        let batch = sequences(train, rows)?;
        let (mut grad, sums) = student.gradient(batch)?;
        let mean = sums.mean(options.loss);
        if !mean.is_finite() {
            return Err(Error::NotFinite { what: "the training loss".into(), step, value: mean });
        }
        let norm = clip(&mut grad, options.clip)?;
        if !norm.is_finite() {
            return Err(Error::NotFinite { what: "the gradient's norm".into(), step, value: norm });
        }
        let lr = schedule.at(step);
        optimiser.step(&mut student.params.flat, &grad, lr)?;
        drop(grad);
        student.merge()?;
        tokens += (rows_per_step * train.seq_len) as u64;
        working += step_begun.elapsed().as_secs_f64();
        let mut line = json!({
            "stage": "finetune", "step": step, "train_loss": sums.mean_nll(), "train_kl": kl_of(options.loss, &sums),
            "lr": lr, "grad_norm": norm, "tokens_per_second": tokens as f64 / working,
            "seconds": seconds_before + begun.elapsed().as_secs_f64(),
        });
        let last = step == options.steps;
        if last || (options.eval_every > 0 && step % options.eval_every == 0) {
            let held_sums = student.measure(&held)?;
            last_nll = held_sums.mean_nll();
            if let Some(line) = line.as_object_mut() {
                line.insert("held_out_loss".into(), json!(last_nll));
                line.insert("held_out_perplexity".into(), json!(last_nll.exp()));
                line.insert("held_out_kl".into(), json!(kl_of(options.loss, &held_sums)));
            }
        }
        lines.push(line);
        task.note(&format!("loss {mean:.3}, held-out perplexity {:.2}", last_nll.exp()));
        task.advance(1);
        let save = options.save_every > 0 && step % options.save_every == 0 && !last;
        if save {
            metrics::write(&metrics_path, &lines)?;
            let recovery = student.recovery()?;
            checkpoint::save(out, step, &print, &recovery, &student.params, &optimiser)?;
        }
    }
    let done = lines.last().and_then(|l| l.get("step")).and_then(Value::as_u64).unwrap_or(0);
    if done == options.steps {
        metrics::write(&metrics_path, &lines)?;
        student.recovery()?.save(out.join(sharp_model::recovery::RECOVERY_FILE))?;
    }
    Ok(FinetuneSummary {
        steps: done,
        resumed_from,
        parameters: layout.total() as u64,
        start_perplexity: start_nll.exp(),
        perplexity: last_nll.exp(),
        tokens_per_second: if working > 0.0 { tokens as f64 / working } else { 0.0 },
    })
}

fn check(
    source: &ModelSource,
    plan: &Plan,
    train: &TokenBlocks,
    held_out: &TokenBlocks,
    options: &FinetuneOptions,
) -> Result<()> {
    plan.validate(source.config())?;
    if source.plan().is_some() {
        return Err(Error::invalid(format!("{} already has shared layers", source.path().display())));
    }
    if train.counted() == 0 || held_out.counted() == 0 {
        return Err(Error::invalid("fine-tuning needs training and held-out rows with tokens that count"));
    }
    if train.seq_len != held_out.seq_len {
        return Err(Error::invalid("training and held-out rows must be of one length"));
    }
    if !(options.lr.is_finite() && options.lr > 0.0) {
        return Err(Error::invalid(format!("learning rate {} is not above 0", options.lr)));
    }
    let temperature = match options.loss {
        Loss::Completion => 1.0,
        Loss::Distill { temperature } | Loss::Mixed { temperature, .. } => temperature,
    };
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(Error::invalid(format!("temperature {temperature} is not above 0")));
    }
    if let Loss::Mixed { weight, .. } = options.loss
        && !(0.0..=1.0).contains(&weight)
    {
        return Err(Error::invalid(format!("weight {weight} is not between 0 and 1")));
    }
    Ok(())
}

fn kl_of(loss: Loss, sums: &LossSums) -> Option<f64> {
    loss.needs_teacher().then(|| sums.kl / sums.tokens.max(1) as f64)
}

/// Rows, each by itself, with the positions that count.
fn sequences(blocks: &TokenBlocks, rows: impl IntoIterator<Item = usize>) -> Result<Vec<Sequences>> {
    rows.into_iter()
        .map(|row| {
            let (tokens, mask) = blocks.row(row);
            let mut sequence =
                Sequences { rows: 1, tokens: tokens.to_vec(), positions: Vec::new(), labels: Vec::new() };
            for (i, (&token, &counted)) in tokens.iter().zip(mask).enumerate().skip(1) {
                if counted {
                    sequence.positions.push(i as i64 - 1);
                    sequence.labels.push(i64::from(token));
                }
            }
            Ok(sequence)
        })
        .collect()
}

/// The order of rows, a new one for each epoch, computed from the position alone.
struct Order {
    rows: usize,
    seed: u64,
    epoch: Option<u64>,
    order: Vec<usize>,
}

impl Order {
    fn new(rows: usize, seed: u64) -> Self {
        Self { rows: rows.max(1), seed, epoch: None, order: Vec::new() }
    }

    fn at(&mut self, position: u64) -> usize {
        let (epoch, place) = (position / self.rows as u64, (position % self.rows as u64) as usize);
        if self.epoch != Some(epoch) {
            self.order = (0..self.rows).collect();
            shuffle(&mut self.order, self.seed.wrapping_add(epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            self.epoch = Some(epoch);
        }
        self.order.get(place).copied().unwrap_or(0)
    }
}

/// A checkpoint's folder.
fn step_folder(out: &Path, step: u64) -> PathBuf {
    out.join(format!("step-{step:06}"))
}

/// The start of a run without warm-up.
const COLD: Start = Start::Zero;

#[cfg(test)]
mod tests;
