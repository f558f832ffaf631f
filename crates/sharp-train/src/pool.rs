//! Worker threads that each own a state (a replica of the frozen model, say) and take items of work as they
//! come.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A fixed set of threads, each with its own `S`. Tensors may be sent to a thread but not shared between two,
/// so what all of them need each of them holds (libtorch counts the references; nothing is copied).
pub(crate) struct Pool<S: 'static> {
    senders: Vec<mpsc::Sender<Job<S>>>,
    threads: Vec<JoinHandle<()>>,
}

impl<S: Send + 'static> Pool<S> {
    /// Starts one thread per state.
    pub(crate) fn new(states: Vec<S>) -> Result<Self> {
        let mut senders = Vec::new();
        let mut threads = Vec::new();
        for (i, mut state) in states.into_iter().enumerate() {
            let (sender, receiver) = mpsc::channel::<Job<S>>();
            let body = move || {
                // No operation here needs libtorch's own graph unless it asks for one.
                let _no_grad = tch::no_grad_guard();
                while let Ok(job) = receiver.recv() {
                    job(&mut state);
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("sharp-train-{i}"))
                .spawn(body)
                .map_err(|e| Error::Worker(format!("starting: {e}")))?;
            senders.push(sender);
            threads.push(thread);
        }
        Ok(Self { senders, threads })
    }

    /// Applies `work` to every item on whichever thread is free, and hands the results to `take` in the
    /// items' order, each as soon as it and all before it are there. So sums over results do not depend on
    /// the threads.
    ///
    /// # Errors
    /// The first error of `work` or `take`; [`Error::Worker`] naming `what` if a thread died.
    pub(crate) fn run<T, R>(
        &self,
        what: &str,
        items: Vec<T>,
        work: impl Fn(&mut S, T) -> Result<R> + Send + Sync + 'static,
        mut take: impl FnMut(R) -> Result<()>,
    ) -> Result<()>
    where
        T: Send + 'static,
        R: Send + 'static,
    {
        let total = items.len();
        let queue: Arc<Mutex<VecDeque<(usize, T)>>> =
            Arc::new(Mutex::new(items.into_iter().enumerate().collect()));
        let work = Arc::new(work);
        let (results, received) = mpsc::channel::<(usize, Result<R>)>();
        for sender in &self.senders {
            let (queue, work, results) = (Arc::clone(&queue), Arc::clone(&work), results.clone());
            let job: Job<S> = Box::new(move |state| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((index, item)) = next else { break };
                    if results.send((index, work(state, item))).is_err() {
                        break;
                    }
                }
            });
            sender.send(job).map_err(|_| Error::Worker(what.to_owned()))?;
        }
        drop(results);
        let mut early = BTreeMap::new();
        let mut next = 0;
        let outcome = (|| {
            while next < total {
                let (index, result) = received.recv().map_err(|_| Error::Worker(what.to_owned()))?;
                early.insert(index, result?);
                while let Some(result) = early.remove(&next) {
                    take(result)?;
                    next += 1;
                }
            }
            Ok(())
        })();
        if outcome.is_err() {
            queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
            // Wait for what is under way, so that the next call finds idle threads.
            while received.recv().is_ok() {}
        }
        outcome
    }

    /// Applies `work` as [`Pool::run`] does and collects the results, in the items' order.
    pub(crate) fn map<T, R>(
        &self,
        what: &str,
        items: Vec<T>,
        work: impl Fn(&mut S, T) -> Result<R> + Send + Sync + 'static,
    ) -> Result<Vec<R>>
    where
        T: Send + 'static,
        R: Send + 'static,
    {
        let mut all = Vec::with_capacity(items.len());
        self.run(what, items, work, |r| {
            all.push(r);
            Ok(())
        })?;
        Ok(all)
    }
}

impl<S> Drop for Pool<S> {
    fn drop(&mut self) {
        self.senders.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_errors_do_not_hang() {
        let pool = Pool::new(vec![0u64, 0, 0]).unwrap();
        let squares = pool.map("squaring", (0u64..100).collect(), |seen, x| {
            *seen += 1;
            if x % 7 == 0 {
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
            Ok(x * x)
        });
        assert_eq!(squares.unwrap(), (0..100).map(|x| x * x).collect::<Vec<_>>());
        let failed = pool.map("failing", (0..50).collect(), |_, x: i32| {
            if x == 20 { Err(Error::invalid("twenty")) } else { Ok(x) }
        });
        assert!(matches!(failed, Err(Error::Invalid(m)) if m == "twenty"));
        assert_eq!(pool.map("after", vec![1], |_, x| Ok(x + 1)).unwrap(), [2]);
    }
}
