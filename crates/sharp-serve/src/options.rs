//! How a server behaves.

use std::time::Duration;

use crate::error::{Error, Result};

/// How a server behaves. The defaults suit one machine with a few users.
#[derive(Clone)]
#[non_exhaustive]
pub struct ServeOptions {
    /// The model's name in requests and answers.
    pub model_name: String,
    /// Tokens of prompt and answer together; 0: as many as the model takes, at most 4096.
    pub context: usize,
    /// Sequences decoded together.
    pub max_batch: usize,
    /// Sequences kept after they ended, beside those that run, so that a prompt that begins like one of them
    /// is not computed again.
    pub cached_sessions: usize,
    /// Sequences that may wait; more are refused with status 429.
    pub queue: usize,
    /// Prompt tokens taken in between two tokens of the sequences that are being written.
    pub prefill_chunk: usize,
    /// How long a request may take, waiting included.
    pub timeout: Duration,
    /// How long running requests may go on after the server was asked to stop.
    pub drain: Duration,
    /// Bytes of memory that requests may take together, beside the model; `None`: what the machine, the
    /// control group and the limits of the process leave. A request that does not fit is refused with status
    /// 503.
    pub memory: Option<u64>,
    /// Largest body of a request in bytes.
    pub body_limit: usize,
    /// How long a connection may make the server wait: for the head of its next request, for a body, and to
    /// take something of an answer.
    pub connection_timeout: Duration,
    /// Connections held at once; more wait until one ends.
    pub connections: usize,
    /// Names in the header `Host` that the server answers to, beside IP addresses and `localhost`. Others
    /// are refused: a page from elsewhere can make a name of its own point to this machine.
    pub allowed_hosts: Vec<String>,
    /// If set, requests must carry it as `Authorization: Bearer KEY`; only the chat page and `/health` are
    /// open.
    pub api_key: Option<String>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            model_name: "sharp".into(),
            context: 0,
            max_batch: 16,
            cached_sessions: 8,
            queue: 256,
            prefill_chunk: 128,
            timeout: Duration::from_secs(600),
            drain: Duration::from_secs(30),
            memory: None,
            body_limit: 4 << 20,
            connection_timeout: Duration::from_secs(30),
            connections: 1000,
            allowed_hosts: Vec::new(),
            api_key: None,
        }
    }
}

impl std::fmt::Debug for ServeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("ServeOptions")
            .field("model_name", &self.model_name)
            .field("context", &self.context)
            .field("max_batch", &self.max_batch)
            .field("cached_sessions", &self.cached_sessions)
            .field("queue", &self.queue)
            .field("prefill_chunk", &self.prefill_chunk)
            .field("timeout", &self.timeout)
            .field("drain", &self.drain)
            .field("memory", &self.memory)
            .field("body_limit", &self.body_limit)
            .field("connection_timeout", &self.connection_timeout)
            .field("connections", &self.connections)
            .field("allowed_hosts", &self.allowed_hosts)
            .field("api_key", &self.api_key.as_ref().map(|_| "set"))
            .finish()
    }
}

/// Context where nobody says how long it should be: keys and values of more would surprise by their memory.
const USUAL_CONTEXT: usize = 4096;

/// The longest time that an option may name, a year: the clock has an end.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

impl ServeOptions {
    /// Fills in what depends on the model, which takes `longest` tokens, and refuses what cannot be.
    pub(crate) fn resolve(mut self, longest: usize) -> Result<Self> {
        if self.context == 0 {
            self.context = longest.min(USUAL_CONTEXT);
        }
        let bad =
            |option, value: usize, rule: String| Error::Option { option, value: value.to_string(), rule };
        if self.context < 2 || self.context > longest {
            return Err(bad("context", self.context, format!("from 2 to the model's {longest} tokens")));
        }
        for (option, value, most) in [
            ("max_batch", self.max_batch, 512),
            ("queue", self.queue, 1 << 20),
            ("prefill_chunk", self.prefill_chunk, 1 << 16),
            ("body_limit", self.body_limit, 1 << 30),
            ("connections", self.connections, 1 << 20),
        ] {
            if value == 0 || value > most {
                return Err(bad(option, value, format!("from 1 to {most}")));
            }
        }
        if self.cached_sessions > 4096 {
            return Err(bad("cached_sessions", self.cached_sessions, "at most 4096".into()));
        }
        // The key itself stays out of messages.
        let written = |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        if self.api_key.as_deref().is_some_and(|key| !written(key)) {
            let rule = "at least one character long, of ASCII and without spaces, as a header can carry it";
            return Err(Error::Option { option: "api_key", value: "another".into(), rule: rule.into() });
        }
        for (option, time) in [
            ("timeout", self.timeout),
            ("drain", self.drain),
            ("connection_timeout", self.connection_timeout),
        ] {
            if time > LONGEST {
                let (value, rule) =
                    (format!("{} s", time.as_secs()), format!("at most {} s", LONGEST.as_secs()));
                return Err(Error::Option { option, value, rule });
            }
        }
        if self.connection_timeout.is_zero() {
            return Err(bad("connection_timeout", 0, "longer than nothing".into()));
        }
        Ok(self)
    }
}
