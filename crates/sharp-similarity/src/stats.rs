//! Running sums over tokens, from which the pairwise and per-layer measures follow. Nothing here grows with
//! the number of tokens.

/// Computes `(a . b, a . a, b . b)` of two rows, summed in blocks of 16 lanes so that the compiler can
/// vectorise it.
pub(crate) fn dots(a: &[f32], b: &[f32]) -> (f64, f64, f64) {
    const LANES: usize = 16;
    let (mut ab, mut aa, mut bb) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            ab[i] += x[i] * y[i];
            aa[i] += x[i] * x[i];
            bb[i] += y[i] * y[i];
        }
    }
    let sum = |lanes: [f32; LANES]| lanes.iter().map(|&v| f64::from(v)).sum::<f64>();
    let (mut ab, mut aa, mut bb) = (sum(ab), sum(aa), sum(bb));
    for (&x, &y) in a_rest.iter().zip(b_rest) {
        let (x, y) = (f64::from(x), f64::from(y));
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    (ab, aa, bb)
}

/// A mean over tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    pub(crate) fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.sum += value;
            self.count += 1;
        }
    }

    pub(crate) fn get(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }
}

/// Counts of values by their logarithm: a median without keeping the values, exact to half a percent.
#[derive(Debug, Clone)]
pub(crate) struct LogHistogram {
    bins: Vec<u64>,
}

impl LogHistogram {
    const PER_OCTAVE: f64 = 64.0;
    const LOWEST: f64 = -24.0;
    const OCTAVES: usize = 48;

    pub(crate) fn new() -> Self {
        Self { bins: vec![0; Self::OCTAVES * Self::PER_OCTAVE as usize] }
    }

    pub(crate) fn add(&mut self, value: f64) {
        if value.is_nan() || value < 0.0 {
            return;
        }
        let place = (value.log2() - Self::LOWEST) * Self::PER_OCTAVE;
        let last = self.bins.len() - 1;
        // `as` saturates: log2(0) = -inf lands in the first bin.
        let bin = (place.max(0.0) as usize).min(last);
        if let Some(count) = self.bins.get_mut(bin) {
            *count += 1;
        }
    }

    pub(crate) fn median(&self) -> f64 {
        let total: u64 = self.bins.iter().sum();
        if total == 0 {
            return 0.0;
        }
        let half = total as f64 / 2.0;
        let mut below = 0.0;
        for (bin, &count) in self.bins.iter().enumerate() {
            let count = count as f64;
            if below + count >= half {
                let within = if count > 0.0 { (half - below) / count } else { 0.0 };
                return 2f64.powf((bin as f64 + within) / Self::PER_OCTAVE + Self::LOWEST);
            }
            below += count;
        }
        0.0
    }
}

/// Sums over tokens for one directed pair: the target's own MLP output `y` against the reference's MLP on the
/// same input, `z`.
#[derive(Debug, Clone)]
pub(crate) struct Substitution {
    error: f64,
    own: f64,
    cosine: Mean,
    per_token: LogHistogram,
    residual: Mean,
    // Per channel: sum of z z and of y z, for the best scale of each output channel, (d).
    zz: Vec<f64>,
    yz: Vec<f64>,
}

impl Substitution {
    pub(crate) fn new(hidden: usize) -> Self {
        Self {
            error: 0.0,
            own: 0.0,
            cosine: Mean::default(),
            per_token: LogHistogram::new(),
            residual: Mean::default(),
            zz: vec![0.0; hidden],
            yz: vec![0.0; hidden],
        }
    }

    /// `own`, `other`: `(n, d)`; `residual_norms`: `(n)`, the norm of the residual stream after the layer.
    pub(crate) fn add(&mut self, own: &[f32], other: &[f32], residual_norms: &[f64]) {
        let hidden = self.zz.len().max(1);
        let rows = own.chunks_exact(hidden).zip(other.chunks_exact(hidden)).zip(residual_norms);
        for ((y, z), &residual) in rows {
            let (yz, yy, zz) = dots(y, z);
            let error = error_sq(y, z);
            self.error += error;
            self.own += yy;
            if yy > 0.0 && zz > 0.0 {
                self.cosine.add(yz / (yy * zz).sqrt());
            }
            if yy > 0.0 {
                self.per_token.add((error / yy).sqrt());
            }
            if residual > 0.0 {
                self.residual.add(error.sqrt() / residual);
            }
            for (((&y, &z), zz), yz) in y.iter().zip(z).zip(&mut self.zz).zip(&mut self.yz) {
                *zz += f64::from(z) * f64::from(z);
                *yz += f64::from(y) * f64::from(z);
            }
        }
    }

    /// Computes `||z - y|| / ||y||` over all tokens.
    pub(crate) fn relative_error(&self) -> f64 {
        ratio(self.error, self.own).sqrt()
    }

    /// Computes the relative error after the best scale for every output channel: never above 1, which is the
    /// MLP left out.
    pub(crate) fn scaled_error(&self) -> f64 {
        let explained: f64 =
            self.zz.iter().zip(&self.yz).filter(|(zz, _)| **zz > 0.0).map(|(zz, yz)| yz * yz / zz).sum();
        ratio((self.own - explained).max(0.0), self.own).sqrt()
    }

    /// Returns the best scale of every output channel, `(d)`: the reference's output times this is nearest to
    /// the target's.
    #[cfg(test)]
    pub(crate) fn scales(&self) -> Vec<f64> {
        self.zz.iter().zip(&self.yz).map(|(zz, yz)| if *zz > 0.0 { yz / zz } else { 0.0 }).collect()
    }

    pub(crate) fn cosine(&self) -> f64 {
        self.cosine.get()
    }

    pub(crate) fn token_error(&self) -> f64 {
        self.per_token.median()
    }

    pub(crate) fn residual_error(&self) -> f64 {
        self.residual.get()
    }
}

pub(crate) fn error_sq(a: &[f32], b: &[f32]) -> f64 {
    // Differences first: computed from the dot products, a small error would drown in rounding.
    const LANES: usize = 16;
    let mut lanes = [0f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            let d = x[i] - y[i];
            lanes[i] += d * d;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&x, &y)| f64::from(x - y).powi(2)).sum();
    lanes.iter().map(|&v| f64::from(v)).sum::<f64>() + rest
}

/// Computes a ratio of sums, 0 where there is nothing to relate to.
pub(crate) fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator > 0.0 { numerator / denominator } else { 0.0 }
}

/// Sums over tokens for one layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layer {
    through: Mean,
    share: Mean,
    squares: f64,
    values: u64,
}

impl Layer {
    /// All `(n, d)`. Returns the norms of the residual stream after the layer, `(n)`.
    pub(crate) fn add(&mut self, hidden: usize, before: &[f32], mlp: &[f32], after: &[f32]) -> Vec<f64> {
        let hidden = hidden.max(1);
        let mut norms = Vec::with_capacity(after.len() / hidden);
        let rows = before.chunks_exact(hidden).zip(after.chunks_exact(hidden)).zip(mlp.chunks_exact(hidden));
        for ((before, after), mlp) in rows {
            let (ba, bb, aa) = dots(before, after);
            let (_, mm, _) = dots(mlp, mlp);
            if bb > 0.0 && aa > 0.0 {
                self.through.add(ba / (bb * aa).sqrt());
                self.share.add((mm / aa).sqrt());
            }
            self.squares += mm;
            self.values += hidden as u64;
            norms.push(aa.sqrt());
        }
        norms
    }

    /// Computes 1 - mean cosine of the residual stream before and after (ShortGPT's block influence).
    pub(crate) fn block_influence(&self) -> f64 {
        1.0 - self.through.get()
    }

    pub(crate) fn share(&self) -> f64 {
        self.share.get()
    }

    pub(crate) fn output_rms(&self) -> f64 {
        ratio(self.squares, self.values as f64).sqrt()
    }
}

/// Adds the mean cosine over tokens of two `(n, d)` matrices.
pub(crate) fn add_cosines(mean: &mut Mean, hidden: usize, a: &[f32], b: &[f32]) {
    for (a, b) in a.chunks_exact(hidden.max(1)).zip(b.chunks_exact(hidden.max(1))) {
        let (ab, aa, bb) = dots(a, b);
        if aa > 0.0 && bb > 0.0 {
            mean.add(ab / (aa * bb).sqrt());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_agree_with_the_plain_sum() {
        for n in [1usize, 15, 16, 17, 100] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11).cos()).collect();
            let plain = |x: &[f32], y: &[f32]| -> f64 {
                x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
            };
            let (ab, aa, bb) = dots(&a, &b);
            for (fast, slow) in [(ab, plain(&a, &b)), (aa, plain(&a, &a)), (bb, plain(&b, &b))] {
                assert!((fast - slow).abs() < 1e-5, "{n}: {fast} {slow}");
            }
            let slow: f64 = a.iter().zip(&b).map(|(&x, &y)| f64::from(x - y).powi(2)).sum();
            assert!((error_sq(&a, &b) - slow).abs() < 1e-5);
        }
    }

    #[test]
    fn the_median_of_the_histogram_is_near_the_true_one() {
        let mut h = LogHistogram::new();
        let mut values: Vec<f64> =
            (0..2001).map(|i| ((i * 7919 % 2001) as f64 / 300.0).exp2() * 0.01).collect();
        values.iter().for_each(|&v| h.add(v));
        values.sort_by(f64::total_cmp);
        assert!((h.median() / values[1000] - 1.0).abs() < 0.005, "{} {}", h.median(), values[1000]);
        let mut h = LogHistogram::new();
        [0.0, f64::NAN, -1.0, f64::INFINITY].iter().for_each(|&v| h.add(v));
        assert!(h.median().is_finite());
        assert_eq!(LogHistogram::new().median(), 0.0);
    }

    #[test]
    fn the_best_scale_explains_a_scaled_copy() {
        let y: Vec<f32> = (0..12).map(|i| i as f32 - 5.5).collect();
        let scale = [2.0f32, -3.0, 0.5];
        let z: Vec<f32> = y.iter().enumerate().map(|(i, v)| v / scale[i % 3]).collect();
        let mut r = Substitution::new(3);
        r.add(&y, &z, &[1.0; 4]);
        assert!(r.scaled_error() < 1e-6 && r.relative_error() > 0.5);
        for (found, truth) in r.scales().iter().zip(scale) {
            assert!((found - f64::from(truth)).abs() < 1e-5);
        }
    }
}
