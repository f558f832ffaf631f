//! The inference thread: continuous batching.
//!
//! One round takes in a piece of the prompts that wait for their first token and then decodes one token of
//! every sequence that has begun, in one pass over the weights. Sequences come and go between rounds.

use std::sync::Arc;
use std::time::Instant;

use sharp_infer::{Batch, Model, Session};
use sharp_model::tokenizer::Tokenizer;

use crate::error::Result;
use crate::job::{Event, Failure, Job};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::options::ServeOptions;
use crate::pool::Pool;
use crate::queue::Queue;
use crate::sequence::Sequence;

/// What the inference thread works with.
pub(crate) struct Engine {
    pub(crate) model: Model,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) options: ServeOptions,
}

/// Closes the queue when the thread ends, however it ends: nobody then waits for an answer that cannot come.
struct Closing(Arc<Queue>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Prompt tokens taken in at once where nobody waits for the next token.
const ALONE: usize = 512;

/// Says why a sequence could not begin.
fn failure(error: &crate::Error) -> Failure {
    match error {
        crate::Error::Infer(sharp_infer::Error::Quant(sharp_quant::Error::Memory { .. })) => Failure::Memory,
        other => Failure::Engine(other.to_string()),
    }
}

impl Engine {
    /// Works until the queue is closed and empty.
    pub(crate) fn run(self, mut batch: Batch) {
        let _closing = Closing(self.queue.clone());
        let options = &self.options;
        let mut pool = Pool::new(
            &self.model,
            options.context,
            options.max_batch.saturating_add(options.cached_sessions),
            &self.memory,
        );
        let mut running: Vec<Sequence<'_>> = Vec::with_capacity(options.max_batch);
        let mut scratch = Vec::with_capacity(self.model.config().vocab_size);
        while !running.is_empty() || self.queue.wait() {
            let now = Instant::now();
            self.queue.sweep(now, &self.metrics);
            self.retire(&mut running, &mut pool, now);
            while running.len() < options.max_batch
                && let Some(job) = self.queue.pop()
            {
                self.admit(job, &mut running, &mut pool);
            }
            self.metrics.waiting.set(self.queue.len() as i64);
            self.metrics.running.set(running.len() as i64);
            self.prefill(&mut running, &mut pool, &mut scratch);
            self.decode(&mut batch, &mut running, &mut pool, &mut scratch);
            self.metrics.running.set(running.len() as i64);
        }
    }

    /// Takes out sequences that nobody waits for and those whose time is over.
    fn retire(&self, running: &mut Vec<Sequence<'_>>, pool: &mut Pool, now: Instant) {
        let aborted = self.queue.is_aborted();
        for sequence in running.extract_if(.., |s| aborted || s.job.is_cancelled() || now >= s.job.deadline) {
            self.metrics.generated_tokens.inc_by(sequence.generated() as u64);
            if sequence.job.is_cancelled() {
                self.metrics.cancelled.inc();
            } else if aborted {
                sequence.fail(Failure::Stopping);
            } else {
                self.metrics.timeouts.inc();
                sequence.fail(Failure::Timeout);
            }
            self.keep(pool, sequence.session);
        }
    }

    /// Keeps the session of a sequence that ended.
    fn keep(&self, pool: &mut Pool, session: Session) {
        if let Err(error) = pool.give(session) {
            tracing::error!("a session's memory cannot be counted: {error}");
        }
    }

    fn admit<'t>(&'t self, job: Job, running: &mut Vec<Sequence<'t>>, pool: &mut Pool) {
        self.metrics.prompt_tokens.inc_by(job.prompt.len() as u64);
        // Scores of a prompt's tokens come from running them.
        let events = job.events.clone();
        let choice = job.choice;
        let made = pool
            .take(&job.prompt, job.score_prompt)
            .and_then(|session| Sequence::new(job, session, &self.tokenizer));
        match made {
            Ok(sequence) => {
                self.metrics.cached_tokens.inc_by(sequence.cached() as u64);
                running.push(sequence);
            }
            Err(error) => {
                tracing::error!("a sequence could not begin: {error}");
                self.metrics.failures.inc();
                let _ = events.send((choice, Event::Failed(failure(&error))));
            }
        }
    }

    /// Runs a piece of the prompts that are not taken in yet, the oldest first.
    fn prefill(&self, running: &mut Vec<Sequence<'_>>, pool: &mut Pool, scratch: &mut Vec<f32>) {
        let alone = running.iter().all(|s| s.left() > 0);
        let mut budget =
            if alone { ALONE.max(self.options.prefill_chunk) } else { self.options.prefill_chunk };
        let mut i = 0;
        while let Some(sequence) = running.get_mut(i) {
            if budget == 0 {
                break;
            }
            if sequence.left() == 0 {
                i += 1;
                continue;
            }
            let outcome = sequence.prefill(budget).and_then(|done| {
                budget = budget.saturating_sub(done);
                if sequence.left() > 0 {
                    return Ok(false);
                }
                let over = sequence.step(scratch)?;
                self.metrics.first_token.observe(sequence.job.arrived.elapsed().as_secs_f64());
                Ok(over)
            });
            if !self.settle(running, i, pool, outcome.map_err(|e| e.to_string())) {
                i += 1;
            }
        }
    }

    /// Decodes one token of every sequence that has begun.
    fn decode(
        &self,
        batch: &mut Batch,
        running: &mut Vec<Sequence<'_>>,
        pool: &mut Pool,
        scratch: &mut Vec<f32>,
    ) {
        let begun = |s: &Sequence<'_>| s.left() == 0;
        let tokens: Vec<u32> = running.iter().filter(|s| begun(s)).map(Sequence::next).collect();
        if tokens.is_empty() {
            return;
        }
        self.metrics.batch.observe(tokens.len() as f64);
        // Sequences whose prompt is not complete wait for the next round.
        let waiting: Vec<bool> = running.iter().map(|s| !begun(s)).collect();
        let mut sessions: Vec<&mut Session> =
            running.iter_mut().filter(|s| begun(s)).map(|s| &mut s.session).collect();
        let decoded = batch.decode(&mut sessions, &tokens);
        let mut i = 0;
        for waits in waiting {
            if waits {
                i += 1;
                continue;
            }
            let Some(sequence) = running.get_mut(i) else { break };
            let outcome = match &decoded {
                Ok(()) => sequence.step(scratch).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if !self.settle(running, i, pool, outcome) {
                i += 1;
            }
        }
    }

    /// Takes sequence `i` out if it has ended or failed; true if it did.
    fn settle(
        &self,
        running: &mut Vec<Sequence<'_>>,
        i: usize,
        pool: &mut Pool,
        outcome: Result<bool, String>,
    ) -> bool {
        if matches!(outcome, Ok(false)) || i >= running.len() {
            return false;
        }
        let sequence = running.remove(i);
        self.metrics.generated_tokens.inc_by(sequence.generated() as u64);
        match outcome {
            Ok(_) => {
                self.metrics.finished.inc();
                self.metrics.duration.observe(sequence.job.arrived.elapsed().as_secs_f64());
                self.keep(pool, sequence.session);
            }
            Err(error) => {
                tracing::error!("a sequence failed: {error}");
                self.metrics.failures.inc();
                sequence.fail(Failure::Engine(error));
                pool.lost();
            }
        }
        true
    }
}
