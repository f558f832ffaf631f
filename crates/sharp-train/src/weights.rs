//! Where a model's frozen weights are read from.

use sharp_model::packed::{BlobFormat, PackedFile};
use sharp_model::{ModelSource, Plan, names};
use sharp_quant::PackedFormat;
use tch::{Device, Tensor};

use crate::error::{Error, Result};
use crate::tensors::{from_f32, from_ref};

/// A checkpoint, or a checkpoint with matrices replaced by those of a runtime file made from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) source: &'a ModelSource,
    runtime: Option<&'a PackedFile>,
}

impl<'a> Weights<'a> {
    /// Reads the checkpoint's own weights.
    pub(crate) fn of(source: &'a ModelSource) -> Self {
        Self { source, runtime: None }
    }

    /// Reads the matrices as `runtime` has them, everything else as `source`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a file of another model or plan.
    pub(crate) fn rounded(source: &'a ModelSource, runtime: &'a PackedFile, plan: &Plan) -> Result<Self> {
        let path = runtime.path().display();
        if !runtime.config().same_model(source.config()) {
            return Err(Error::invalid(format!("{path} is not of the model {}", source.path().display())));
        }
        if runtime.plan().map(Plan::to_toml) != Some(plan.to_toml()) {
            return Err(Error::invalid(format!("{path} was made with another plan")));
        }
        Ok(Self { source, runtime: Some(runtime) })
    }

    /// Reads a tensor by the name of the layer that uses it, float32.
    pub(crate) fn tensor(&self, name: &str, device: Device) -> Result<Tensor> {
        let packed = self.runtime.and_then(|file| file.get(name));
        match packed.filter(|tensor| tensor.format != BlobFormat::F32) {
            Some(tensor) => from_f32(&tensor.f32()?, &[tensor.rows, tensor.cols], device),
            None => from_ref(&self.source.tensor(name)?, device),
        }
    }

    /// Reads the output head's weight `(vocab, d)`.
    pub(crate) fn head(&self, device: Device) -> Result<Tensor> {
        match self.source.config().tie_word_embeddings {
            true => self.tensor(names::EMBED, device),
            false => self.tensor(names::LM_HEAD, device),
        }
    }

    /// Returns the runtime file's format of a matrix; `None` without a file, and for what it keeps in
    /// float32.
    pub(crate) fn format(&self, name: &str) -> Option<PackedFormat> {
        match self.runtime?.get(name)?.format {
            BlobFormat::Packed(format) => Some(format),
            _ => None,
        }
    }

    /// Whether there is a runtime file.
    pub(crate) fn are_rounded(&self) -> bool {
        self.runtime.is_some()
    }
}
