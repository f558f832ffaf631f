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
/// neurons of its own, as further rows of gate and up and further columns of down, then the bias. What is
/// absent counts as nothing (scales: as ones).
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
    /// The stored weight `(out, in)`, without the neurons beside it; its name is the reference's where it is
    /// shared. None for low rank alone and for dropped layers.
    pub base: Option<T>,
    /// Low-rank factors.
    pub lora: Option<LoraSource<T>>,
    /// Neurons of the layer's own: `(k, in)` for gate and up, `(out, k)` for down.
    pub neurons: Option<T>,
    /// `(out)`.
    pub row_scale: Option<T>,
    /// `(in)`.
    pub col_scale: Option<T>,
    /// `(out)`: the layer's own; biases are never shared.
    pub bias: Option<T>,
}

impl<T> ProjectionSource<T> {
    /// Returns what there is of base, `A`, `B`, neurons, row scale, column scale and bias.
    pub fn into_tensors(self) -> impl Iterator<Item = T> {
        let (a, b) = self.lora.map_or((None, None), |lora| (Some(lora.a), Some(lora.b)));
        [self.base, a, b, self.neurons, self.row_scale, self.col_scale, self.bias].into_iter().flatten()
    }

    /// Turns each tensor into something else with `f`, in the order base, `A`, `B`, neurons, row scale,
    /// column scale, bias.
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
            neurons: self.neurons.map(&mut f).transpose()?,
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
        let Self { base, lora, neurons, row_scale, col_scale, .. } = self;
        base.is_some() && lora.is_none() && neurons.is_none() && row_scale.is_none() && col_scale.is_none()
    }

    /// The effective weight `(out, in)`, row-major, computed in float32 (sums over the rank in ascending
    /// order).
    ///
    /// # Errors
    /// [`Error::Quant`](crate::Error::Quant) if stored bytes cannot be converted.
    pub fn effective_f32(&self) -> Result<Vec<f32>> {
        let (out, input) = self.inner_shape();
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
        let Some(neurons) = &self.neurons else { return Ok(weight) };
        let neurons = neurons.f32()?;
        if self.projection != Projection::Down {
            weight.extend(neurons);
            return Ok(weight);
        }
        let mut joined = Vec::with_capacity(out * self.in_features);
        for (row, own) in weight.chunks_exact(input).zip(neurons.chunks_exact(self.in_features - input)) {
            joined.extend_from_slice(row);
            joined.extend_from_slice(own);
        }
        Ok(joined)
    }

    /// `(out, in)` of the base and of `B A`: the effective weight's without the neurons beside.
    fn inner_shape(&self) -> (usize, usize) {
        let Some(neurons) = &self.neurons else { return (self.out_features, self.in_features) };
        match self.projection {
            Projection::Gate | Projection::Up => (self.out_features - neurons.shape()[0], self.in_features),
            Projection::Down => (self.out_features, self.in_features - neurons.shape()[1]),
        }
    }

    /// The effective weight in an MLP of `width` neurons: those that it has not are zeros at the end.
    ///
    /// # Errors
    /// As [`ProjectionSource::effective_f32`].
    ///
    /// # Panics
    /// If it has more than `width` neurons; see [`crate::ModelLayout::widest_mlp`].
    pub fn padded_f32(&self, config: &ModelConfig, width: usize) -> Result<Vec<f32>> {
        let weight = self.effective_f32()?;
        let (out, input) = self.projection.shape_with(config.hidden_size, width);
        if (out, input) == (self.out_features, self.in_features) {
            return Ok(weight);
        }
        assert!(self.out_features <= out && self.in_features <= input, "an MLP wider than {width} neurons");
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
