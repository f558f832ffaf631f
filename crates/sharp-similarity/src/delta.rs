//! Delta NLL: the model's own loss when one layer runs with another's MLP, against its loss as it is.
//!
//! Everything below the target is the same in both runs, so a sequence is run once with the residual stream
//! kept before every layer, and each replacement goes on from its target.

use std::collections::BTreeMap;

use sharp_infer::{LayerView, Model};
use sharp_progress::{Progress, Task};

use crate::options::Options;
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

/// Longest piece of a sequence on which a replacement is measured.
const PIECE: usize = 256;

/// Returns the first tokens of the sequences, about `tokens` in all, in pieces; none shorter than two.
fn leading<'a>(sequences: &[&'a [u32]], tokens: usize) -> Vec<&'a [u32]> {
    let mut left = tokens;
    let mut chosen = Vec::new();
    for piece in sequences.iter().flat_map(|s| s.chunks(PIECE)) {
        let part = &piece[..left.min(piece.len())];
        left -= part.len();
        if part.len() >= 2 {
            chosen.push(part);
        }
    }
    chosen
}

/// Returns the pieces of each round: a quarter, a quarter, the rest; all at once where there are too few.
fn rounds<'p, 'a>(pieces: &'p [&'a [u32]], screen: bool) -> Vec<&'p [&'a [u32]]> {
    let quarter = pieces.len() / 4;
    if !screen || quarter == 0 {
        return vec![pieces];
    }
    let (first, rest) = pieces.split_at(quarter);
    let (second, third) = rest.split_at(quarter);
    vec![first, second, third]
}

/// Returns the better half: of the replacements by another's MLP and of the removals each.
fn better_half(changes: &[(usize, Change)], cost: impl Fn(&(usize, Change)) -> f64) -> Vec<(usize, Change)> {
    let mut kept = Vec::new();
    for removal in [false, true] {
        let mut kind: Vec<(usize, Change)> =
            changes.iter().copied().filter(|c| (c.1 == Change::LeaveOut) == removal).collect();
        kind.sort_by(|a, b| cost(a).total_cmp(&cost(b)).then(a.cmp(b)));
        kind.truncate(kind.len().div_ceil(2));
        kept.extend(kind);
    }
    kept.sort_unstable();
    kept
}

/// Fills in the delta NLL of every pair of the report.
pub(crate) fn measure(
    model: &Model,
    sequences: &[&[u32]],
    options: &Options,
    report: &mut Report,
    progress: &dyn Progress,
) -> Result<()> {
    let pieces = leading(sequences, options.delta_nll_tokens.max(2));
    // By target, so that a piece's kept residual streams are used in order.
    let mut changes: Vec<(usize, Change)> =
        report.pairs.iter().map(|p| (p.target, Change::Use(p.reference))).collect();
    if options.removal {
        changes.extend(report.layers.iter().map(|l| (l.layer, Change::LeaveOut)));
    }
    changes.sort_unstable();
    let rounds = rounds(&pieces, options.screen);
    let work: usize = rounds.iter().enumerate().map(|(i, r)| r.len() * (changes.len() >> i)).sum();
    let task = progress.task("delta NLL", work as u64, "replacements");
    // `None` once a loss was not finite: such a replacement has no cost that could be compared.
    let mut found: BTreeMap<(usize, Change), Option<Difference>> =
        changes.iter().map(|&c| (c, Some(Difference::default()))).collect();
    let (mut loss, mut tokens) = (0.0, 0u64);
    for (round, pieces) in rounds.into_iter().enumerate() {
        if round > 0 {
            changes = better_half(&changes, |c| {
                found.get(c).copied().flatten().map_or(f64::INFINITY, |d| d.mean())
            });
        }
        for tokens_of in pieces {
            let base = measure_piece(model, tokens_of, &changes, report.num_layers, &mut found, &*task)?;
            loss += base.iter().sum::<f64>();
            tokens += base.len() as u64;
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
    for pair in &mut report.pairs {
        let removal = report.layers.get(pair.target).and_then(|l| l.removal_nll);
        pair.predicted_nll = pair
            .delta_nll
            .zip(removal)
            .map(|(delta, removal)| delta.min(removal * pair.scaled_error * pair.scaled_error).max(0.0));
    }
    Ok(())
}

/// Measures one piece with every change; returns the model's own losses.
fn measure_piece(
    model: &Model,
    piece: &[u32],
    changes: &[(usize, Change)],
    layers: usize,
    found: &mut BTreeMap<(usize, Change), Option<Difference>>,
    task: &dyn Task,
) -> Result<Vec<f64>> {
    // What enters each layer, (layers, n, d).
    let mut entering: Vec<Vec<f32>> = Vec::with_capacity(layers);
    let last = model.hidden(piece, &mut |view: LayerView<'_>| entering.push(view.residual_in.to_vec()))?;
    let base = model.losses_of(&last, piece)?;
    for &(target, change) in changes {
        let changed = match change {
            Change::Use(reference) => {
                model.with_mlp_map(|layer| if layer == target { reference } else { layer })?
            }
            Change::LeaveOut => model.without_mlps(&[target])?,
        };
        let start = entering[target].clone();
        let last = changed.hidden_from(target, start, &mut ())?;
        let losses = match changed.losses_of(&last, piece) {
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
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leading_tokens_are_taken_in_pieces() {
        let (a, b) = ([1u32; 300], [2u32; 10]);
        let lengths = |n| leading(&[&a, &b], n).iter().map(|s| s.len()).collect::<Vec<_>>();
        assert_eq!(lengths(305), [256, 44, 5]);
        assert_eq!(lengths(257), [256]);
        assert_eq!(lengths(1000), [256, 44, 10]);
    }

    #[test]
    fn rounds_cover_every_piece_once() {
        let tokens = [0u32; 20];
        for count in 0..20 {
            let pieces: Vec<&[u32]> = tokens.chunks(2).cycle().take(count).collect();
            let found = rounds(&pieces, true);
            assert_eq!(found.iter().map(|r| r.len()).sum::<usize>(), count);
            assert_eq!(found.len(), if count < 4 { 1 } else { 3 });
            assert!(rounds(&pieces, false).len() == 1);
        }
    }

    #[test]
    fn the_better_half_is_kept_of_each_kind() {
        let changes: Vec<(usize, Change)> =
            (0..5).flat_map(|t| [(t, Change::Use(t + 1)), (t, Change::LeaveOut)]).collect();
        let kept =
            better_half(&changes, |c| if c.1 == Change::LeaveOut { c.0 as f64 } else { -(c.0 as f64) });
        let uses: Vec<usize> = kept.iter().filter(|c| c.1 != Change::LeaveOut).map(|c| c.0).collect();
        let drops: Vec<usize> = kept.iter().filter(|c| c.1 == Change::LeaveOut).map(|c| c.0).collect();
        assert_eq!((uses, drops), (vec![2, 3, 4], vec![0, 1, 2]));
    }

    #[test]
    fn the_standard_error_is_that_of_a_mean() {
        let mut d = Difference::default();
        d.add(&[0.0; 4], &[1.0, 2.0, 3.0, 4.0]);
        // Sample standard deviation 1.2910, divided by the root of 4.
        assert!((d.mean() - 2.5).abs() < 1e-12 && (d.stderr().unwrap() - 0.645_497).abs() < 1e-6);
    }
}
