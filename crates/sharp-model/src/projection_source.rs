//! What one projection of one layer is made of, and the weight that it comes to.

use crate::checkpoint::source::TensorRef;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::projection::Projection;

/// Low-rank factors of one projection.
#[derive(Debug, Clone)]
pub struct LoraSource<T = TensorRef> {
    /// `r`, at least 1.
    pub rank: usize,
    /// `A (r, in)`.
    pub a: T,
    /// `B (out, r)`.
    pub b: T,
}

/// What one MLP projection of one layer is made of: `diag(row_scale) base diag(col_scale) + B A`, then the
/// bias. What is absent counts as nothing (scales: as ones).
///
/// Of tensors, or of their descriptions alone ([`crate::ModelLayout::projection`]).
#[derive(Debug, Clone)]
pub struct ProjectionSource<T = TensorRef> {
    /// The layer that computes with it.
    pub layer: usize,
    /// Which of the three.
    pub projection: Projection,
    /// Rows of the effective weight.
    pub out_features: usize,
    /// Columns of the effective weight.
    pub in_features: usize,
    /// The stored weight `(out, in)`; its name is the reference's where it is shared. None for low rank
    /// alone and for dropped layers.
    pub base: Option<T>,
    /// Low-rank factors.
    pub lora: Option<LoraSource<T>>,
    /// `(out)`.
    pub row_scale: Option<T>,
    /// `(in)`.
    pub col_scale: Option<T>,
    /// `(out)`: the layer's own; biases are never shared.
    pub bias: Option<T>,
}

impl<T> ProjectionSource<T> {
    /// Returns what there is of base, `A`, `B`, row scale, column scale and bias.
    pub fn into_tensors(self) -> impl Iterator<Item = T> {
        let (a, b) = self.lora.map_or((None, None), |lora| (Some(lora.a), Some(lora.b)));
        [self.base, a, b, self.row_scale, self.col_scale, self.bias].into_iter().flatten()
    }

    /// Turns each tensor into something else with `f`, in the order base, `A`, `B`, row scale, column scale,
    /// bias.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<ProjectionSource<U>, E> {
        let base = self.base.map(&mut f).transpose()?;
        let lora = match self.lora {
            Some(LoraSource { rank, a, b }) => Some(LoraSource { rank, a: f(a)?, b: f(b)? }),
            None => None,
        };
        Ok(ProjectionSource {
            layer: self.layer,
            projection: self.projection,
            out_features: self.out_features,
            in_features: self.in_features,
            base,
            lora,
            row_scale: self.row_scale.map(&mut f).transpose()?,
            col_scale: self.col_scale.map(&mut f).transpose()?,
            bias: self.bias.map(&mut f).transpose()?,
        })
    }
}

impl ProjectionSource {
    /// Whether the output is zero whatever the input (a dropped layer).
    pub fn is_zero(&self) -> bool {
        self.base.is_none() && self.lora.is_none() && self.bias.is_none()
    }

    /// Whether the effective weight is the stored one as it lies.
    pub fn is_plain(&self) -> bool {
        self.base.is_some() && self.lora.is_none() && self.row_scale.is_none() && self.col_scale.is_none()
    }

    /// The effective weight `(out, in)`, row-major, computed in float32 (sums over the rank in ascending
    /// order).
    ///
    /// # Errors
    /// [`Error::Quant`](crate::Error::Quant) if stored bytes cannot be converted.
    pub fn effective_f32(&self) -> Result<Vec<f32>> {
        let (out, input) = (self.out_features, self.in_features);
        let mut weight = match &self.base {
            Some(base) => base.f32()?,
            None => vec![0.0; out * input],
        };
        if let Some(scale) = &self.row_scale {
            for (row, s) in weight.chunks_exact_mut(input).zip(scale.f32()?) {
                row.iter_mut().for_each(|w| *w *= s);
            }
        }
        if let Some(scale) = &self.col_scale {
            let scale = scale.f32()?;
            for row in weight.chunks_exact_mut(input) {
                row.iter_mut().zip(&scale).for_each(|(w, s)| *w *= s);
            }
        }
        if let Some(lora) = &self.lora {
            let (a, b) = (lora.a.f32()?, lora.b.f32()?);
            let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(16);
            let rows = out.div_ceil(threads).max(1);
            std::thread::scope(|scope| {
                for (weight, b) in weight.chunks_mut(rows * input).zip(b.chunks(rows * lora.rank)) {
                    let a = &a;
                    scope.spawn(move || add_product(weight, input, b, lora.rank, a));
                }
            });
        }
        Ok(weight)
    }

    /// The effective weight in the shape that the model's other layers have: neurons that a pruned MLP lost
    /// are zeros at the end.
    ///
    /// # Errors
    /// As [`ProjectionSource::effective_f32`].
    pub fn padded_f32(&self, config: &ModelConfig) -> Result<Vec<f32>> {
        let weight = self.effective_f32()?;
        let (out, input) = self.projection.shape(config);
        if (out, input) == (self.out_features, self.in_features) {
            return Ok(weight);
        }
        let mut padded = vec![0.0; out * input];
        for (to, from) in padded.chunks_exact_mut(input).zip(weight.chunks_exact(self.in_features)) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
        Ok(padded)
    }
}

/// `weight (rows, input) += b (rows, rank) a (rank, input)`.
fn add_product(weight: &mut [f32], input: usize, b: &[f32], rank: usize, a: &[f32]) {
    for (row, b) in weight.chunks_exact_mut(input).zip(b.chunks_exact(rank)) {
        for (&b, a) in b.iter().zip(a.chunks_exact(input)) {
            row.iter_mut().zip(a).for_each(|(w, a)| *w += b * a);
        }
    }
}
