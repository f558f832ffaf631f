//! The paper's start: `A` Kaiming, `B` zero, scales one.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sharp_model::{LayerChange, Projection, Treatment};
use tch::{Kind, Tensor};

use crate::device::Compute;
use crate::error::Result;
use crate::forms::Pieces;
use crate::mlp::{Mlp, index};
use crate::tensors::{dim, from_f32};

/// `A` uniform within `±sqrt(3 / in)` (variance `1 / in`: Kaiming's for a linear map), `B` zero, scales one: the target
/// begins exactly as its reference. Low rank alone draws `B` too, for with both its base and `B` at zero every
/// gradient of gate and up would stay zero.
pub(crate) fn zero(target: &LayerChange, shape: &Mlp, seed: u64, compute: &Compute) -> Result<[Pieces; 3]> {
    let mut all = [Pieces::default(), Pieces::default(), Pieces::default()];
    for projection in Projection::ALL {
        let (out, input) = shape.weight(projection)?.size2()?;
        let stream = (target.layer as u64) << 2 | index(projection) as u64;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        let mut uniform = |rows: i64, cols: i64| -> Result<Tensor> {
            let bound = (3.0 / cols.max(1) as f32).sqrt();
            let n = usize::try_from(rows * cols).unwrap_or(0);
            let values: Vec<f32> = (0..n).map(|_| rng.random_range(-bound..bound)).collect();
            let shape = [usize::try_from(rows).unwrap_or(0), usize::try_from(cols).unwrap_or(0)];
            from_f32(&values, &shape, compute.device)
        };
        let options = (Kind::Float, compute.device);
        let rank = dim(target.treatment.ranks()[projection])?;
        let Some(pieces) = all.get_mut(index(projection)) else { continue };
        if rank > 0 {
            pieces.a = Some(uniform(rank, input)?);
            pieces.b = Some(match target.treatment {
                Treatment::LowRank { .. } => uniform(out, rank)?,
                _ => Tensor::f_zeros([out, rank], options)?,
            });
        }
        if target.treatment.scales().rows() {
            pieces.row = Some(Tensor::f_ones([out], options)?);
        }
        if target.treatment.scales().columns() {
            pieces.col = Some(Tensor::f_ones([input], options)?);
        }
    }
    Ok(all)
}
