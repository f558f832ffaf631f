//! Choosing the next token from logits.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How to choose. The filters work in the order of transformers: repetition penalty, temperature, top-k,
/// top-p, min-p.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerOptions {
    /// Divides the logits; 0 is greedy: always the likeliest token.
    pub temperature: f32,
    /// Only so many of the likeliest tokens; 0: all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability; 1: all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0: all.
    pub min_p: f32,
    /// Positive logits of tokens already there are divided by it, negative ones multiplied; 1: nothing.
    pub repetition_penalty: f32,
    /// Same seed, same logits: same tokens, on every machine.
    pub seed: u64,
}

impl Default for SamplerOptions {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplerOptions {
    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the option.
    pub fn validate(&self) -> Result<()> {
        let rules = [
            (
                self.temperature.is_finite() && self.temperature >= 0.0,
                "temperature",
                self.temperature,
                "at least 0",
            ),
            (self.top_p > 0.0 && self.top_p <= 1.0, "top_p", self.top_p, "above 0, at most 1"),
            (self.min_p >= 0.0 && self.min_p <= 1.0, "min_p", self.min_p, "from 0 to 1"),
            (
                self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
                "repetition_penalty",
                self.repetition_penalty,
                "above 0",
            ),
        ];
        match rules.iter().find(|(right, ..)| !right) {
            None => Ok(()),
            Some((_, name, value, rule)) => {
                Err(Error::argument(format!("{name} is {value}; it has to be {rule}")))
            }
        }
    }
}

/// Chooses tokens, with a random state of its own. Buffers are kept between tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    rng: ChaCha8Rng,
    /// Candidates: token and logit, later probability, likeliest first.
    candidates: Vec<(u32, f32)>,
    /// Whether a token has been seen (vocab bits), for the penalty.
    seen: Vec<u64>,
}

impl Sampler {
    /// A sampler at the beginning of its random sequence.
    ///
    /// # Errors
    /// Those of [`SamplerOptions::validate`].
    pub fn new(options: SamplerOptions) -> Result<Self> {
        options.validate()?;
        let rng = ChaCha8Rng::seed_from_u64(options.seed);
        Ok(Self { options, rng, candidates: Vec::new(), seen: Vec::new() })
    }

    /// Its options.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Makes room for a vocabulary, so that sampling does not allocate later.
    pub fn reserve(&mut self, vocab: usize) {
        self.candidates.reserve(vocab.saturating_sub(self.candidates.len()));
        self.seen.resize(vocab.div_ceil(64), 0);
    }

    /// Chooses the next token from the logits (vocab), which it changes, and all tokens so far. `None`: no
    /// logit is a number.
    ///
    /// Of equal logits the lower token counts as likelier.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Option<u32> {
        self.penalise(logits, history);
        if self.options.temperature == 0.0 {
            return greedy(logits);
        }
        let probabilities = self.distribution(logits);
        if probabilities.is_empty() {
            return None;
        }
        let total: f32 = self.candidates.iter().map(|c| c.1).sum();
        let mut left = self.rng.random::<f32>() * total;
        for &(token, p) in &self.candidates {
            left -= p;
            if left < 0.0 {
                return Some(token);
            }
        }
        self.candidates.last().map(|c| c.0)
    }

    /// Divides or multiplies the logits of tokens in `history` by the repetition penalty, each once.
    pub fn penalise(&mut self, logits: &mut [f32], history: &[u32]) {
        let penalty = self.options.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        self.seen.clear();
        self.seen.resize(logits.len().div_ceil(64), 0);
        for &token in history {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            let Some(word) = self.seen.get_mut(token as usize / 64) else { continue };
            let bit = 1 << (token % 64);
            if *word & bit == 0 {
                *word |= bit;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// The filtered candidates with their probabilities (they add up to 1 but for rounding), likeliest first,
    /// at a temperature above 0; without the repetition penalty.
    pub fn distribution(&mut self, logits: &[f32]) -> &[(u32, f32)] {
        let SamplerOptions { temperature, top_k, top_p, min_p, .. } = self.options;
        let all = &mut self.candidates;
        all.clear();
        let top = logits.iter().copied().filter(|l| !l.is_nan()).fold(f32::NEG_INFINITY, f32::max);
        if top == f32::NEG_INFINITY {
            return all;
        }
        // Below this, a token's probability is under 1e-13 of the likeliest's: not worth sorting.
        let least = if top == f32::INFINITY { top } else { top - 30.0 * temperature.max(1e-6) };
        all.extend(logits.iter().enumerate().filter(|(_, l)| **l >= least).map(|(i, &l)| (i as u32, l)));
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if top_k > 0 && top_k < all.len() {
            all.select_nth_unstable_by(top_k - 1, order);
            all.truncate(top_k);
        }
        all.sort_unstable_by(order);
        let scale = 1.0 / temperature.max(1e-6);
        let mut total = 0.0f32;
        for c in all.iter_mut() {
            // Equal infinities count alike.
            c.1 = if c.1 == top { 1.0 } else { ((c.1 - top) * scale).exp() };
            total += c.1;
        }
        if top_p < 1.0 {
            let mut sum = 0.0;
            let keep = all.iter().position(|c| {
                sum += c.1;
                sum >= top_p * total
            });
            all.truncate(keep.map_or(all.len(), |k| k + 1).max(1));
        }
        if min_p > 0.0 {
            let least = min_p * all.first().map_or(0.0, |c| c.1);
            let keep = all.iter().take_while(|c| c.1 >= least).count();
            all.truncate(keep.max(1));
        }
        let total: f32 = all.iter().map(|c| c.1).sum();
        all.iter_mut().for_each(|c| c.1 /= total);
        all
    }
}

/// The likeliest token, the lowest of equals.
pub(crate) fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (i, &l) in logits.iter().enumerate() {
        if !l.is_nan() && best.is_none_or(|(_, top)| l > top) {
            best = Some((i as u32, l));
        }
    }
    best.map(|b| b.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(options: SamplerOptions) -> Sampler {
        Sampler::new(options).unwrap()
    }

    fn near(found: &[(u32, f32)], expected: &[(u32, f32)]) {
        assert_eq!(found.len(), expected.len(), "{found:?} {expected:?}");
        for (f, e) in found.iter().zip(expected) {
            assert!(f.0 == e.0 && (f.1 - e.1).abs() < 1e-5, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn filters_cut_as_they_say() {
        // Probabilities 0.5, 0.25, 0.15, 0.1 for tokens 2, 0, 3, 1.
        let logits: Vec<f32> = [0.25f32, 0.1, 0.5, 0.15].iter().map(|p| p.ln()).collect();
        let base = SamplerOptions { temperature: 1.0, ..Default::default() };
        let of = |o: SamplerOptions| sampler(o).distribution(&logits).to_vec();
        near(&of(base.clone()), &[(2, 0.5), (0, 0.25), (3, 0.15), (1, 0.1)]);
        near(&of(SamplerOptions { top_k: 2, ..base.clone() }), &[(2, 2.0 / 3.0), (0, 1.0 / 3.0)]);
        near(&of(SamplerOptions { top_p: 0.7, ..base.clone() }), &[(2, 2.0 / 3.0), (0, 1.0 / 3.0)]);
        near(&of(SamplerOptions { top_p: 0.01, ..base.clone() }), &[(2, 1.0)]);
        near(
            &of(SamplerOptions { min_p: 0.25, ..base.clone() }),
            &[(2, 5.0 / 9.0), (0, 2.5 / 9.0), (3, 1.5 / 9.0)],
        );
        near(&of(SamplerOptions { temperature: 0.5, top_k: 2, ..base }), &[(2, 0.8), (0, 0.2)]);
    }

    #[test]
    fn the_penalty_counts_each_token_once() {
        let mut s = sampler(SamplerOptions { repetition_penalty: 2.0, ..Default::default() });
        let mut logits = vec![3.0, 2.0, -1.0];
        assert_eq!(s.sample(&mut logits, &[0, 0, 2, 9]), Some(1));
        assert_eq!(logits, [1.5, 2.0, -2.0]);
    }

    #[test]
    fn one_seed_gives_one_sequence_in_the_right_proportions() {
        let options = SamplerOptions { temperature: 1.0, seed: 7, ..Default::default() };
        let logits: Vec<f32> = [0.6f32, 0.3, 0.1].iter().map(|p| p.ln()).collect();
        let draw = || {
            let mut s = sampler(options.clone());
            (0..4000).map(|_| s.sample(&mut logits.clone(), &[]).unwrap()).collect::<Vec<_>>()
        };
        let first = draw();
        assert_eq!(first, draw());
        for (token, p) in [(0, 0.6), (1, 0.3), (2, 0.1)] {
            let share = first.iter().filter(|&&t| t == token).count() as f64 / 4000.0;
            assert!((share - p).abs() < 0.03, "{token}: {share}");
        }
    }

    #[test]
    fn strange_logits_do_not_panic() {
        let mut s = sampler(SamplerOptions {
            temperature: 1.0,
            top_k: 5,
            top_p: 0.9,
            min_p: 0.1,
            ..Default::default()
        });
        assert_eq!(s.sample(&mut [], &[]), None);
        assert_eq!(s.sample(&mut [f32::NAN; 3], &[]), None);
        assert_eq!(s.sample(&mut [f32::NEG_INFINITY; 3], &[]), None);
        assert_eq!(s.sample(&mut [f32::NAN, 1.0], &[]), Some(1));
        assert_eq!(s.sample(&mut [f32::INFINITY, 1.0], &[]), Some(0));
        assert_eq!(greedy(&[f32::NAN, 2.0, 2.0]), Some(1));
        for bad in [
            SamplerOptions { temperature: -1.0, ..Default::default() },
            SamplerOptions { temperature: f32::NAN, ..Default::default() },
            SamplerOptions { top_p: 0.0, ..Default::default() },
            SamplerOptions { min_p: 2.0, ..Default::default() },
            SamplerOptions { repetition_penalty: 0.0, ..Default::default() },
        ] {
            assert!(Sampler::new(bad).is_err());
        }
    }
}
