//! Rotary position embedding as one complex product.
//!
//! Hugging Face checkpoints rotate dimension `i` of a head with `i + head_dim / 2`. Here the rows of the
//! query and key projections are put in the order `0, h, 1, h + 1, …` when the model is loaded (`h = head_dim
//! / 2`), so that each pair lies side by side and is a complex number. Scores are sums over a head's
//! dimensions, so the order does not show.

use sharp_model::ModelConfig;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::tensors::dim;
use crate::trainable::check_trainable;

/// The rotations of positions `0..n`.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `(n, 1, head_dim / 2)` complex: `exp(i * position * inv_freq)`.
    rotation: Tensor,
    /// Its conjugate, which undoes the rotation in the backward pass.
    conjugate: Tensor,
}

impl Rope {
    /// Computes the rotations; refuses a model whose layers are not Llama's, since every forward pass begins
    /// here.
    pub(crate) fn new(config: &ModelConfig, positions: usize, device: Device) -> Result<Self> {
        check_trainable(config, positions)?;
        let freq = Tensor::f_from_slice(&config.inv_freq())?;
        let position = Tensor::f_arange(dim(positions)?, (Kind::Double, Device::Cpu))?;
        let angle = position.f_outer(&freq)?.f_unsqueeze(1)?;
        let parts = |sin: Tensor| -> Result<Tensor> {
            let both = Tensor::f_stack(&[angle.f_cos()?, sin], -1)?.f_to_kind(Kind::Float)?;
            Ok(both.f_view_as_complex()?.f_to_device(device)?)
        };
        Ok(Self { rotation: parts(angle.f_sin()?)?, conjugate: parts(angle.f_sin()?.f_neg()?)? })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { rotation: self.rotation.shallow_clone(), conjugate: self.conjugate.shallow_clone() }
    }

    /// Rotates `x (batch, time, heads, head_dim)`, any strides with the last one 1.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rotate(x, &self.rotation)
    }

    /// Computes the gradient of [`Rope::forward`]'s input.
    pub(crate) fn backward(&self, dy: &Tensor) -> Result<Tensor> {
        rotate(dy, &self.conjugate)
    }
}

fn rotate(x: &Tensor, rotation: &Tensor) -> Result<Tensor> {
    let (batch, time, heads, width) = x.size4()?;
    let pairs = x.f_unflatten(-1, [width / 2, 2])?.f_view_as_complex()?;
    let rotation = rotation.f_narrow(0, 0, time)?;
    Ok(pairs.f_mul(&rotation)?.f_view_as_real()?.f_reshape([batch, time, heads, width])?)
}

/// Lists the rows of `heads` heads in the order in which they are loaded: `0, h, 1, h + 1, …` of each.
pub(crate) fn row_order(heads: usize, head_dim: usize) -> Vec<i64> {
    let half = head_dim / 2;
    (0..heads)
        .flat_map(|head| (0..half).flat_map(move |i| [head * head_dim + i, head * head_dim + half + i]))
        .map(|row| row as i64)
        .collect()
}
