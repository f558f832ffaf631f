//! Trainable parameters as one flat tensor with views into it, so that clipping, AdamW and checkpoints are a
//! few operations on one vector, whatever the model.

use std::collections::HashMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::tensors::{dim, from_f32, scalar, shape_of, to_vec};

/// How the optimiser treats a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Group {
    /// Low-rank factors `A (r, in)` and `B (out, r)`.
    Factor,
    /// A stored MLP's weights `(out, in)`.
    StoredMlp,
    /// A pruned MLP's weight `(out, in)`.
    Pruned,
    /// Neurons of a layer's own beside a reference's MLP.
    Neurons,
    /// Row and column scales.
    Scale,
    /// RMS norm weights `(d)`.
    Norm,
}

impl Group {
    /// Whether it is a matrix: weight decay applies, and rates go by the size of the original's weights. Not
    /// so scales and norms.
    pub(crate) fn is_matrix(self) -> bool {
        matches!(self, Self::Factor | Self::StoredMlp | Self::Pruned | Self::Neurons)
    }
}

/// One parameter: its name, shape and place in the flat tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParamSpec {
    /// The tensor's name in a recovery file.
    pub(crate) name: String,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// How the optimiser treats it.
    pub(crate) group: Group,
    /// What the learning rate is multiplied by.
    pub(crate) rate: f64,
    /// First element in the flat tensor.
    offset: usize,
}

impl ParamSpec {
    /// Returns the number of values.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns its elements in the flat tensor.
    pub(crate) fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// Names a parameter within its [`Layout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ParamId(usize);

impl ParamId {
    /// Returns its place in [`Layout::specs`].
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// The parameters and their places in a flat tensor. The same for values, gradients and moments.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Layout {
    specs: Vec<ParamSpec>,
    by_name: HashMap<String, usize>,
    total: usize,
}

impl Layout {
    /// Adds a parameter at the end.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the name is taken or the sizes overflow.
    pub(crate) fn add(&mut self, name: impl Into<String>, shape: &[usize], group: Group) -> Result<ParamId> {
        let name = name.into();
        let len = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .and_then(|n| self.total.checked_add(n).map(|_| n))
            .ok_or_else(|| Error::invalid(format!("parameter `{name}` of shape {shape:?} is too large")))?;
        if self.by_name.contains_key(&name) {
            return Err(Error::invalid(format!("parameter `{name}` twice")));
        }
        let id = self.specs.len();
        self.by_name.insert(name.clone(), id);
        self.specs.push(ParamSpec { name, shape: shape.to_vec(), group, rate: 1.0, offset: self.total });
        self.total += len;
        Ok(ParamId(id))
    }

    /// Has the optimiser multiply the learning rate by `rate` for a parameter.
    pub(crate) fn set_rate(&mut self, id: ParamId, rate: f64) {
        self.specs[id.0].rate = rate;
    }

    /// Returns all parameters in order.
    pub(crate) fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// Returns all parameters in order, with their numbers.
    pub(crate) fn all(&self) -> impl Iterator<Item = (ParamId, &ParamSpec)> {
        self.specs.iter().enumerate().map(|(i, spec)| (ParamId(i), spec))
    }

    /// Returns the number of values in all.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Finds a parameter by name.
    pub(crate) fn find(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied().map(ParamId)
    }

    /// Describes a parameter of this layout.
    pub(crate) fn spec(&self, id: ParamId) -> &ParamSpec {
        &self.specs[id.0]
    }

    /// Makes a flat tensor `(total)` of zeros.
    ///
    /// # Errors
    /// From libtorch.
    pub(crate) fn zeros(&self, device: Device) -> Result<Tensor> {
        Ok(Tensor::f_zeros([dim(self.total)?], (Kind::Float, device))?)
    }

    /// Returns the part of a flat tensor that is one parameter, in its shape, sharing memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if `flat` is not of this layout.
    pub(crate) fn view(&self, flat: &Tensor, id: ParamId) -> Result<Tensor> {
        let spec = self.spec(id);
        if flat.numel() != self.total {
            return Err(Error::Shape {
                what: "flat parameters".into(),
                expected: vec![self.total],
                found: shape_of(flat),
            });
        }
        let shape = spec.shape.iter().map(|&n| dim(n)).collect::<Result<Vec<_>>>()?;
        Ok(flat.f_narrow(0, dim(spec.offset)?, dim(spec.len())?)?.f_view(&shape[..])?)
    }

    /// Joins neighbouring parameters that the optimiser treats alike.
    pub(crate) fn segments(&self) -> Vec<Segment> {
        let mut runs: Vec<Segment> = Vec::new();
        for spec in &self.specs {
            let (decays, rate) = (spec.group.is_matrix(), spec.rate);
            match runs.last_mut() {
                Some(run) if (run.decays, run.rate) == (decays, rate) => run.range.end = spec.range().end,
                _ => runs.push(Segment { range: spec.range(), decays, rate }),
            }
        }
        runs
    }
}

/// Elements that the optimiser treats alike.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Segment {
    pub(crate) range: Range<usize>,
    /// Whether weight decay applies.
    pub(crate) decays: bool,
    /// What the learning rate is multiplied by.
    pub(crate) rate: f64,
}

/// Computes what the learning rate of a matrix is multiplied by, from the original's weight in its place.
///
/// AdamW moves every weight by about the rate, whatever its size. Rates are given for weights of a root mean
/// square of [`USUAL_SIZE`], SmolLM2's; smaller weights get as much less. The factor is a power of two, so
/// that a rounding of the sum changes nothing.
pub(crate) fn relative_rate(weight: &Tensor) -> Result<f64> {
    let squares = scalar(&weight.f_to_kind(Kind::Float)?.f_square()?.f_mean(Kind::Double)?)?;
    let doublings = (squares.sqrt() / USUAL_SIZE).log2().round().clamp(-12.0, 2.0);
    // A weight of zeros has no size to go by.
    Ok(if squares > 0.0 { 2f64.powf(doublings) } else { 1.0 })
}

/// The root mean square of the weights that learning rates are given for.
const USUAL_SIZE: f64 = 0.19;

/// Values of a layout's parameters.
#[derive(Debug)]
pub(crate) struct Params {
    /// What lies where.
    pub(crate) layout: Layout,
    /// The values, `(layout.total())`, float32.
    pub(crate) flat: Tensor,
}

impl Params {
    /// Makes values of zero.
    ///
    /// # Errors
    /// From libtorch.
    pub(crate) fn zeros(layout: Layout, device: Device) -> Result<Self> {
        let flat = layout.zeros(device)?;
        Ok(Self { layout, flat })
    }

    /// Returns one parameter, sharing memory with [`Params::flat`].
    ///
    /// # Errors
    /// As [`Layout::view`].
    pub(crate) fn view(&self, id: ParamId) -> Result<Tensor> {
        self.layout.view(&self.flat, id)
    }

    /// Replaces one parameter's values, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not as many values as the parameter has.
    pub(crate) fn set(&mut self, id: ParamId, values: &[f32]) -> Result<()> {
        let shape = self.layout.spec(id).shape.clone();
        let source = from_f32(values, &shape, self.flat.device())?;
        self.view(id)?.f_copy_(&source)?;
        Ok(())
    }

    /// Copies one parameter's values, row-major.
    ///
    /// # Errors
    /// From libtorch.
    pub(crate) fn get(&self, id: ParamId) -> Result<Vec<f32>> {
        to_vec(&self.view(id)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_the_size_of_weights_in_powers_of_two() {
        let rate = |size: f64| {
            let signs = Tensor::from_slice(&[1.0f32, -1.0, 1.0, -1.0]).reshape([2, 2]);
            relative_rate(&(signs * size)).unwrap()
        };
        // SmolLM2's sizes, Qwen2.5's and the usual 0.02 of other families.
        assert_eq!([0.181, 0.2, 0.203].map(rate), [1.0; 3]);
        assert_eq!([0.0164, 0.0044, 0.02].map(rate), [1.0 / 16.0, 1.0 / 32.0, 1.0 / 8.0]);
        assert_eq!([0.0, 1e-6, 1e6].map(rate), [1.0, 2f64.powi(-12), 4.0]);
    }

    #[test]
    fn views_share_memory_and_segments_join_neighbours() {
        let mut layout = Layout::default();
        let a = layout.add("a", &[2, 3], Group::Factor).unwrap();
        let b = layout.add("b", &[4], Group::StoredMlp).unwrap();
        let c = layout.add("c", &[5], Group::Norm).unwrap();
        assert!(layout.add("a", &[1], Group::Norm).is_err());
        let of = |range, decays, rate| Segment { range, decays, rate };
        assert_eq!(layout.segments(), vec![of(0..10, true, 1.0), of(10..15, false, 1.0)]);
        let mut slow = layout.clone();
        slow.set_rate(b, 0.25);
        assert_eq!(slow.segments(), vec![of(0..6, true, 1.0), of(6..10, true, 0.25), of(10..15, false, 1.0)]);
        let mut params = Params::zeros(layout, Device::Cpu).unwrap();
        params.set(b, &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(to_vec(&params.flat).unwrap()[6..10], [1.0, 2.0, 3.0, 4.0]);
        assert!(params.set(c, &[0.0; 4]).is_err());
        let _ = params.view(a).unwrap().f_fill_(7.0).unwrap();
        assert_eq!(params.get(a).unwrap(), [7.0; 6]);
    }
}
