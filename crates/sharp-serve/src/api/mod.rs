//! The HTTP side: routes, keys, counting.

mod body;
mod chat;
mod completions;
mod error;
mod fields;
mod host;
mod messages;
mod page;
mod parameters;
mod prompts;
mod reply;
mod simple;
mod texts;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use sharp_data::Chat;
use sharp_model::tokenizer::Tokenizer;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use self::error::ApiError;
use self::parameters::Parameters;
use self::texts::Texts;
use crate::job::{Event, Failure, Job};
use crate::memory::{Memory, Reservation, SessionCost};
use crate::metrics::{Metrics, RequestLabels};
use crate::options::ServeOptions;
use crate::queue::{Queue, Refused};

/// What every request may look at.
pub(crate) struct Site {
    pub(crate) options: ServeOptions,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) chat: Option<Chat>,
    pub(crate) texts: Texts,
    pub(crate) vocab_size: usize,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) memory: Arc<Memory>,
    /// What a sequence's keys and values take.
    cost: SessionCost,
    /// Bytes of a text beyond which it has more tokens than the context.
    longest_text: usize,
    /// Requests that may be prepared at once.
    preparing: Arc<Semaphore>,
    /// Requests that may wait for that, those in preparation included.
    line: Semaphore,
    /// Seconds since 1970 when the server started.
    pub(crate) created: u64,
}

/// What the network side and the engine both hold.
pub(crate) struct Shared {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) memory: Arc<Memory>,
}

/// Bytes that making a text into tokens takes for each of its own, measured with byte-level vocabularies.
const TOKENIZING: u64 = 400;

/// Requests that are prepared at once (parsed, written by the template, made into tokens): each takes a core
/// and many times the memory of its body.
const PREPARED: usize = 2;

/// Returns the seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Site {
    pub(crate) fn new(
        options: ServeOptions,
        shared: Shared,
        vocab_size: usize,
        cost: SessionCost,
    ) -> crate::Result<Self> {
        let Shared { tokenizer, queue, metrics, memory } = shared;
        // A vocabulary spells each byte with at least one, so no token stands for more than it is long.
        let spelled = (0..vocab_size).filter_map(|id| tokenizer.token(u32::try_from(id).ok()?));
        let longest = spelled.map(|token| token.len()).max().unwrap_or(1).max(1);
        Ok(Self {
            longest_text: options.context.saturating_mul(longest),
            preparing: Arc::new(Semaphore::new(PREPARED)),
            line: Semaphore::new(options.queue),
            chat: Chat::from_tokenizer(&tokenizer),
            texts: Texts::new(tokenizer.clone())?,
            options,
            tokenizer,
            vocab_size,
            queue,
            metrics,
            memory,
            cost,
            created: now(),
        })
    }

    /// Reserves memory for a part of a request.
    fn reserve(&self, bytes: u64) -> Result<Reservation, ApiError> {
        self.memory.reserve(bytes).map_err(ApiError::no_memory)
    }

    /// Returns the bytes of a sequence's keys and values.
    fn sequence_bytes(&self, tokens: usize) -> Result<u64, ApiError> {
        self.cost.bytes(tokens).map_err(|error| ApiError::internal(error.to_string()))
    }

    /// Refuses a request for another model than the one that is served.
    fn check_model(&self, model: Option<&str>) -> Result<(), ApiError> {
        match model {
            Some(model) if model != self.options.model_name => {
                Err(ApiError::no_model(model, &self.options.model_name))
            }
            _ => Ok(()),
        }
    }

    /// Refuses tokens that the model has no embedding for: some tokenizers know more than their model.
    fn check_tokens(&self, tokens: &[u32], param: &str) -> Result<(), ApiError> {
        let most = self.vocab_size;
        let Some(&id) = tokens.iter().find(|&&token| token as usize >= most) else { return Ok(()) };
        let message = match self.tokenizer.token(id) {
            Some(text) => format!(
                "{text:?} is token {id} of the tokenizer, and the model has embeddings for {most} alone; leave it out"
            ),
            None => format!("token {id} is not in the vocabulary of {most}"),
        };
        Err(ApiError::bad(message).with_param(param))
    }

    /// Makes a text into tokens. One that cannot fit the context is refused before that costs time and
    /// memory.
    fn encode(&self, text: &str, special: bool, param: &'static str) -> Result<Vec<u32>, ApiError> {
        if text.len() > self.longest_text {
            let (bytes, most, context) = (text.len(), self.longest_text, self.options.context);
            return Err(ApiError::bad(format!(
                "{param} has {bytes} bytes; {most} are the most that this server's context of {context} tokens \
                 can hold"
            ))
            .with_code("context_length_exceeded")
            .with_param(param));
        }
        let _held = self.reserve(TOKENIZING * text.len() as u64)?;
        self.tokenizer.encode(text, special).map_err(|e| ApiError::bad(e.to_string()).with_param(param))
    }

    /// Checks the tokens of a prompt against the context, and returns how many more there may be.
    fn check_prompt(&self, tokens: &[u32], max_tokens: Option<usize>) -> Result<usize, ApiError> {
        let context = self.options.context;
        let n = tokens.len();
        let room = context.saturating_sub(n);
        if n > context || (room == 0 && max_tokens != Some(0)) {
            return Err(ApiError::bad(format!(
                "this server's context is {context} tokens; the prompt has {n}, which leaves no room for an answer"
            ))
            .with_code("context_length_exceeded"));
        }
        // As much as there is room: the answer says `length` where that is what ends it.
        Ok(max_tokens.map_or(room, |most| most.min(room)))
    }

    /// Refuses more sequences than could ever wait.
    fn check_count(&self, count: usize) -> Result<(), ApiError> {
        let limit = self.options.queue;
        if count > limit {
            return Err(ApiError::bad(format!(
                "this request asks for {count} sequences; this server takes at most {limit} at once"
            )));
        }
        Ok(())
    }

    /// Hands jobs to the engine.
    fn submit(&self, jobs: Vec<Job>) -> Result<(), ApiError> {
        let limit = self.options.queue;
        self.check_count(jobs.len())?;
        self.queue.push(jobs).map_err(|refused| match refused {
            Refused::Full => ApiError::busy(limit),
            Refused::Closed => ApiError::stopping(),
        })
    }
}

/// The events of one request's sequences.
type Events = UnboundedReceiver<(usize, Event)>;

/// What the jobs of one request share.
struct Common {
    arrived: Instant,
    deadline: Instant,
    sender: tokio::sync::mpsc::UnboundedSender<(usize, Event)>,
}

impl Common {
    fn new(site: &Site, arrived: Instant) -> (Self, Events) {
        let (sender, events) = unbounded_channel();
        (Self { arrived, deadline: arrived + site.options.timeout, sender }, events)
    }

    /// Makes the job of a request's choice `choice`, the `j`th of its prompt, without log probabilities.
    fn job(
        &self,
        parameters: &Parameters,
        (choice, j): (usize, usize),
        prompt: &Arc<[u32]>,
        max_tokens: usize,
        memory: Reservation,
    ) -> Job {
        Job {
            choice,
            prompt: prompt.clone(),
            max_tokens,
            sampling: parameters.sampling(j),
            stop: parameters.stop.clone(),
            ignore_eos: parameters.ignore_eos,
            logprobs: None,
            score_prompt: false,
            memory: Some(memory),
            arrived: self.arrived,
            deadline: self.deadline,
            events: self.sender.clone(),
        }
    }
}

/// Runs what takes time (parsing, templates, long texts to tokens) beside the threads that serve connections,
/// a few requests at once. The others wait, as long as a request may take.
async fn aside<T: Send + 'static>(
    site: &Arc<Site>,
    arrived: Instant,
    work: impl FnOnce(&Arc<Site>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let Ok(_place) = site.line.try_acquire() else { return Err(ApiError::busy(site.options.queue)) };
    let turn = tokio::time::timeout_at(
        (arrived + site.options.timeout).into(),
        site.preparing.clone().acquire_owned(),
    );
    let turn = turn.await.map_err(|_| ApiError::failure(Failure::Timeout))?;
    let site = site.clone();
    // Work goes on when its client has left, and keeps its turn until it is done.
    let worked = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(&site)
    });
    match worked.await {
        Ok(result) => result,
        Err(error) => Err(ApiError::internal(format!("preparing the request failed: {error}"))),
    }
}

/// Lists all routes.
pub(crate) fn router(site: Arc<Site>) -> Router {
    let keyed = Router::new()
        .route("/v1/completions", post(completions::post))
        .route("/v1/chat/completions", post(chat::post))
        .route("/v1/models", get(simple::models))
        .route("/v1/models/{*id}", get(simple::model))
        .route("/tokenize", post(simple::tokenize))
        .route("/detokenize", post(simple::detokenize))
        .route("/metrics", get(simple::metrics))
        .route_layer(middleware::from_fn_with_state(site.clone(), check_key));
    Router::new()
        .route("/health", get(simple::health))
        .route("/", get(page::html))
        .route("/chat.css", get(page::css))
        .route("/chat.js", get(page::js))
        .merge(keyed)
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this address") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take this method")
        })
        .layer(middleware::from_fn_with_state(site.clone(), host::check))
        .layer(middleware::from_fn_with_state(site.clone(), count))
        .with_state(site)
}

async fn check_key(
    State(site): State<Arc<Site>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(key) = &site.options.api_key {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        // Names of schemes have no case (RFC 9110, 11.1).
        let given = given
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map_or("", |(_, key)| key.trim_start_matches(' '));
        if !bool::from(given.as_bytes().ct_eq(key.as_bytes())) {
            return Err(ApiError::no_key());
        }
    }
    Ok(next.run(request).await)
}

async fn count(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    // The pattern, not the address: whoever asks for many addresses must not make many counters.
    let path = request.extensions().get::<MatchedPath>();
    let endpoint = path.map_or("other", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let begun = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::info!("{method} {endpoint}: {status} after {:.3} s", begun.elapsed().as_secs_f64());
    site.metrics.requests.get_or_create(&RequestLabels { endpoint, status }).inc();
    response
}
