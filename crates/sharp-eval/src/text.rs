//! How well models predict a text, and how far each is from the first.

use serde::{Deserialize, Serialize};
use sharp_data::{Encode, windows};
use sharp_infer::{Model, Segment};
use sharp_model::tokenizer::Tokenizer;
use sharp_progress::Progress;
use sharp_quant::{Isa, float};

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
    /// Standard error of that mean, taking tokens as independent.
    pub loss_stderr: f64,
    /// `exp(mean_loss)`.
    pub perplexity: f64,
    /// Mean of the model's loss less the first model's, in nats; 0 for the first.
    pub delta_loss: f64,
    /// Standard error of that mean. The difference is taken token by token, so it is far smaller than that
    /// of the losses.
    pub delta_stderr: f64,
    /// Mean Kullback-Leibler divergence from the first model's next-token distribution to this one's, in
    /// nats; 0 for the first.
    pub kl: f64,
    /// Standard error of that mean.
    pub kl_stderr: f64,
    /// Fraction of tokens where both models think the same token most likely; 1 for the first.
    pub top1_agreement: f64,
}

#[derive(Default)]
struct Sums {
    loss: Mean,
    delta: Mean,
    kl: Mean,
    agreed: u64,
}

impl Sums {
    fn add(&mut self, loss: f64, first_loss: f64, kl: f64, agreed: bool) {
        self.loss.add(loss);
        self.delta.add(loss - first_loss);
        self.kl.add(kl);
        self.agreed += u64::from(agreed);
    }

    fn score(&self) -> TextScore {
        let n = self.loss.count();
        TextScore {
            tokens: n,
            mean_loss: self.loss.mean(),
            loss_stderr: self.loss.stderr(),
            perplexity: self.loss.mean().exp(),
            delta_loss: self.delta.mean(),
            delta_stderr: self.delta.stderr(),
            kl: self.kl.mean(),
            kl_stderr: self.kl.stderr(),
            top1_agreement: if n == 0 { 0.0 } else { self.agreed as f64 / n as f64 },
        }
    }
}

/// Measures the perplexity of one model on a text.
///
/// # Errors
/// Those of [`compare`].
pub fn perplexity(model: &Model, tokens: &[u32], cut: Windows, progress: &dyn Progress) -> Result<TextScore> {
    compare(&[model], tokens, cut, progress)?
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
    tokens: &[u32],
    cut: Windows,
    progress: &dyn Progress,
) -> Result<Vec<TextScore>> {
    let group = Group::new(models)?;
    let cuts = windows(tokens.len(), cut.window, cut.stride)?;
    if cuts.is_empty() {
        return Err(Error::argument(format!("a text of {} tokens has nothing to predict", tokens.len())));
    }
    let mut sums: Vec<Sums> = models.iter().map(|_| Sums::default()).collect();
    let scored: usize = cuts.iter().map(|w| w.scored.len()).sum();
    let task = progress.task("perplexity", (scored * models.len()) as u64, "tokens");
    for cut in &cuts {
        let ids = &tokens[cut.tokens.clone()];
        let targets = &tokens[cut.scored.clone()];
        let hidden = group.run(ids, &[Segment { at: 0, tokens: ids.len() }])?;
        // Token t is predicted by the row of t - 1.
        let first = cut.scored.start.saturating_sub(cut.tokens.start + 1);
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
    Ok(sums.iter().map(Sums::score).collect())
}

/// The first model's distribution over the token after one row.
struct Said<'a> {
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
    sums: &mut [Sums],
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
        first_sums.add(loss, loss, 0.0, true);
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
            let said = Said { logits, weights, total, lse, loss, best };
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
fn score(isa: Isa, said: &Said<'_>, row: &[f32], target: u32, sums: &mut Sums) -> bool {
    let lse = float::log_sum_exp(isa, row);
    let loss = lse - row.get(target as usize).copied().map_or(f64::NAN, f64::from);
    let kl = divergence(said, row, lse);
    if !(loss.is_finite() && kl.is_finite()) {
        return false;
    }
    sums.add(loss, said.loss, kl, best(row) == said.best);
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

/// Tokenises a text, the first `limit` of them, with the begin token if the tokenizer puts one. Of a long
/// text only as much is tokenised as is needed.
///
/// # Errors
/// [`Error::Data`] and [`Error::Model`] if the tokenizer refuses the text.
pub fn text_tokens(tokenizer: &Tokenizer, text: &str, limit: Option<usize>) -> Result<Vec<u32>> {
    let mut tokens = begin_tokens(tokenizer)?;
    let limit = limit.unwrap_or(usize::MAX);
    let mut bytes = limit.saturating_mul(8).max(256);
    loop {
        // Cut after a line, well behind the last token that is wanted, so that the cut shows in none of them.
        let mut end = bytes.min(text.len());
        while !text.is_char_boundary(end) {
            end += 1;
        }
        let end = text.get(end..).and_then(|rest| rest.find('\n')).map_or(text.len(), |n| end + n + 1);
        let ids = tokenizer.tokens(text.get(..end).unwrap_or(text))?;
        if end == text.len() || tokens.len() + ids.len() > limit.saturating_add(16) {
            tokens.extend(ids);
            tokens.truncate(limit);
            return Ok(tokens);
        }
        bytes = bytes.saturating_mul(2);
    }
}

/// Returns what the tokenizer puts before every text by habit, often nothing.
pub(crate) fn begin_tokens(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode("", true)?;
    // A tokenizer that ends texts by habit too would end the empty one.
    ids.retain(|&id| Some(id) == tokenizer.bos_id());
    Ok(ids)
}
