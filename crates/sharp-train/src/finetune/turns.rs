//! Whose turn it is to add a gradient: one sum for all of a step's sequences, in an order that no thread decides.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::block::BlockTrain;
use crate::mlp::MlpTrain;
use crate::params::{Layout, ParamId};

/// The turns of one step. The way back goes down the layers, so a sequence may add its part of a parameter's gradient once the
/// one before it has passed the lowest layer that uses the parameter; both run at the same time, a layer or so apart.
/// Sequences must be begun in their order.
#[derive(Debug)]
pub(super) struct Turns {
    /// By parameter: the lowest layer that adds to its gradient.
    lowest: Arc<Vec<usize>>,
    /// By sequence: the layer down to which it has added everything.
    passed: Mutex<Vec<usize>>,
    moved: Condvar,
}

/// One sequence's turns. Dropped, on an error too, it is in nobody's way.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    sequence: usize,
}

/// By parameter: the lowest layer that adds to its gradient. What only the head uses belongs above all layers.
pub(super) fn lowest_layers(train: &[BlockTrain], layout: &Layout) -> Vec<usize> {
    let mut lowest = vec![train.len(); layout.specs().len()];
    for (layer, train) in train.iter().enumerate().rev() {
        let mut used: Vec<ParamId> = [train.input_norm, train.mlp_norm].into_iter().flatten().collect();
        match &train.mlp {
            None => {}
            Some(MlpTrain::Own(ids)) => used.extend(ids),
            Some(MlpTrain::Recovery { ids, shared, .. }) => {
                used.extend(ids.iter().flat_map(|ids| [ids.a, ids.b, ids.row, ids.col, ids.own]).flatten());
                used.extend(shared.iter().flatten());
            }
        }
        for id in used {
            if let Some(place) = lowest.get_mut(id.index()) {
                *place = layer;
            }
        }
    }
    lowest
}

impl Turns {
    /// For a step of so many sequences.
    pub(super) fn new(lowest: Arc<Vec<usize>>, sequences: usize) -> Arc<Self> {
        Arc::new(Self { lowest, passed: Mutex::new(vec![usize::MAX; sequences]), moved: Condvar::new() })
    }

    /// The turns of sequence number `sequence` of the step.
    pub(super) fn of(self: &Arc<Self>, sequence: usize) -> Turn {
        Turn { turns: Arc::clone(self), sequence }
    }
}

impl Turn {
    /// Waits until all sequences before have added to the gradient of `id`.
    pub(crate) fn wait(&self, id: ParamId) {
        let Some(before) = self.sequence.checked_sub(1) else { return };
        let lowest = self.turns.lowest.get(id.index()).copied().unwrap_or(0);
        let mut passed = self.turns.passed.lock().unwrap_or_else(PoisonError::into_inner);
        while passed.get(before).is_some_and(|&down_to| down_to > lowest) {
            passed = self.turns.moved.wait(passed).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that this sequence adds nothing more to what `layer` and those above it use and none below it does.
    pub(super) fn pass(&self, layer: usize) {
        let mut passed = self.turns.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = passed.get_mut(self.sequence) {
            *place = layer;
        }
        self.turns.moved.notify_all();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pass(0);
    }
}
