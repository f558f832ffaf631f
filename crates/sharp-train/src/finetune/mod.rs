//! Supervised Fine-Tuning: trains the recovery parameters of all layers together, on the data's next tokens
//! or on the original's distribution, with everything else frozen unless asked.
//!
//! A step's sequences go to worker threads one by one. Gradients are added in the sequences' order
//! (`gradient_order.rs`), so the result does not depend on the number of threads. A run that is resumed from
//! a checkpoint gives the bits of one that was never stopped. On a GPU, a single worker takes many sequences
//! through the model together.

mod best;
mod checkpoint;
mod memory;
mod options;
mod outline;
mod pace;
mod parameters;
mod replica;
mod reuse;
mod run;
mod sequences;
mod setup;
mod student;

use crate::error::{Error, Result};
use crate::job::Job;
pub use memory::{check_memory, memory_needed, memory_needed_onto};
pub use options::{FinetuneOptions, FinetuneSummary, StartFrom};
pub use pace::{Pace, estimate_pace};
pub use reuse::Reuse;
use run::Run;

/// Fine-tunes the recovery parameters of `job`'s plan.
///
/// Writes `step-NNNNNN/{recovery.safetensors, optimizer.safetensors, state.json, digests.json}`,
/// `metrics.jsonl` and, at the end, `recovery.safetensors` into the job's folder. With
/// [`FinetuneOptions::reuse`] there is no recovery file: the last line of the metrics says what the result
/// was measured to be.
///
/// Goes on from the last checkpoint there whose files have their digests. One that is damaged, or of an older
/// version of this program, is removed with a warning.
///
/// The result is the best state by validation loss, which may be the one that training began in. Where two
/// measurements in a row are worse than the best, or one by far, training goes back to it and on at half the
/// learning rate.
///
/// # Errors
/// [`Error::Invalid`] for settings that make no sense, [`Error::Memory`] for a machine that is too small,
/// [`Error::State`] for a checkpoint made with other settings, [`Error::NotFinite`] if training diverges,
/// [`Error::Model`] and [`Error::Io`] from files.
pub fn finetune(job: &Job<'_>, from: StartFrom<'_>, options: &FinetuneOptions) -> Result<FinetuneSummary> {
    job.check()?;
    options.check()?;
    options.reuse.check(job.plan, job.source.config().num_hidden_layers)?;
    if !options.reuse.is_none() && from.runtime_file().is_some() {
        return Err(Error::invalid("a runtime file has no pools and runs no layer twice"));
    }
    if job.train.counted() == 0 || job.validation.counted() == 0 {
        return Err(Error::invalid("fine-tuning needs training and validation rows with tokens that count"));
    }
    memory::check_memory_from(job, from, options)?;
    std::fs::create_dir_all(job.out).map_err(Error::io(job.out))?;
    let mut run = Run::new(job, from, options)?;
    let first = run.resume()?;
    run.measure_start()?;
    let task = job.progress.task("fine-tune", options.steps, "steps");
    task.advance(first);
    let last = match options.stop_after {
        Some(n) => options.steps.min(first + n),
        None => options.steps,
    };
    for step in first + 1..=last {
        let result = run.step(step)?;
        run.log(&result)?;
        task.note(&run.note(&result));
        task.advance(1);
        run.save(step)?;
    }
    run.finish()
}

#[cfg(test)]
mod tests;
