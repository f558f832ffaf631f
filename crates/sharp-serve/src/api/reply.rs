//! Events to answers: whole, or as a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use rand::RngExt;
use serde_json::{Map, Value, json};
use sharp_infer::Finish;

use super::error::ApiError;
use super::parameters::Parameters;
use super::texts::Characters;
use super::{Events, Site, now};
use crate::job::{Event, Scored};
use crate::memory::Reservation;

/// Which of the two endpoints answers.
pub(crate) enum Kind {
    /// With the texts to be repeated before each choice's own.
    Completion {
        echoes: Vec<Arc<str>>,
    },
    Chat,
}

/// An answer in the making.
pub(crate) struct Reply {
    site: Arc<Site>,
    kind: Kind,
    id: String,
    created: u64,
    logprobs: bool,
    include_usage: bool,
    choices: Vec<Choice>,
    prompt_tokens: usize,
    /// For the answer, until it is sent.
    _memory: Reservation,
}

/// What an answer holds in memory, at most.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Size {
    /// Bytes of text from the request.
    pub(crate) text: usize,
    /// Tokens of the answer.
    pub(crate) tokens: usize,
    /// Tokens that have log probabilities, and the entries of each.
    pub(crate) scored: usize,
    pub(crate) entries: usize,
}

impl Size {
    /// Bytes that a token takes on its way to the client: its event, its text, and its part of the answer.
    const TOKEN: usize = 256;
    /// Bytes of a log probability as a JSON value and as text.
    const ENTRY: usize = 1024;

    pub(crate) fn bytes(self) -> u64 {
        let entries = self.scored.saturating_mul(self.entries).saturating_mul(Self::ENTRY);
        let tokens = self.tokens.saturating_mul(Self::TOKEN);
        entries.saturating_add(tokens).saturating_add(self.text.saturating_mul(4)) as u64
    }
}

/// One choice so far.
#[derive(Default)]
struct Choice {
    text: String,
    scored: Vec<Scored>,
    /// Characters before the next token.
    offset: Characters,
    begun: bool,
    finish: Option<Finish>,
    tokens: usize,
    cached: usize,
}

/// What one event adds to a choice.
struct Piece {
    choice: usize,
    text: String,
    scored: Vec<Scored>,
    finish: Option<Finish>,
}

/// JSON has no infinities; this is what others write in their place.
const LEAST: f64 = -9999.0;

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        _ => "stop",
    }
}

impl Reply {
    pub(crate) fn new(
        site: &Arc<Site>,
        kind: Kind,
        choices: usize,
        prompt_tokens: usize,
        parameters: &Parameters,
        memory: Reservation,
    ) -> Self {
        let prefix = if matches!(kind, Kind::Chat) { "chatcmpl" } else { "cmpl" };
        Self {
            site: site.clone(),
            kind,
            id: format!("{prefix}-{:032x}", rand::rng().random::<u128>()),
            created: now(),
            logprobs: false,
            include_usage: parameters.include_usage,
            choices: (0..choices).map(|_| Choice::default()).collect(),
            prompt_tokens,
            _memory: memory,
        }
    }

    pub(crate) fn with_logprobs(mut self, logprobs: bool) -> Self {
        self.logprobs = logprobs;
        self
    }

    /// Answers as the events come in, or once they are all there.
    pub(crate) async fn answer(self, events: Events, stream: bool) -> Result<Response, ApiError> {
        if stream { Ok(self.stream(events)) } else { self.whole(events).await }
    }

    fn is_over(&self) -> bool {
        self.choices.iter().all(|c| c.finish.is_some())
    }

    /// Returns what `event` adds.
    fn piece(&mut self, choice: usize, event: Event) -> Result<Piece, ApiError> {
        let mut piece = Piece { choice, text: String::new(), scored: Vec::new(), finish: None };
        let chat = matches!(self.kind, Kind::Chat);
        let Some(state) = self.choices.get_mut(choice) else { return Err(ApiError::no_engine()) };
        match event {
            Event::Prompt { cached, scores } => {
                state.cached = cached;
                piece.scored = scores;
                if let Kind::Completion { echoes } = &self.kind {
                    piece.text = echoes.get(choice).map_or_else(String::new, |text| text.to_string());
                }
            }
            Event::Token { text, scored, ends } => {
                piece.text = text;
                // In a conversation the end of a turn is no part of what was said.
                piece.scored.extend(scored.filter(|_| !(chat && ends)));
            }
            Event::Done { finish, text, tokens } => {
                piece.text = text;
                piece.finish = Some(finish);
                state.finish = Some(finish);
                state.tokens = tokens;
            }
            Event::Failed(failure) => return Err(ApiError::failure(failure)),
        }
        Ok(piece)
    }

    /// Writes log probabilities as the endpoint writes them; moves the choice's offset on.
    fn logprobs(&mut self, choice: usize, scored: &[Scored]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let texts = &self.site.texts;
        if matches!(self.kind, Kind::Chat) {
            let one = |token: u32, logprob: f64| json!({"token": texts.text(token), "logprob": logprob.max(LEAST), "bytes": texts.bytes(token)});
            let content: Vec<Value> = scored
                .iter()
                .map(|s| {
                    let mut entry = one(s.token, s.logprob.unwrap_or(LEAST));
                    let top = s.top.iter().map(|&(t, l)| one(t, l)).collect();
                    if let Some(entry) = entry.as_object_mut() {
                        entry.insert("top_logprobs".into(), Value::Array(top));
                    }
                    entry
                })
                .collect();
            return json!({ "content": content });
        }
        let mut offset = self.choices.get(choice).map_or_else(Characters::default, |c| c.offset);
        let (mut tokens, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for s in scored {
            let text = texts.text(s.token);
            offsets.push(offset.complete());
            offset.push(&texts.bytes(s.token));
            values.push(s.logprob.map(|l| l.max(LEAST)));
            tops.push(s.logprob.map(|_| {
                s.top.iter().map(|&(t, l)| (texts.text(t), json!(l.max(LEAST)))).collect::<Map<_, _>>()
            }));
            tokens.push(text);
        }
        if let Some(state) = self.choices.get_mut(choice) {
            state.offset = offset;
        }
        json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets})
    }

    fn usage(&self) -> Value {
        let completion: usize = self.choices.iter().map(|c| c.tokens).sum();
        let cached = self.choices.first().map_or(0, |c| c.cached);
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        })
    }

    fn frame(&self, object: &str, choices: Vec<Value>) -> Map<String, Value> {
        let mut all = Map::new();
        all.insert("id".into(), json!(self.id));
        all.insert("object".into(), json!(object));
        all.insert("created".into(), json!(self.created));
        all.insert("model".into(), json!(self.site.options.model_name));
        all.insert("choices".into(), Value::Array(choices));
        all
    }

    async fn whole(mut self, mut events: Events) -> Result<Response, ApiError> {
        while !self.is_over() {
            let Some((choice, event)) = events.recv().await else { return Err(ApiError::no_engine()) };
            let piece = self.piece(choice, event)?;
            if let Some(state) = self.choices.get_mut(choice) {
                state.text.push_str(&piece.text);
                state.scored.extend(piece.scored);
            }
        }
        let mut choices = Vec::with_capacity(self.choices.len());
        for index in 0..self.choices.len() {
            let Some(state) = self.choices.get_mut(index) else { continue };
            let (text, scored) = (std::mem::take(&mut state.text), std::mem::take(&mut state.scored));
            let finish = state.finish.map(reason);
            let logprobs = self.logprobs(index, &scored);
            choices.push(match self.kind {
                Kind::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": text, "refusal": null},
                    "logprobs": logprobs,
                    "finish_reason": finish,
                }),
                Kind::Completion { .. } => {
                    json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
                }
            });
        }
        let object = if matches!(self.kind, Kind::Chat) { "chat.completion" } else { "text_completion" };
        let mut answer = self.frame(object, choices);
        answer.insert("usage".into(), self.usage());
        Ok(Json(Value::Object(answer)).into_response())
    }

    /// Returns the chunks of a stream that `piece` makes.
    fn chunks(&mut self, piece: Piece, out: &mut VecDeque<Value>) {
        let Piece { choice, text, scored, finish } = piece;
        let logprobs = if scored.is_empty() { Value::Null } else { self.logprobs(choice, &scored) };
        let silent = text.is_empty() && logprobs.is_null();
        match self.kind {
            Kind::Chat => {
                let begun =
                    self.choices.get_mut(choice).is_some_and(|c| std::mem::replace(&mut c.begun, true));
                let mut put = |delta: Value, logprobs: Value, finish: Option<&str>| {
                    let one = json!({"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
                    out.push_back(Value::Object(self.frame("chat.completion.chunk", vec![one])));
                };
                if !begun {
                    put(json!({"role": "assistant", "content": ""}), Value::Null, None);
                }
                if !silent {
                    put(json!({ "content": text }), logprobs, None);
                }
                if let Some(finish) = finish {
                    put(json!({}), Value::Null, Some(reason(finish)));
                }
            }
            Kind::Completion { .. } => {
                if silent && finish.is_none() {
                    return;
                }
                let one = json!({
                    "index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish.map(reason),
                });
                out.push_back(Value::Object(self.frame("text_completion", vec![one])));
            }
        }
    }

    /// Returns what the next event adds to the stream; true at its end.
    fn take(&mut self, next: Option<(usize, Event)>, out: &mut VecDeque<Value>) -> bool {
        let piece = match next {
            None => Err(ApiError::no_engine()),
            Some((choice, event)) => self.piece(choice, event),
        };
        match piece {
            Ok(piece) => self.chunks(piece, out),
            Err(error) => {
                out.push_back(error.json());
                return true;
            }
        }
        if !self.is_over() {
            return false;
        }
        if self.include_usage {
            let object =
                if matches!(self.kind, Kind::Chat) { "chat.completion.chunk" } else { "text_completion" };
            let mut last = self.frame(object, Vec::new());
            last.insert("usage".into(), self.usage());
            out.push_back(Value::Object(last));
        }
        true
    }

    fn stream(self, events: Events) -> Response {
        struct State {
            reply: Reply,
            events: Events,
            waiting: VecDeque<Value>,
            over: bool,
            closed: bool,
        }
        let state = State { reply: self, events, waiting: VecDeque::new(), over: false, closed: false };
        let stream = futures_util::stream::unfold(state, |mut s| async move {
            loop {
                if let Some(value) = s.waiting.pop_front() {
                    let sent = Sent::default().data(value.to_string());
                    return Some((Ok::<_, Infallible>(sent), s));
                }
                if s.closed {
                    return None;
                }
                if s.over {
                    s.closed = true;
                    return Some((Ok(Sent::default().data("[DONE]")), s));
                }
                let next = s.events.recv().await;
                s.over = s.reply.take(next, &mut s.waiting);
            }
        });
        // Comments now and then, so that nothing between takes a long wait for a dead connection.
        Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
    }
}
