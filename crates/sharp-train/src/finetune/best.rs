//! Keeps the best state that training has been in, and says when to go back to it.

use tch::Tensor;

use crate::error::Result;

/// A measurement counts as worse where it is above the best by more than this fraction.
const MARGIN: f64 = 0.01;

/// Nats a token by which a single measurement must be worse for training to have diverged.
const LEAP: f64 = 0.5;

/// The best state measured so far.
#[derive(Debug)]
pub(super) struct Best {
    pub(super) record: Record,
    /// The parameters then.
    pub(super) flat: Tensor,
}

/// What is known of the best state, apart from its parameters.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The step after which it was measured; 0 is the start.
    pub(super) step: u64,
    /// Held-out mean of what is minimised, in nats a token.
    pub(super) loss: f64,
    /// Held-out perplexity.
    pub(super) perplexity: f64,
    /// Measurements since then that were worse by more than a margin, in a row.
    pub(super) worse: u32,
    /// How often training went back to it or to one before it. Each time halves the learning rate.
    pub(super) setbacks: u32,
}

/// What a measurement says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Training goes on.
    GoOn,
    /// Two measurements in a row were worse, or one by far: training goes back.
    Diverged,
}

impl Record {
    /// The factor of the learning rate.
    pub(super) fn rate(&self) -> f64 {
        0.5f64.powi(i32::try_from(self.setbacks).unwrap_or(i32::MAX))
    }

    /// Judges a measurement; true where it is the best so far.
    fn judge(&mut self, step: u64, loss: f64, perplexity: f64) -> (bool, Verdict) {
        if loss <= self.loss {
            *self = Self { step, loss, perplexity, worse: 0, setbacks: self.setbacks };
            return (true, Verdict::GoOn);
        }
        // Written so that a loss that is no number counts as worse.
        self.worse = if loss <= self.loss * (1.0 + MARGIN) { 0 } else { self.worse + 1 };
        let near = loss <= self.loss + LEAP;
        let diverged = self.worse > 1 || (self.worse == 1 && !near);
        (false, if diverged { Verdict::Diverged } else { Verdict::GoOn })
    }
}

impl Best {
    /// The state that training begins in.
    pub(super) fn start(loss: f64, perplexity: f64, flat: &Tensor) -> Result<Self> {
        let record = Record { step: 0, loss, perplexity, worse: 0, setbacks: 0 };
        Ok(Self { record, flat: flat.f_detach_copy()? })
    }

    /// Takes a measurement of the parameters `flat` after `step` into account.
    pub(super) fn measured(
        &mut self,
        step: u64,
        loss: f64,
        perplexity: f64,
        flat: &Tensor,
    ) -> Result<Verdict> {
        let (better, verdict) = self.record.judge(step, loss, perplexity);
        if better {
            self.flat.f_copy_(flat)?;
        }
        Ok(verdict)
    }

    /// Counts a way back.
    pub(super) fn went_back(&mut self) {
        self.record.worse = 0;
        self.record.setbacks += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_goes_back_after_two_worse_measurements_or_one_that_is_far_worse() {
        let start = Record { step: 0, loss: 2.0, perplexity: 7.4, worse: 0, setbacks: 0 };
        let verdicts = |losses: &[f64]| -> Vec<Verdict> {
            let mut record = start;
            (1u64..).zip(losses).map(|(step, &loss)| record.judge(step, loss, loss.exp()).1).collect()
        };
        let (on, back) = (Verdict::GoOn, Verdict::Diverged);
        assert_eq!(verdicts(&[1.9, 1.8, 1.7]), [on, on, on]);
        // A little worse may pass, however often; and one worse measurement, if the next is better.
        assert_eq!(verdicts(&[2.01, 2.01, 2.01]), [on, on, on]);
        assert_eq!(verdicts(&[2.3, 1.9, 2.2, 1.8]), [on, on, on, on]);
        assert_eq!(verdicts(&[2.1, 2.1]), [on, back]);
        assert_eq!(verdicts(&[2.6]), [back]);
        assert_eq!(verdicts(&[f64::NAN]), [back]);
        let mut record = start;
        assert!(record.judge(3, 1.5, 4.5).0);
        assert_eq!((record.step, record.loss, record.perplexity), (3, 1.5, 4.5));
        assert!(!record.judge(4, 1.6, 5.0).0 && record.step == 3);
    }
}
