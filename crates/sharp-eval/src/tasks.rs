//! Multiple-choice questions.
//!
//! An answer's score is the log likelihood of its continuation after its context. All the answers to a
//! question, and as many questions as fit a batch, go through the model in one pass: what the answers begin
//! with in common is a segment of its own, run once, and each answer continues it. Models that share their
//! first layers with the first one share that work too.

use sharp_data::{Question, Task, begin_tokens, encode_pair};
use sharp_infer::{Model, Segment};
use sharp_model::tokenizer::Tokenizer;
use sharp_progress::Progress;
use sharp_quant::float;
use sharp_schema::evaluation::TaskScore;

use crate::error::{Error, Result};
use crate::shared::Group;
use crate::stats::Mean;

/// Tokens of questions that go through the model together.
const BATCH_TOKENS: usize = 1024;

/// One answer as tokens.
struct Answer {
    /// What goes into the model: context and continuation without its last token.
    input: Vec<u32>,
    /// What is scored; `targets[i]` is predicted by the row of input `first + i`.
    targets: Vec<u32>,
    first: usize,
}

/// A question laid out for a pass.
struct Laid {
    tokens: Vec<u32>,
    segments: Vec<Segment>,
    /// For each answer the rows (of this question's tokens) and the tokens they should predict.
    wanted: Vec<Vec<(usize, u32)>>,
}

fn answers(question: &Question, tokenizer: &Tokenizer, begin: &[u32], longest: usize) -> Result<Vec<Answer>> {
    let mut all = Vec::with_capacity(question.choices.len());
    for choice in &question.choices {
        let (context, targets) = encode_pair(tokenizer, &choice.context, &choice.continuation)?;
        let mut whole = begin.to_vec();
        whole.extend(&context);
        if whole.is_empty() {
            // Nothing to predict the first token from: as lm-evaluation-harness, an end token stands before
            // it.
            let token = tokenizer.bos_id().or_else(|| tokenizer.eos_ids().first().copied());
            whole.push(token.ok_or_else(|| {
                Error::argument(format!(
                    "question {}: its context is empty, and the model has no begin token",
                    question.id
                ))
            })?);
        }
        whole.extend(&targets);
        let Some((_, input)) = whole.split_last() else { continue };
        // Too long a context loses its beginning.
        let input = &input[input.len().saturating_sub(longest)..];
        let mut targets = targets;
        if targets.len() > input.len() {
            targets.drain(..targets.len() - input.len());
        }
        // The last row of the input predicts the last target.
        all.push(Answer { input: input.to_vec(), first: input.len() - targets.len(), targets });
    }
    Ok(all)
}

fn lay(answers: &[Answer]) -> Laid {
    let Some(head) = answers.first() else {
        return Laid { tokens: Vec::new(), segments: Vec::new(), wanted: Vec::new() };
    };
    let common = answers.iter().skip(1).fold(head.input.len(), |n, a| {
        head.input.iter().zip(&a.input).take(n).take_while(|(x, y)| x == y).count()
    });
    let mut tokens: Vec<u32> = head.input.iter().take(common).copied().collect();
    let mut segments = Vec::new();
    if common > 0 {
        segments.push(Segment { at: 0, tokens: common });
    }
    let mut wanted = Vec::with_capacity(answers.len());
    for answer in answers {
        let begin = tokens.len();
        let rest = &answer.input[common..];
        if !rest.is_empty() {
            tokens.extend(rest);
            segments.push(Segment { at: common, tokens: rest.len() });
        }
        let row = |at: usize| if at < common { at } else { begin + at - common };
        wanted.push(answer.targets.iter().enumerate().map(|(i, &t)| (row(answer.first + i), t)).collect());
    }
    Laid { tokens, segments, wanted }
}

/// Measures every model's accuracy on a task. The models must share the tokenizer.
///
/// # Errors
/// [`Error::Argument`] if there are no models; [`Error::Vocabulary`] if they do not share one;
/// [`Error::NotFinite`]; [`Error::Data`], [`Error::Infer`].
pub fn score_task(
    models: &[&Model],
    tokenizer: &Tokenizer,
    task: &Task,
    progress: &dyn Progress,
) -> Result<Vec<TaskScore>> {
    let group = Group::new(models)?;
    let begin = begin_tokens(tokenizer)?;
    let longest = models.iter().map(|m| m.config().max_position_embeddings).min().unwrap_or(0).max(2);
    let mut scores: Vec<Vec<Vec<f64>>> =
        models.iter().map(|_| Vec::with_capacity(task.questions.len())).collect();
    let bar = progress.task(&task.name, task.questions.len() as u64, "questions");
    let mut batch: Vec<Laid> = Vec::new();
    let mut size = 0;
    for question in &task.questions {
        let laid = lay(&answers(question, tokenizer, &begin, longest)?);
        if size > 0 && size + laid.tokens.len() > BATCH_TOKENS {
            run(&group, &batch, &mut scores)?;
            bar.advance(batch.len() as u64);
            batch.clear();
            size = 0;
        }
        size += laid.tokens.len();
        batch.push(laid);
    }
    run(&group, &batch, &mut scores)?;
    bar.advance(batch.len() as u64);
    let first = scores[0].clone();
    Ok(scores.into_iter().map(|scores| summary(task, scores, &first)).collect())
}

fn run(group: &Group<'_>, batch: &[Laid], scores: &mut [Vec<Vec<f64>>]) -> Result<()> {
    let tokens: Vec<u32> = batch.iter().flat_map(|l| l.tokens.iter().copied()).collect();
    let segments: Vec<Segment> = batch.iter().flat_map(|l| l.segments.iter().copied()).collect();
    // Row -> the (question, answer, token) it is wanted for: rows at the end of a context serve all answers.
    let mut wanted: Vec<(usize, usize, usize, u32)> = Vec::new();
    let mut begin = 0;
    for (q, laid) in batch.iter().enumerate() {
        for (a, answer) in laid.wanted.iter().enumerate() {
            wanted.extend(answer.iter().map(|&(row, token)| (begin + row, q, a, token)));
        }
        begin += laid.tokens.len();
    }
    wanted.sort_by_key(|w| w.0);
    let mut rows: Vec<usize> = wanted.iter().map(|w| w.0).collect();
    rows.dedup();
    let hidden = group.run(&tokens, &segments)?;
    for (number, ((model, hidden), scores)) in group.models().iter().zip(&hidden).zip(scores).enumerate() {
        let d = model.config().hidden_size;
        let isa = model.team().isa();
        let mut heads = Vec::with_capacity(rows.len() * d);
        for &row in &rows {
            heads.extend_from_slice(&hidden[row * d..(row + 1) * d]);
        }
        let mut likelihoods: Vec<Vec<f64>> = batch.iter().map(|l| vec![0.0; l.wanted.len()]).collect();
        let mut left = wanted.as_slice();
        let mut bad = None;
        model.each_logits(&heads, &mut |i, logits| {
            let lse = float::log_sum_exp(isa, logits);
            let row = rows[i];
            while let Some((&(at, q, a, token), rest)) = left.split_first() {
                if at != row {
                    break;
                }
                left = rest;
                let value = logits.get(token as usize).copied().map_or(f64::NAN, f64::from) - lse;
                if !value.is_finite() {
                    bad.get_or_insert(q);
                }
                likelihoods[q][a] += value;
            }
        })?;
        if let Some(q) = bad {
            let what = format!("question {} of the task", scores.len() + q);
            return Err(Error::NotFinite { model: number, what });
        }
        scores.append(&mut likelihoods);
    }
    Ok(())
}

/// Returns the first of the largest.
fn pick(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut top: Option<(usize, f64)> = None;
    for (i, v) in values.enumerate() {
        if top.is_none_or(|(_, t)| v > t) {
            top = Some((i, v));
        }
    }
    top.map(|(i, _)| i)
}

fn summary(task: &Task, scores: Vec<Vec<f64>>, first: &[Vec<f64>]) -> TaskScore {
    let (mut acc, mut norm, mut bytes, mut same) =
        (Mean::default(), Mean::default(), Mean::default(), Mean::default());
    let mark = |is: bool| f64::from(u8::from(is));
    for ((question, scores), first) in task.questions.iter().zip(&scores).zip(first) {
        let gold = Some(question.gold);
        let by = |length: fn(&sharp_data::Choice) -> usize| {
            pick(scores.iter().zip(&question.choices).map(|(s, c)| s / length(c) as f64))
        };
        let plain = pick(scores.iter().copied());
        acc.add(mark(plain == gold));
        norm.add(mark(by(sharp_data::Choice::chars) == gold));
        bytes.add(mark(by(sharp_data::Choice::bytes) == gold));
        same.add(mark(plain == pick(first.iter().copied())));
    }
    TaskScore {
        acc: acc.mean(),
        acc_stderr: acc.stderr(),
        acc_norm: norm.mean(),
        acc_norm_stderr: norm.stderr(),
        acc_bytes: bytes.mean(),
        acc_bytes_stderr: bytes.stderr(),
        n: acc.count(),
        same_answer: same.mean(),
        log_likelihoods: scores,
    }
}
