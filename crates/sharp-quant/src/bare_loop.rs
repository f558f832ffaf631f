//! The bare loop: only the matrix products of one token, an upper bound for the speed of decoding.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::{
    activations::Activations,
    error::{Error, Result, check_shape},
    kernels::{Kernels, Tokens},
    packed::{GROUP, PackedFormat, PackedRef},
    team::Team,
};

/// Groups that one call of a kernel takes.
const RUN: usize = 4;

/// Multiplies every matrix with the one token beside it, in order, in one parallel region.
///
/// Each thread takes the same fraction of the rows of every matrix. Nothing waits for anything else, and the
/// products are not stored. The number returned depends on all of them, so that the compiler cannot leave
/// them out.
///
/// # Errors
/// [`Error::Shape`] if a matrix and its activations do not agree or these are not of one token,
/// [`Error::Capacity`] if they lack the floats that a matrix of 16-bit floats needs.
pub fn bare_loop(team: &Team, products: &[(PackedRef<'_>, &Activations)]) -> Result<f32> {
    for (w, x) in products {
        check_shape("columns of the activations", w.cols(), x.cols())?;
        check_shape("tokens of the activations", 1, x.tokens())?;
        if w.format() == PackedFormat::F16 && !x.has_floats() {
            let what = "floats kept with the activations";
            return Err(Error::Capacity { what, capacity: 0, wanted: w.cols() });
        }
    }
    let (kernels, threads) = (Kernels::of(team.isa()), team.threads());
    let all = AtomicU32::new(0);
    team.run(threads, &|thread| {
        let mut sum = 0.0;
        for &(w, x) in products {
            let (from, to) = (thread * w.groups() / threads, (thread + 1) * w.groups() / threads);
            for g in (from..to).step_by(RUN) {
                let mut acc = [[0.0; GROUP]; RUN];
                let acc = &mut acc[..RUN.min(to - g)];
                kernels.gemv(w, g, Tokens::new(x, 0, 1), acc);
                sum += acc.iter().map(|acc| acc[0]).sum::<f32>();
            }
        }
        all.fetch_xor(f32::to_bits(sum), Ordering::Relaxed);
    });
    Ok(f32::from_bits(all.into_inner()))
}
