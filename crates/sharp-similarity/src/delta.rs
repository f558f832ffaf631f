//! Delta NLL: the model's own loss when one layer runs with another's MLP, against its loss as it is.
//!
//! Everything below the target is the same in both runs, so a sequence is run once with the residual stream kept before
//! every layer, and each replacement goes on from its target.

use std::collections::BTreeMap;

use sharp_infer::{LayerView, Model};
use sharp_progress::Progress;

use crate::analyze::Options;
use crate::report::Report;
use crate::{Error, Result};

/// Sums of a per-token difference and of its square.
#[derive(Debug, Clone, Copy, Default)]
struct Difference {
    sum: f64,
    squares: f64,
    count: u64,
}

impl Difference {
    fn add(&mut self, base: &[f64], changed: &[f64]) {
        for (b, c) in base.iter().zip(changed) {
            self.sum += c - b;
            self.squares += (c - b) * (c - b);
            self.count += 1;
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    fn stderr(&self) -> Option<f64> {
        let n = self.count as f64;
        (self.count > 1).then(|| ((self.squares / n - self.mean().powi(2)).max(0.0) / (n - 1.0)).sqrt())
    }
}

/// What is put in a target's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Use(usize),
    LeaveOut,
}

/// The leading sequences, the last one shortened, that hold about `tokens` tokens; none shorter than two.
fn leading<'a>(sequences: &[&'a [u32]], tokens: usize) -> Vec<&'a [u32]> {
    let mut left = tokens;
    let mut chosen = Vec::new();
    for sequence in sequences {
        let part = sequence.get(..left.min(sequence.len())).unwrap_or_default();
        if part.len() < 2 {
            break;
        }
        left -= part.len();
        chosen.push(part);
    }
    chosen
}

/// Fills in the delta NLL of every pair of the report.
pub(crate) fn measure(
    model: &Model,
    sequences: &[&[u32]],
    options: &Options,
    report: &mut Report,
    progress: &dyn Progress,
) -> Result<()> {
    let sequences = leading(sequences, options.delta_nll_tokens.max(2));
    // By target, so that a sequence's kept residual streams are used in order.
    let mut changes: Vec<(usize, Change)> =
        report.pairs.iter().map(|p| (p.target, Change::Use(p.reference))).collect();
    if options.removal {
        changes.extend(report.layers.iter().map(|l| (l.layer, Change::LeaveOut)));
    }
    changes.sort_unstable();
    let task = progress.task("delta NLL", (sequences.len() * changes.len()) as u64, "replacements");
    // `None` once a loss was not finite: such a replacement has no cost that could be compared.
    let mut found: BTreeMap<(usize, Change), Option<Difference>> =
        changes.iter().map(|&c| (c, Some(Difference::default()))).collect();
    let (mut loss, mut tokens) = (0.0, 0u64);
    for sequence in &sequences {
        // What enters each layer, (layers, n, d).
        let mut entering: Vec<Vec<f32>> = Vec::with_capacity(report.num_layers);
        let last =
            model.hidden(sequence, &mut |view: LayerView<'_>| entering.push(view.residual_in.to_vec()))?;
        let base = model.losses_of(&last, sequence)?;
        loss += base.iter().sum::<f64>();
        tokens += base.len() as u64;
        for &(target, change) in &changes {
            let changed = match change {
                Change::Use(reference) => {
                    model.with_mlp_map(|layer| if layer == target { reference } else { layer })?
                }
                Change::LeaveOut => model.without_mlps(&[target])?,
            };
            let start = entering.get(target).cloned().unwrap_or_default();
            let last = changed.hidden_from(target, start, &mut ())?;
            let losses = match changed.losses_of(&last, sequence) {
                Ok(losses) => Some(losses),
                Err(sharp_infer::Error::NotFinite { .. }) => None,
                Err(error) => return Err(Error::Infer(error)),
            };
            if let Some(entry) = found.get_mut(&(target, change)) {
                *entry = entry.zip(losses).map(|(mut difference, losses)| {
                    difference.add(&base, &losses);
                    difference
                });
            }
            task.advance(1);
        }
    }
    report.nll = (tokens > 0).then(|| loss / tokens as f64);
    report.delta_nll_tokens = tokens;
    let get = |key| found.get(&key).copied().flatten().filter(|d| d.count > 0);
    for pair in &mut report.pairs {
        let difference = get((pair.target, Change::Use(pair.reference)));
        pair.delta_nll = difference.map(|d| d.mean());
        pair.delta_nll_stderr = difference.and_then(|d| d.stderr());
    }
    for layer in &mut report.layers {
        layer.removal_nll = get((layer.layer, Change::LeaveOut)).map(|d| d.mean());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leading_tokens_are_taken() {
        let (a, b) = ([1u32; 10], [2u32; 10]);
        let lengths = |n| leading(&[&a, &b], n).iter().map(|s| s.len()).collect::<Vec<_>>();
        assert_eq!(lengths(15), [10, 5]);
        assert_eq!(lengths(11), [10]);
        assert_eq!(lengths(1000), [10, 10]);
    }

    #[test]
    fn the_standard_error_is_that_of_a_mean() {
        let mut d = Difference::default();
        d.add(&[0.0; 4], &[1.0, 2.0, 3.0, 4.0]);
        // Sample standard deviation 1.2910, divided by the root of 4.
        assert!((d.mean() - 2.5).abs() < 1e-12 && (d.stderr().unwrap() - 0.645_497).abs() < 1e-6);
    }
}
