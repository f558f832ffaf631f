//! Means with their standard errors.

/// A running mean and its spread (Welford, 1962).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mean {
    n: usize,
    mean: f64,
    squares: f64,
}

impl Mean {
    pub(crate) fn add(&mut self, x: f64) {
        self.n += 1;
        let delta = x - self.mean;
        self.mean += delta / self.n as f64;
        self.squares += delta * (x - self.mean);
    }

    pub(crate) fn count(&self) -> usize {
        self.n
    }

    pub(crate) fn mean(&self) -> f64 {
        self.mean
    }

    /// Returns the standard error of the mean: the sample's standard deviation (n - 1) over the root of n, as
    /// lm-evaluation-harness has it; 0 for fewer than two values. For values of 0 and 1 with mean p this
    /// is sqrt(p (1 - p) / (n - 1)).
    pub(crate) fn stderr(&self) -> f64 {
        if self.n < 2 {
            return 0.0;
        }
        (self.squares / (self.n - 1) as f64 / self.n as f64).max(0.0).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_error_of_a_proportion() {
        let mut m = Mean::default();
        assert_eq!((m.mean(), m.stderr()), (0.0, 0.0));
        for i in 0..1000 {
            m.add(f64::from(u8::from(i % 10 < 7)));
        }
        assert!((m.mean() - 0.7).abs() < 1e-12);
        assert!((m.stderr() - (0.7f64 * 0.3 / 999.0).sqrt()).abs() < 1e-12);
    }
}
