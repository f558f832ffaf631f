//! Adds the gradients of a step's sequences in a fixed order, so that the sum does not depend on thread
//! timing.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::params::ParamId;

/// The order in which one step's sequences add to the gradients.
///
/// The backward pass goes down the layers. A sequence may add its part of a parameter's gradient once the
/// sequence before it has passed the lowest layer that uses the parameter. So both run at the same time,
/// about a layer apart. Sequences must be started in their order.
#[derive(Debug)]
pub(crate) struct GradientOrder {
    /// By parameter: the lowest layer that adds to its gradient.
    lowest: Arc<Vec<usize>>,
    /// By sequence: the layer down to which it has added everything.
    passed: Mutex<Vec<usize>>,
    moved: Condvar,
}

/// One sequence's place in a [`GradientOrder`]. Dropping it (also on error) releases the sequences that wait
/// for it.
#[derive(Debug)]
pub(crate) struct Slot {
    order: Arc<GradientOrder>,
    sequence: usize,
}

impl GradientOrder {
    /// Makes the order of a step with this many sequences.
    pub(crate) fn new(lowest: Arc<Vec<usize>>, sequences: usize) -> Arc<Self> {
        Arc::new(Self { lowest, passed: Mutex::new(vec![usize::MAX; sequences]), moved: Condvar::new() })
    }

    /// Returns the slot of the step's sequence number `sequence`, counted from 0.
    pub(crate) fn slot(self: &Arc<Self>, sequence: usize) -> Slot {
        Slot { order: Arc::clone(self), sequence }
    }
}

impl Slot {
    /// Waits until all sequences before this one have added to the gradient of `id`.
    pub(crate) fn wait(&self, id: ParamId) {
        let Some(before) = self.sequence.checked_sub(1) else { return };
        let lowest = self.order.lowest[id.index()];
        let mut passed = self.order.passed.lock().unwrap_or_else(PoisonError::into_inner);
        while passed[before] > lowest {
            passed = self.order.moved.wait(passed).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Declares that this sequence adds nothing more to parameters that no layer below `layer` uses.
    pub(crate) fn pass(&self, layer: usize) {
        let mut passed = self.order.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed[self.sequence] = layer;
        self.order.moved.notify_all();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pass(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::params::{Group, Layout};

    #[test]
    fn a_sequence_waits_for_the_one_before_it_and_a_dropped_one_releases_it() {
        let mut layout = Layout::default();
        let id = layout.add("a", &[1], Group::Norm).unwrap();
        let order = GradientOrder::new(Arc::new(vec![2]), 3);
        let (first, second, third) = (order.slot(0), order.slot(1), order.slot(2));
        first.wait(id); // nobody is before it
        first.pass(3);
        let (done, waited) = mpsc::channel();
        let again = done.clone();
        let waiting = std::thread::spawn(move || {
            second.wait(id);
            done.send(()).unwrap();
            second // dropped by the test
        });
        assert!(waited.recv_timeout(Duration::from_millis(50)).is_err(), "layer 2 is not passed yet");
        first.pass(2);
        waited.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(waiting.join().unwrap());
        let last = std::thread::spawn(move || {
            third.wait(id);
            again.send(()).unwrap();
        });
        waited.recv_timeout(Duration::from_secs(10)).unwrap();
        last.join().unwrap();
    }
}
