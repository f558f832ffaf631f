//! Sequences that wait for a place in the batch.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::job::{Event, Failure, Job};
use crate::metrics::Metrics;

/// Why jobs were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many wait already.
    Full,
    /// The server is stopping, or its engine has ended.
    Closed,
}

/// First come, first served, up to a limit.
#[derive(Debug)]
pub(crate) struct Queue {
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    /// No more are taken.
    closed: bool,
    /// Those that are there are given up too.
    aborted: bool,
}

impl Queue {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all of `jobs` or none.
    pub(crate) fn push(&self, jobs: Vec<Job>) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.jobs.len() + jobs.len() > self.limit {
            return Err(Refused::Full);
        }
        state.jobs.extend(jobs);
        self.changed.notify_one();
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<Job> {
        self.lock().jobs.pop_front()
    }

    /// Counts the jobs that wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Waits until there is something to do; false at the end.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.lock();
        while state.jobs.is_empty() {
            if state.closed {
                return false;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Drops jobs whose client went away and fails those that waited too long.
    pub(crate) fn sweep(&self, now: Instant, metrics: &Metrics) {
        let mut state = self.lock();
        let aborted = state.aborted;
        state.jobs.retain(|job| {
            if job.is_cancelled() {
                metrics.cancelled.inc();
                return false;
            }
            if aborted {
                job.tell(Event::Failed(Failure::Stopping));
            } else if now >= job.deadline {
                metrics.timeouts.inc();
                job.tell(Event::Failed(Failure::Timeout));
            } else {
                return true;
            }
            false
        });
    }

    /// Takes no more; what is there is still done.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Takes no more and gives up what is there.
    pub(crate) fn abort(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.aborted = true;
        self.changed.notify_all();
    }

    /// Drops all that waits, so that no client is left without an answer.
    pub(crate) fn clear(&self) {
        self.abort();
        self.lock().jobs.clear();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.lock().aborted
    }
}
