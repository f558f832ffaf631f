//! How well models predict a text, and how far each is from the first.

use serde::{Deserialize, Serialize};
use sharp_data::{Text, Window};
use sharp_infer::{Model, Segment};
use sharp_progress::Progress;
use sharp_quant::{Isa, float};
use sharp_schema::evaluation::{Unit, Units};

use crate::error::{Error, Result};
use crate::shared::Group;
use crate::stats::Mean;

/// Tokens whose logits are held at once, of the first model and one other (25 MB for a vocabulary of 49,152).
const ROWS: usize = 64;

/// How a text is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windows {
    /// Tokens the model sees at once.
    pub window: usize,
    /// How far the window moves; see [`sharp_data::windows`].
    pub stride: usize,
}

impl Default for Windows {
    fn default() -> Self {
        Windows { window: 512, stride: 512 }
    }
}

/// What was measured of one model on one text. All means are over the scored tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TextScore {
    /// Tokens that were scored.
    pub tokens: usize,
    /// Mean negative log likelihood of a token, in nats.
    pub mean_loss: f64,
    /// `exp(mean_loss)`.
    pub perplexity: f64,
    /// Mean of the model's loss less the first model's, in nats; 0 for the first.
    pub delta_loss: f64,
    /// Mean Kullback-Leibler divergence from the first model's next-token distribution to this one's, in
    /// nats; 0 for the first.
    pub kl: f64,
    /// Fraction of tokens where both models think the same token most likely; 1 for the first.
    pub top1_agreement: f64,
}

/// What was measured of several models on one text: all of it, and by unit of the bootstrap.
pub(crate) struct Measured {
    /// A score for each model.
    pub(crate) scores: Vec<TextScore>,
    /// What the units are.
    pub(crate) units: Units,
    /// Tokens of each unit.
    pub(crate) tokens: Vec<usize>,
    /// For each model the sums of its loss in each unit.
    pub(crate) losses: Vec<Vec<f64>>,
    /// For each model the sums of its divergence from the first in each unit.
    pub(crate) divergences: Vec<Vec<f64>>,
}

/// One model's sums over the tokens scored so far.
struct Sums<'a> {
    loss: Mean,
    delta: Mean,
    kl: Mean,
    agreed: u64,
    /// The unit that each token of the text belongs to.
    unit_of: &'a [usize],
    unit_losses: Vec<f64>,
    unit_divergences: Vec<f64>,
}

impl<'a> Sums<'a> {
    fn new(unit_of: &'a [usize], units: usize) -> Self {
        Self {
            loss: Mean::default(),
            delta: Mean::default(),
            kl: Mean::default(),
            agreed: 0,
            unit_of,
            unit_losses: vec![0.0; units],
            unit_divergences: vec![0.0; units],
        }
    }

    fn add(&mut self, position: usize, loss: f64, first_loss: f64, kl: f64, agreed: bool) {
        self.loss.add(loss);
        self.delta.add(loss - first_loss);
        self.kl.add(kl);
        self.agreed += u64::from(agreed);
        let unit = self.unit_of[position];
        self.unit_losses[unit] += loss;
        self.unit_divergences[unit] += kl;
    }

    fn score(&self) -> TextScore {
        let n = self.loss.count();
        TextScore {
            tokens: n,
            mean_loss: self.loss.mean(),
            perplexity: self.loss.mean().exp(),
            delta_loss: self.delta.mean(),
            kl: self.kl.mean(),
            top1_agreement: if n == 0 { 0.0 } else { self.agreed as f64 / n as f64 },
        }
    }
}

/// Returns what a text's units are and the unit of each token: its document, or its window in a text that is
/// one document. Units are numbered without gaps among the scored tokens.
fn units(tokens: usize, documents: &[usize], cuts: &[Window]) -> (Units, Vec<usize>) {
    let number = |key: &dyn Fn(usize, usize) -> usize| {
        let (mut unit_of, mut seen) = (vec![0; tokens], Vec::new());
        for (window, cut) in cuts.iter().enumerate() {
            for position in cut.scored.clone() {
                let key = key(window, position);
                if seen.last() != Some(&key) {
                    seen.push(key);
                }
                unit_of[position] = seen.len() - 1;
            }
        }
        (seen.len(), unit_of)
    };
    // Windows go forward, so the tokens of a document follow one another.
    let (count, unit_of) = number(&|_, position| documents.partition_point(|&start| start <= position));
    if count > 1 {
        return (Units { unit: Unit::Document, count }, unit_of);
    }
    let (count, unit_of) = number(&|window, _| window);
    (Units { unit: Unit::Window, count }, unit_of)
}

/// Measures the perplexity of one model on a text.
///
/// # Errors
/// Those of [`compare`].
pub fn perplexity(model: &Model, text: &Text, cut: Windows, progress: &dyn Progress) -> Result<TextScore> {
    compare(&[model], text, cut, progress)?
        .pop()
        .ok_or_else(|| Error::argument("there is no model to evaluate"))
}

/// Measures every model's perplexity on a text, and its distance from the first one, in one pass over the
/// text: layers shared with the first model are run once a window, and its distribution is worked out once a
/// token.
///
/// # Errors
/// [`Error::Argument`] if there are no models, the windows make no sense, or the text has fewer than 2
/// tokens; [`Error::Vocabulary`] if the models do not share one; [`Error::NotFinite`]; [`Error::Infer`].
pub fn compare(
    models: &[&Model],
    text: &Text,
    cut: Windows,
    progress: &dyn Progress,
) -> Result<Vec<TextScore>> {
    Ok(compare_units(models, text, cut, progress)?.scores)
}

/// Measures what [`compare`] does, by document too.
pub(crate) fn compare_units(
    models: &[&Model],
    text: &Text,
    cut: Windows,
    progress: &dyn Progress,
) -> Result<Measured> {
    let group = Group::new(models)?;
    let Text { begin, tokens, .. } = text;
    let cuts = text.windows(cut.window, cut.stride)?;
    if cuts.is_empty() {
        return Err(Error::argument(format!("a text of {} tokens has nothing to predict", tokens.len())));
    }
    let (units, unit_of) = units(tokens.len(), &text.documents, &cuts);
    let mut sums: Vec<Sums> = models.iter().map(|_| Sums::new(&unit_of, units.count)).collect();
    let scored: usize = cuts.iter().map(|w| w.scored.len()).sum();
    let task = progress.task("perplexity", (scored * models.len()) as u64, "tokens");
    for cut in &cuts {
        let ids = [&begin[..], &tokens[cut.tokens.clone()]].concat();
        let targets = &tokens[cut.scored.clone()];
        let hidden = group.run(&ids, &[Segment { at: 0, tokens: ids.len() }])?;
        // Token t is predicted by the row of t - 1.
        let first = begin.len() + cut.scored.start - cut.tokens.start - 1;
        for from in (0..targets.len()).step_by(ROWS) {
            let to = targets.len().min(from + ROWS);
            let rows: Vec<&[f32]> = models
                .iter()
                .zip(&hidden)
                .map(|(m, h)| {
                    let d = m.config().hidden_size;
                    &h[(first + from) * d..(first + to) * d]
                })
                .collect();
            let targets = &targets[from..to];
            measure(models, &rows, targets, cut.scored.start + from, &mut sums)?;
            task.advance((targets.len() * models.len()) as u64);
        }
        if let Some(first) = sums.first() {
            task.note(&format!("perplexity {:.3}", first.loss.mean().exp()));
        }
    }
    let mut unit_tokens = vec![0; units.count];
    for position in cuts.iter().flat_map(|cut| cut.scored.clone()) {
        unit_tokens[unit_of[position]] += 1;
    }
    Ok(Measured {
        scores: sums.iter().map(Sums::score).collect(),
        units,
        tokens: unit_tokens,
        divergences: sums.iter_mut().map(|sums| std::mem::take(&mut sums.unit_divergences)).collect(),
        losses: sums.into_iter().map(|sums| sums.unit_losses).collect(),
    })
}

/// The first model's distribution over the token after one row.
struct Said<'a> {
    /// The place of that token in the text.
    position: usize,
    logits: &'a [f32],
    /// `exp(logits)` over `total`.
    weights: &'a [f32],
    total: f64,
    /// `ln sum exp` of the logits.
    lse: f64,
    loss: f64,
    best: usize,
}

/// Scores what each model makes of `targets` from its rows (n, d) before the head.
fn measure(
    models: &[&Model],
    rows: &[&[f32]],
    targets: &[u32],
    position: usize,
    sums: &mut [Sums<'_>],
) -> Result<()> {
    let (Some((first, rest)), Some((first_rows, rest_rows))) = (models.split_first(), rows.split_first())
    else {
        return Ok(());
    };
    let Some((first_sums, rest_sums)) = sums.split_first_mut() else { return Ok(()) };
    let isa = first.team().isa();
    let vocab = first.config().vocab_size;
    let logits = first.logits(first_rows)?;
    let mut weights = if rest.is_empty() { Vec::new() } else { logits.clone() };
    let mut weights_rows = weights.chunks_exact_mut(vocab);
    let mut heads = Vec::with_capacity(targets.len());
    for (i, (row, &target)) in logits.chunks_exact(vocab).zip(targets).enumerate() {
        let lse = float::log_sum_exp(isa, row);
        let loss = lse - row.get(target as usize).copied().map_or(f64::NAN, f64::from);
        if !loss.is_finite() {
            return Err(not_finite(0, position + i));
        }
        first_sums.add(position + i, loss, loss, 0.0, true);
        if let Some(weights) = weights_rows.next() {
            float::exp_sum(isa, weights, float::max(isa, row));
            heads.push((lse, loss, best(row), weights.iter().map(|&w| f64::from(w)).sum::<f64>()));
        }
    }
    for (number, ((model, rows), sums)) in rest.iter().zip(rest_rows).zip(rest_sums).enumerate() {
        let mut bad = None;
        model.each_logits(rows, &mut |i, row| {
            let range = i * vocab..(i + 1) * vocab;
            let (Some(&target), Some(&(lse, loss, best, total)), Some(logits), Some(weights)) =
                (targets.get(i), heads.get(i), logits.get(range.clone()), weights.get(range))
            else {
                return;
            };
            let said = Said { position: position + i, logits, weights, total, lse, loss, best };
            if !score(isa, &said, row, target, sums) {
                bad.get_or_insert(i);
            }
        })?;
        if let Some(i) = bad {
            return Err(not_finite(number + 1, position + i));
        }
    }
    Ok(())
}

/// Adds one token's figures; false if they are not finite.
fn score(isa: Isa, said: &Said<'_>, row: &[f32], target: u32, sums: &mut Sums<'_>) -> bool {
    let lse = float::log_sum_exp(isa, row);
    let loss = lse - row.get(target as usize).copied().map_or(f64::NAN, f64::from);
    let kl = divergence(said, row, lse);
    if !(loss.is_finite() && kl.is_finite()) {
        return false;
    }
    sums.add(said.position, loss, said.loss, kl, best(row) == said.best);
    true
}

fn not_finite(model: usize, position: usize) -> Error {
    Error::NotFinite { model, what: format!("token {position}") }
}

/// Computes `sum p (ln p - ln q)` in nats; never below 0. The sum is over p times the difference of the
/// logits, to which the normalisers are added after.
fn divergence(said: &Said<'_>, row: &[f32], lse: f64) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0f64; LANES];
    let (weights, weights_tail) = said.weights.as_chunks::<LANES>();
    let (logits, logits_tail) = said.logits.as_chunks::<LANES>();
    let (row, row_tail) = row.as_chunks::<LANES>();
    for ((w, p), q) in weights.iter().zip(logits).zip(row) {
        for (((sum, w), p), q) in sums.iter_mut().zip(w).zip(p).zip(q) {
            *sum += f64::from(*w) * f64::from(p - q);
        }
    }
    for ((w, p), q) in weights_tail.iter().zip(logits_tail).zip(row_tail) {
        if let Some(sum) = sums.first_mut() {
            *sum += f64::from(*w) * f64::from(p - q);
        }
    }
    let kl = sums.iter().sum::<f64>() / said.total - said.lse + lse;
    // Equal distributions may come out a rounding below 0; a NaN goes through.
    if kl < 0.0 { 0.0 } else { kl }
}

/// Returns the position of the largest value, the first of equals.
fn best(x: &[f32]) -> usize {
    let mut at = 0;
    let mut top = f32::NEG_INFINITY;
    for (i, &v) in x.iter().enumerate() {
        if v > top {
            (at, top) = (i, v);
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use sharp_data::windows;

    use super::*;

    #[test]
    fn a_token_belongs_to_its_document_in_whichever_window_it_is_scored() {
        let cuts = windows(10, 4, 3, 0).unwrap();
        // The first token of a text is predicted by nothing; the second document has no scored token.
        let (found, unit_of) = units(10, &[0, 4, 4, 8], &cuts);
        assert_eq!(found, Units { unit: Unit::Document, count: 3 });
        assert_eq!(unit_of[1..], [0, 0, 0, 1, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn a_text_of_one_document_is_resampled_by_windows() {
        let cuts = windows(10, 4, 3, 0).unwrap();
        for documents in [&[][..], &[0]] {
            let (found, unit_of) = units(10, documents, &cuts);
            assert_eq!(found, Units { unit: Unit::Window, count: 3 });
            assert_eq!(unit_of[1..], [0, 0, 0, 1, 1, 1, 2, 2, 2]);
        }
    }
}
