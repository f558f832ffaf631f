//! What a worker thread does with sequences: the loss, and its gradient.

use std::sync::Arc;

use tch::Tensor;

use super::sequences::Sequences;
use crate::attention::Batch;
use crate::block::{BackwardPass, Block, BlockTrain};
use crate::error::Result;
use crate::gradient_order::Slot;
use crate::gradients::Sink;
use crate::head::{Head, Loss, LossSums, Targets};
use crate::llama::{Embedding, Llama};
use crate::params::{Layout, ParamId};

/// A worker thread's shallow clone of the model, and what it needs to take gradients.
pub(super) struct Replica {
    pub(super) model: Llama,
    /// The original, where its predictions are needed.
    pub(super) teacher: Option<Teacher>,
    pub(super) train: Vec<BlockTrain>,
    pub(super) final_norm: Option<ParamId>,
    /// The first layer with something to train.
    pub(super) first: usize,
    pub(super) layout: Arc<Layout>,
    pub(super) values: Tensor,
    pub(super) loss: Loss,
}

/// The original where it differs from the student: from layer `from` on.
pub(super) struct Teacher {
    pub(super) from: usize,
    /// Where the student's is another one.
    pub(super) embedding: Option<Embedding>,
    pub(super) blocks: Vec<Block>,
    pub(super) head: Head,
}

impl Replica {
    fn targets(&self, sequences: &Sequences) -> Result<Targets> {
        let device = self.values.device();
        Ok(Targets {
            positions: Tensor::f_from_slice(&sequences.positions)?.f_to_device(device)?,
            labels: Tensor::f_from_slice(&sequences.labels)?.f_to_device(device)?,
        })
    }

    /// Computes the original's last hidden states from the residual stream at layer [`Teacher::from`].
    fn teacher_hidden(&self, tokens: &[u32], hidden: &Tensor, batch: Batch) -> Result<Option<Tensor>> {
        let Some(teacher) = &self.teacher else { return Ok(None) };
        let mut hidden = match &teacher.embedding {
            Some(embedding) => embedding.forward(tokens)?,
            None => hidden.shallow_clone(),
        };
        for block in &teacher.blocks {
            hidden = block.forward(&hidden, &self.model.rope, batch)?;
        }
        Ok(Some(hidden))
    }

    pub(super) fn measure(&mut self, sequences: &Sequences) -> Result<LossSums> {
        let batch = sequences.batch()?;
        let mut hidden = self.model.embedding.forward(&sequences.tokens)?;
        let from = self.teacher.as_ref().map(|t| t.from);
        let mut teacher_hidden = None;
        for (layer, block) in self.model.blocks.iter().enumerate() {
            if Some(layer) == from {
                teacher_hidden = self.teacher_hidden(&sequences.tokens, &hidden, batch)?;
            }
            hidden = block.forward(&hidden, &self.model.rope, batch)?;
        }
        let teacher = self.teacher.as_ref().zip(teacher_hidden.as_ref()).map(|(t, h)| (&t.head, h));
        self.model.head.measure(&hidden, &self.targets(sequences)?, self.loss, teacher)
    }

    /// Adds the gradient of `scale` times the sequences' loss to `grad (total)`, in the order of `slot`.
    pub(super) fn differentiate(
        &mut self,
        sequences: &Sequences,
        scale: f64,
        slot: &Slot,
        grad: &Tensor,
    ) -> Result<LossSums> {
        let batch = sequences.batch()?;
        let sink = Sink { layout: &self.layout, values: &self.values, grad, slot: Some(slot) };
        let mut hidden = self.model.embedding.forward(&sequences.tokens)?;
        let from = self.teacher.as_ref().map(|t| t.from);
        let mut teacher_hidden = None;
        let mut kept = Vec::new();
        for (layer, block) in self.model.blocks.iter().enumerate() {
            if Some(layer) == from {
                teacher_hidden = self.teacher_hidden(&sequences.tokens, &hidden, batch)?;
            }
            if layer < self.first {
                hidden = block.forward(&hidden, &self.model.rope, batch)?;
            } else {
                let (output, layer_kept) = block.forward_keeping(hidden, &self.model.rope, batch)?;
                hidden = output;
                kept.push(layer_kept);
            }
        }
        let teacher = self.teacher.as_ref().zip(teacher_hidden.as_ref()).map(|(t, h)| (&t.head, h));
        let trained_norm = self.final_norm.map(|id| (id, &sink));
        let targets = self.targets(sequences)?;
        let (sums, mut d) =
            self.model.head.differentiate(&hidden, &targets, self.loss, teacher, scale, trained_norm)?;
        drop((hidden, teacher_hidden));
        slot.pass(self.model.blocks.len());
        let pass = BackwardPass { rope: &self.model.rope, batch, sink: &sink };
        for (layer, block) in self.model.blocks.iter().enumerate().skip(self.first).rev() {
            let layer_kept =
                kept.pop().expect("every layer from the first trained one on kept what it needs");
            match block.backward(d, layer_kept, &self.train[layer], &pass, layer > self.first)? {
                Some(below) => d = below,
                None => break,
            }
            slot.pass(layer);
        }
        Ok(sums)
    }
}
