//! Linear CKA, streamed.
//!
//! Centred kernel alignment of two sets of features of the same tokens (Kornblith et al. 2019), estimated
//! without bias from minibatches (Nguyen, Raghu, Kornblith 2021): HSIC_1 of the tokens' Gram matrices, summed
//! over minibatches in numerator and denominator. Memory is one minibatch's Gram matrix per layer of the
//! window, whatever the hidden size and the number of tokens.

use sharp_infer::Team;
use sharp_quant::float;

/// Tokens in a minibatch. Unbiased at any size; this one keeps the Gram matrices in the second-level cache.
pub(crate) const MINIBATCH: usize = 256;

/// The Gram matrix of one minibatch with its diagonal set to zero, and the sums that HSIC needs.
#[derive(Debug, Clone)]
pub(crate) struct Gram {
    n: usize,
    /// `(n, n)`
    values: Vec<f32>,
    /// `(n)`
    rows: Vec<f64>,
    total: f64,
}

impl Gram {
    /// Makes the Gram matrix of features `(n, d)`; `None` where HSIC_1 is not defined (fewer than four
    /// tokens).
    pub(crate) fn new(team: &Team, features: &[f32], hidden: usize) -> Option<Self> {
        let n = features.len() / hidden.max(1);
        if n < 4 {
            return None;
        }
        let mut values = vec![0f32; n * n];
        // Lower triangle in blocks of rows; each block reads every earlier row once.
        let isa = team.isa();
        team.chunks_mut(&mut values, n * BLOCK, &|block, out| {
            let first = block * BLOCK;
            let height = out.len() / n;
            for j in 0..first + height {
                let Some(b) = features.get(j * hidden..(j + 1) * hidden) else { continue };
                for (k, row) in out.chunks_exact_mut(n).enumerate() {
                    let i = first + k;
                    if j < i
                        && let Some(a) = features.get(i * hidden..(i + 1) * hidden)
                        && let Some(slot) = row.get_mut(j)
                    {
                        *slot = float::dot(isa, a, b);
                    }
                }
            }
        });
        for i in 0..n {
            for j in 0..i {
                values[j * n + i] = values[i * n + j];
            }
        }
        let rows: Vec<f64> =
            values.chunks_exact(n).map(|row| row.iter().map(|&v| f64::from(v)).sum()).collect();
        let total = rows.iter().sum();
        Some(Self { n, values, rows, total })
    }

    /// Computes HSIC_1 of two Gram matrices of the same tokens (Song et al. 2012, equation 5).
    pub(crate) fn hsic(&self, other: &Self) -> f64 {
        let n = self.n as f64;
        let trace: f64 = self
            .values
            .chunks(self.n)
            .zip(other.values.chunks(self.n))
            .map(|(a, b)| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>())
            .sum();
        let rows: f64 = self.rows.iter().zip(&other.rows).map(|(a, b)| a * b).sum();
        (trace + self.total * other.total / ((n - 1.0) * (n - 2.0)) - 2.0 / (n - 2.0) * rows)
            / (n * (n - 3.0))
    }
}

const BLOCK: usize = 8;

/// Computes CKA from the sums of HSIC_1 over minibatches. An estimate: it may fall slightly outside 0 to 1.
pub(crate) fn cka(ab: f64, aa: f64, bb: f64) -> f64 {
    if aa > 0.0 && bb > 0.0 { ab / (aa * bb).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team() -> Team {
        Team::new(2).unwrap()
    }

    fn features(n: usize, d: usize, seed: f32) -> Vec<f32> {
        (0..n * d).map(|i| ((i as f32 + 1.0) * seed).sin() * (1.0 + (i % d) as f32 / d as f32)).collect()
    }

    /// Computes the definition as a U-statistic: the mean over all ordered quadruples of distinct tokens.
    fn by_definition(a: &[f32], b: &[f32], n: usize, d: usize) -> f64 {
        let k = |x: &[f32], i: usize, j: usize| -> f64 {
            (0..d).map(|c| f64::from(x[i * d + c]) * f64::from(x[j * d + c])).sum()
        };
        let (mut sum, mut count) = (0.0, 0.0);
        for i in 0..n {
            for j in (0..n).filter(|&j| j != i) {
                for q in (0..n).filter(|&q| q != i && q != j) {
                    for r in (0..n).filter(|&r| r != i && r != j && r != q) {
                        sum += k(a, i, j) * (k(b, i, j) + k(b, q, r) - 2.0 * k(b, i, q));
                        count += 1.0;
                    }
                }
            }
        }
        sum / count
    }

    #[test]
    fn hsic_is_the_u_statistic() {
        let (n, d) = (11, 5);
        let (a, b) = (features(n, d, 0.7), features(n, d, 1.3));
        let found = Gram::new(&team(), &a, d).unwrap().hsic(&Gram::new(&team(), &b, d).unwrap());
        let truth = by_definition(&a, &b, n, d);
        assert!((found - truth).abs() < 1e-5 * truth.abs().max(1e-3), "{found} {truth}");
    }

    #[test]
    fn the_gram_matrix_does_not_care_about_block_edges() {
        for (n, d) in [(4, 3), (8, 33), (9, 64), (37, 31)] {
            let a = features(n, d, 0.3);
            let gram = Gram::new(&team(), &a, d).unwrap();
            for i in 0..n {
                for j in 0..n {
                    let truth: f32 =
                        if i == j { 0.0 } else { (0..d).map(|c| a[i * d + c] * a[j * d + c]).sum() };
                    assert!((gram.values[i * n + j] - truth).abs() < 1e-4, "{n} {d} {i} {j}");
                }
            }
        }
        assert!(Gram::new(&team(), &features(3, 2, 1.0), 2).is_none());
    }

    #[test]
    fn cka_ignores_rotation_and_scale() {
        let (n, d) = (64, 2);
        let a = features(n, d, 0.7);
        let rotated: Vec<f32> = a.chunks(2).flat_map(|r| [3.0 * r[1] + 5.0, -3.0 * r[0]]).collect();
        let (a, b) = (Gram::new(&team(), &a, d).unwrap(), Gram::new(&team(), &rotated, d).unwrap());
        let found = cka(a.hsic(&b), a.hsic(&a), b.hsic(&b));
        assert!((found - 1.0).abs() < 1e-4, "{found}");
    }
}
