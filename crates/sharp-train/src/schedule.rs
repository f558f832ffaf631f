//! The learning rate over time.

/// Linear warm-up, then a cosine down to a fraction of the peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Schedule {
    /// The highest learning rate.
    pub(crate) peak: f64,
    /// Steps over which the rate rises from 0 to the peak.
    pub(crate) warmup_steps: u64,
    /// Steps in all.
    pub(crate) total_steps: u64,
    /// The last step's rate as a fraction of the peak.
    pub(crate) floor: f64,
}

impl Schedule {
    /// Returns the rate of step `step`, counted from 1.
    pub(crate) fn at(&self, step: u64) -> f64 {
        if step <= self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps) as f64 / span).min(1.0);
        self.peak * (self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls_to_the_floor() {
        let s = Schedule { peak: 2.0, warmup_steps: 4, total_steps: 104, floor: 0.1 };
        assert!((s.at(1) - 0.5).abs() < 1e-12 && (s.at(4) - 2.0).abs() < 1e-12);
        assert!((s.at(54) - 1.1).abs() < 1e-9, "halfway down the cosine: {}", s.at(54));
        assert!((s.at(104) - 0.2).abs() < 1e-12 && (s.at(1000) - 0.2).abs() < 1e-12);
        let none = Schedule { warmup_steps: 0, ..s };
        assert!(none.at(1) <= 2.0 && none.at(1) > 1.99);
    }
}
