//! One sequence in the making.

use std::collections::HashMap;

use sharp_infer::{Finish, Sampler, Session, StopStrings};
use sharp_model::tokenizer::{DecodeStream, Tokenizer};
use sharp_quant::{Isa, float};

use crate::error::Result;
use crate::job::{Event, Failure, Job, Scored};

/// A job with its session and the state of its text.
pub(crate) struct Sequence<'t> {
    pub(crate) job: Job,
    pub(crate) session: Session,
    sampler: Sampler,
    stops: StopStrings,
    stream: Option<DecodeStream<'t>>,
    tokenizer: &'t Tokenizer,
    /// Tokens that end a text.
    ends: Vec<u32>,
    isa: Isa,
    /// Prompt tokens that came from an earlier sequence.
    cached: usize,
    prompt_scores: Vec<Scored>,
    /// How often each token was generated, where penalties ask.
    counts: HashMap<u32, u32>,
    generated: usize,
    /// The token to take in next.
    next: u32,
}

/// Returns the log probability of `token` and the `most` likeliest tokens.
fn score(isa: Isa, logits: &[f32], token: u32, most: usize) -> Scored {
    let sum = float::log_sum_exp(isa, logits);
    let at = |logit: f32| f64::from(logit) - sum;
    let mut top: Vec<(u32, f32)> = Vec::new();
    if most > 0 {
        top.extend(logits.iter().enumerate().map(|(i, &l)| (i as u32, l)));
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if most < top.len() {
            top.select_nth_unstable_by(most - 1, order);
            top.truncate(most);
        }
        top.sort_unstable_by(order);
    }
    let logprob = logits.get(token as usize).map(|&l| at(l));
    Scored { token, logprob, top: top.into_iter().map(|(t, l)| (t, at(l))).collect() }
}

impl<'t> Sequence<'t> {
    /// Begins a sequence; `session` holds a beginning of the job's prompt.
    pub(crate) fn new(job: Job, session: Session, tokenizer: &'t Tokenizer) -> Result<Self> {
        let mut sampler = Sampler::new(job.sampling.options.clone())?;
        let model = session.model();
        sampler.reserve(model.config().vocab_size);
        let ends = if job.ignore_eos {
            Vec::new()
        } else {
            model.config().eos_token_ids.iter().chain(tokenizer.end_ids()).copied().collect()
        };
        let mut prompt_scores = Vec::new();
        if let Some(&first) = job.prompt.first().filter(|_| job.score_prompt) {
            // Nothing predicts the first token.
            prompt_scores.push(Scored { token: first, logprob: None, top: Vec::new() });
        }
        Ok(Self {
            sampler,
            stops: StopStrings::new(job.stop.iter().cloned()),
            stream: Some(tokenizer.stream(&job.prompt, true)),
            tokenizer,
            ends,
            isa: model.team().isa(),
            cached: session.len(),
            prompt_scores,
            counts: HashMap::new(),
            generated: 0,
            next: 0,
            job,
            session,
        })
    }

    /// Counts the prompt tokens still to be taken in.
    pub(crate) fn left(&self) -> usize {
        self.job.prompt.len().saturating_sub(self.session.len())
    }

    /// Counts the prompt tokens that came from an earlier sequence.
    pub(crate) fn cached(&self) -> usize {
        self.cached
    }

    /// Counts the tokens generated so far.
    pub(crate) fn generated(&self) -> usize {
        self.generated
    }

    /// Returns the token to take in next.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// Takes in up to `most` tokens of the prompt and gives how many they were.
    pub(crate) fn prefill(&mut self, most: usize) -> Result<usize> {
        let at = self.session.len();
        let prompt = self.job.prompt.clone();
        let end = prompt.len().min(at.saturating_add(most));
        let piece = &prompt[at..end];
        if self.job.score_prompt {
            let (isa, most) = (self.isa, self.job.logprobs.unwrap_or(0));
            let scores = &mut self.prompt_scores;
            self.session.prefill_each(piece, &mut |i, logits| {
                if let Some(&token) = prompt.get(at + i + 1) {
                    scores.push(score(isa, logits, token, most));
                }
            })?;
        } else {
            self.session.prefill(piece)?;
        }
        if end == prompt.len() {
            let scores = std::mem::take(&mut self.prompt_scores);
            self.job.tell(Event::Prompt { cached: self.cached, scores });
        }
        Ok(piece.len())
    }

    /// Chooses the next token from the session's logits, tells the client, and says whether the sequence is
    /// at its end.
    pub(crate) fn step(&mut self, scratch: &mut Vec<f32>) -> Result<bool> {
        if self.job.max_tokens == 0 {
            return self.end(Finish::Length);
        }
        scratch.clear();
        scratch.extend_from_slice(self.session.logits());
        let sampling = &self.job.sampling;
        for &(token, bias) in sampling.bias.iter() {
            if let Some(logit) = scratch.get_mut(token as usize) {
                *logit += bias;
            }
        }
        for (&token, &count) in &self.counts {
            if let Some(logit) = scratch.get_mut(token as usize) {
                *logit -= sampling.presence_penalty + sampling.frequency_penalty * count as f32;
            }
        }
        let Some(token) = self.sampler.sample(scratch, self.session.tokens()) else {
            let position = self.session.len();
            return Err(sharp_infer::Error::NotFinite { position }.into());
        };
        if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
        self.generated += 1;
        self.next = token;
        // The model's own probability, before penalties and temperature.
        let scored = self.job.logprobs.map(|most| score(self.isa, self.session.logits(), token, most));
        if self.ends.contains(&token) {
            self.job.tell(Event::Token { text: String::new(), scored, ends: true });
            return self.end(Finish::Eos);
        }
        let piece = self.stream.as_mut().map(|s| s.push(token)).transpose()?.unwrap_or_default();
        let (text, stopped) = self.stops.push_token(&piece, self.tokenizer.special_text(token));
        self.job.tell(Event::Token { text, scored, ends: false });
        if stopped {
            self.done(Finish::Stop, String::new());
            return Ok(true);
        }
        if self.generated >= self.job.max_tokens {
            return self.end(Finish::Length);
        }
        Ok(false)
    }

    /// Gives out what was held back; an unfinished character becomes visible as such.
    fn end(&mut self, finish: Finish) -> Result<bool> {
        let rest = self.stream.take().map(DecodeStream::finish).transpose()?.unwrap_or_default();
        let (mut text, stopped) = self.stops.push(&rest);
        if !stopped {
            text.push_str(&self.stops.finish());
        }
        self.done(if stopped { Finish::Stop } else { finish }, text);
        Ok(true)
    }

    fn done(&mut self, finish: Finish, text: String) {
        self.job.memory = None;
        self.job.tell(Event::Done { finish, text, tokens: self.generated });
    }

    /// Gives the sequence up.
    pub(crate) fn fail(&self, failure: Failure) {
        self.job.tell(Event::Failed(failure));
    }
}
