//! Standard errors and intervals by the bootstrap over documents (Efron, 1979): tokens of one document are
//! not independent, so documents are drawn again, whole.

use sharp_data::SplitMix;
use sharp_schema::evaluation::LossDifference;

/// How often the documents of a text are drawn again.
pub const RESAMPLES: usize = 4000;

/// The part of the resamples that lies below an interval, and above it: together a twentieth.
const TAIL: f64 = 0.025;

/// Seed of the draws: the same results give the same intervals.
const SEED: u64 = 0x5ba2_9d11;

/// Means of some quantities over a token, each in the same resamples: what two of them differ by is paired.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    means: Vec<Vec<f64>>,
}

impl Bootstrap {
    /// Draws the documents `resamples` times, as many as there are each time, with replacement. `tokens`
    /// holds each document's tokens; `sums` holds for each quantity its sum over each document's.
    ///
    /// Returns `None` for fewer than two documents, whose spread is unknown.
    pub fn new(tokens: &[usize], sums: &[&[f64]], resamples: usize) -> Option<Self> {
        let documents = tokens.len();
        if documents < 2 {
            return None;
        }
        let mut rng = SplitMix::new(SEED);
        let mut means = vec![Vec::with_capacity(resamples); sums.len()];
        let mut drawn = vec![0usize; documents];
        for _ in 0..resamples {
            drawn.fill_with(|| rng.below(documents));
            let total: usize = drawn.iter().map(|&document| tokens[document]).sum();
            for (means, sums) in means.iter_mut().zip(sums) {
                let sum: f64 = drawn.iter().map(|&document| sums[document]).sum();
                means.push(sum / total as f64);
            }
        }
        Some(Self { means })
    }

    /// Returns the standard error of a quantity's mean, or of the mean of what it is over another one.
    pub fn stderr(&self, quantity: usize, over: Option<usize>) -> f64 {
        let means = self.differences(quantity, over);
        let n = means.len() as f64;
        let mean = means.iter().sum::<f64>() / n;
        (means.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
    }

    /// Returns where 95 % of the resamples have the mean of what a quantity is over another one; `mean` is
    /// that of the text as it is.
    pub fn difference(&self, quantity: usize, over: usize, mean: f64) -> LossDifference {
        let mut means = self.differences(quantity, Some(over));
        means.sort_by(f64::total_cmp);
        LossDifference { mean, low: quantile(&means, TAIL), high: quantile(&means, 1.0 - TAIL) }
    }

    fn differences(&self, quantity: usize, over: Option<usize>) -> Vec<f64> {
        let mut means = self.means[quantity].clone();
        if let Some(over) = over {
            means.iter_mut().zip(&self.means[over]).for_each(|(mean, other)| *mean -= other);
        }
        means
    }
}

/// Returns the value below which a part of the sorted values lies, linear between two of them.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = part * (sorted.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (at - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_linear_between_values() {
        let sorted = [0.0, 1.0, 2.0, 4.0];
        assert_eq!([0.0, 0.5, 1.0].map(|part| quantile(&sorted, part)), [0.0, 1.5, 4.0]);
    }

    #[test]
    fn what_both_models_find_hard_is_in_no_difference() {
        // Documents differ widely, the models always by the same.
        let (tokens, hard) = ([10usize; 40], (0..40).map(|i| f64::from(i % 7) * 10.0).collect::<Vec<_>>());
        let second: Vec<f64> = hard.iter().map(|loss| loss + 1.0).collect();
        let b = Bootstrap::new(&tokens, &[&hard, &second], 500).unwrap();
        assert!(b.stderr(0, None) > 0.2, "{}", b.stderr(0, None));
        assert!(b.stderr(1, Some(0)) < 1e-12);
        let found = b.difference(1, 0, 0.1);
        assert!((found.low - 0.1).abs() < 1e-12 && (found.high - 0.1).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn tokens_of_one_document_count_as_one_draw() {
        // Each document is easy or hard throughout: 10 documents say as little as 10 tokens.
        let spread = |tokens_each: usize| {
            let sums: Vec<f64> = (0..10).map(|i| f64::from(i % 2) * tokens_each as f64).collect();
            Bootstrap::new(&[tokens_each; 10], &[&sums], 2000).unwrap().stderr(0, None)
        };
        assert!((spread(1) - spread(1000)).abs() < 1e-12);
        assert!((spread(1) - 0.5 / 10f64.sqrt()).abs() < 0.01, "{}", spread(1));
    }

    #[test]
    fn one_document_has_no_spread() {
        assert_eq!(Bootstrap::new(&[7], &[&[1.0]], 10), None);
    }
}
