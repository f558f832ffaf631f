//! A whole Llama-like model in libtorch.

use sharp_model::{ModelSource, names};
use tch::{Device, Tensor};

use crate::attention::Batch;
use crate::block::Block;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::head::Head;
use crate::mlp::Mlp;
use crate::rope::Rope;
use crate::tensors::{dim, from_tokens, to_vec};
use crate::weights::Weights;

/// The token embedding `(vocab, d)`.
#[derive(Debug)]
pub(crate) struct Embedding {
    weight: Tensor,
    vocab: usize,
}

impl Embedding {
    pub(crate) fn load(all: Weights<'_>, device: Device) -> Result<Self> {
        let weight = all.tensor(names::EMBED, device)?;
        Ok(Self { weight, vocab: all.source.config().vocab_size })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), vocab: self.vocab }
    }

    /// Computes the residual stream `(n, d)` at the model's input.
    pub(crate) fn forward(&self, tokens: &[u32]) -> Result<Tensor> {
        if let Some(bad) = tokens.iter().find(|&&t| usize::try_from(t).is_ok_and(|t| t >= self.vocab)) {
            return Err(Error::invalid(format!("token {bad} in a vocabulary of {}", self.vocab)));
        }
        Ok(self.weight.f_index_select(0, &from_tokens(tokens, self.weight.device())?)?)
    }
}

/// A model with all weights in memory and effective weights merged, to run forwards and, in training,
/// backwards.
#[derive(Debug)]
pub struct Llama {
    pub(crate) embedding: Embedding,
    pub(crate) blocks: Vec<Block>,
    pub(crate) head: Head,
    pub(crate) rope: Rope,
    /// Longest sequence the rotations were made for.
    positions: usize,
}

impl Llama {
    /// Loads a model for sequences of up to `positions` tokens.
    ///
    /// # Errors
    /// [`Error::Model`] if a tensor is missing or damaged, [`Error::Torch`] if memory runs out.
    ///
    /// ```no_run
    /// let source = sharp_model::ModelSource::open("smollm2")?;
    /// let compute = sharp_train::Compute::cpu(2);
    /// let model = sharp_train::Llama::load(&source, &compute, 512)?;
    /// let logits = model.logits(&[1, 2, 3])?; // (3, vocab), row-major
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load(source: &ModelSource, compute: &Compute, positions: usize) -> Result<Self> {
        let layers = source.config().num_hidden_layers;
        Ok(Self {
            embedding: Embedding::load(Weights::of(source), compute.device)?,
            blocks: (0..layers).map(|l| Block::load(source, l, compute)).collect::<Result<_>>()?,
            head: Head::load(Weights::of(source), compute)?,
            rope: Rope::new(source.config(), positions, compute.device)?,
            positions,
        })
    }

    /// Returns a layer's MLP.
    pub(crate) fn mlp(&self, layer: usize) -> Result<&Mlp> {
        self.blocks[layer].mlp.as_ref().ok_or_else(|| Error::invalid(format!("layer {layer} has no MLP")))
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            embedding: self.embedding.shallow_clone(),
            blocks: self.blocks.iter().map(Block::shallow_clone).collect(),
            head: self.head.shallow_clone(),
            rope: self.rope.shallow_clone(),
            positions: self.positions,
        }
    }

    /// Computes the logits `(n, vocab)`, row-major, of one sequence of `n` tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a token outside the vocabulary or a sequence longer than the model was loaded
    /// for.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() || tokens.len() > self.positions {
            return Err(Error::invalid(format!(
                "a sequence of {} tokens for a model loaded for 1 to {}",
                tokens.len(),
                self.positions
            )));
        }
        let batch = Batch { sequences: 1, time: dim(tokens.len())? };
        let mut hidden = self.embedding.forward(tokens)?;
        for block in &self.blocks {
            hidden = block.forward(&hidden, &self.rope, batch)?;
        }
        to_vec(&self.head.logits(&hidden)?)
    }
}
