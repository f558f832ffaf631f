//! What the network side asks of the engine, and what it hears back.

use std::sync::Arc;
use std::time::Instant;

use sharp_infer::{Finish, SamplerOptions};
use tokio::sync::mpsc::UnboundedSender;

use crate::memory::Reservation;

/// One sequence to be written.
#[derive(Debug)]
pub(crate) struct Job {
    /// Its number among the choices of its request.
    pub(crate) choice: usize,
    /// At least one token, all in the vocabulary.
    pub(crate) prompt: Arc<[u32]>,
    /// With the prompt no more than the context.
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Arc<[String]>,
    pub(crate) ignore_eos: bool,
    /// How many of the likeliest tokens to tell beside each token; `None`: no log probabilities.
    pub(crate) logprobs: Option<usize>,
    /// Whether log probabilities of the prompt's tokens are wanted too.
    pub(crate) score_prompt: bool,
    /// What its session takes; given back before the client hears of the end.
    pub(crate) memory: Option<Reservation>,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
    /// Unbounded, so that a client that reads slowly never holds up the others; what it can hold is bounded
    /// by `max_tokens`.
    pub(crate) events: UnboundedSender<(usize, Event)>,
}

impl Job {
    /// Tells the client; one that went away does not matter.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.events.send((self.choice, event));
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }
}

/// How tokens are chosen.
#[derive(Debug, Clone)]
pub(crate) struct Sampling {
    pub(crate) options: SamplerOptions,
    /// Taken from the logit of every token that was generated at least once.
    pub(crate) presence_penalty: f32,
    /// Taken from a token's logit for every time it was generated.
    pub(crate) frequency_penalty: f32,
    /// Added to logits.
    pub(crate) bias: Arc<[(u32, f32)]>,
}

/// A token with its log probability.
#[derive(Debug, Clone)]
pub(crate) struct Scored {
    pub(crate) token: u32,
    /// `None` for a prompt's first token, which nothing predicts.
    pub(crate) logprob: Option<f64>,
    /// The likeliest tokens there, likeliest first.
    pub(crate) top: Vec<(u32, f64)>,
}

/// What happens to a sequence.
#[derive(Debug)]
pub(crate) enum Event {
    /// The prompt has been taken in, `cached` tokens of it from an earlier sequence.
    Prompt { cached: usize, scores: Vec<Scored> },
    /// A token was chosen; `text` is what became certain by it.
    Token { text: String, scored: Option<Scored>, ends: bool },
    /// The end, with the text that was held back.
    Done { finish: Finish, text: String, tokens: usize },
    /// Nothing more will come.
    Failed(Failure),
}

/// Why a sequence was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It took longer than a request may.
    Timeout,
    /// The server is stopping.
    Stopping,
    /// The system had no memory for it after all.
    Memory,
    /// The engine could not go on.
    Engine(String),
}
