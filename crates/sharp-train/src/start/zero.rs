//! The paper's start: `A` Kaiming, `B` zero, scales one.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sharp_model::{PerProjection, Projection};
use tch::{Kind, Tensor};

use crate::device::Compute;
use crate::error::{Error, Result};
use crate::forms::{Piece, Pieces};
use crate::params::Layout;
use crate::tensors::{dim, from_f32};
use crate::trained_layer::TrainedLayer;

/// Draws `A` uniform within `±sqrt(3 / in)` (variance `1 / in`: Kaiming's for a linear map); `B` is zero,
/// scales are one. So the layer begins exactly as its reference. `B` is drawn too where
/// [`Form::draws_b`](crate::forms::Form::draws_b).
pub(crate) fn zero(
    layer: &TrainedLayer,
    layout: &Layout,
    seed: u64,
    compute: &Compute,
) -> Result<PerProjection<Pieces>> {
    PerProjection::try_from_fn(|projection| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream((layer.layer as u64) << 2 | stream(projection));
        let mut uniform = |shape: &[usize]| -> Result<Tensor> {
            let columns = *shape.last().expect("a factor has two dimensions");
            let bound = (3.0 / columns.max(1) as f32).sqrt();
            let n = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|_| rng.random_range(-bound..bound)).collect();
            from_f32(&values, shape, compute.device)
        };
        let options = (Kind::Float, compute.device);
        layer.ids[projection].try_map(|piece, &id| {
            let shape = &layout.spec(id).shape;
            let sizes = shape.iter().map(|&n| dim(n)).collect::<Result<Vec<i64>>>()?;
            match piece {
                Piece::A => uniform(shape),
                Piece::B if layer.form.draws_b() => uniform(shape),
                Piece::B => Ok(Tensor::f_zeros(sizes, options)?),
                Piece::Row | Piece::Col => Ok(Tensor::f_ones(sizes, options)?),
                Piece::Weight | Piece::Neurons => Err(Error::invalid(format!(
                    "form `{}` has a weight of its own, for which there is no zero start",
                    layer.form.name()
                ))),
            }
        })
    })
}

/// The part of a random stream's number that tells projections apart.
fn stream(projection: Projection) -> u64 {
    match projection {
        Projection::Gate => 0,
        Projection::Up => 1,
        Projection::Down => 2,
    }
}
