//! What the server counts, for Prometheus.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Labels of a counted request.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) endpoint: String,
    pub(crate) status: u16,
}

/// All counters of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) finished: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) failures: Counter,
    pub(crate) waiting: Gauge,
    pub(crate) running: Gauge,
    pub(crate) first_token: Histogram,
    pub(crate) duration: Histogram,
    pub(crate) batch: Histogram,
}

const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut all = Self {
            registry: Registry::default(),
            requests: Family::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            finished: Counter::default(),
            cancelled: Counter::default(),
            timeouts: Counter::default(),
            failures: Counter::default(),
            waiting: Gauge::default(),
            running: Gauge::default(),
            first_token: Histogram::new(SECONDS),
            duration: Histogram::new(SECONDS),
            batch: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]),
        };
        let r = &mut all.registry;
        r.register("sharp_requests", "Requests answered", all.requests.clone());
        r.register("sharp_prompt_tokens", "Prompt tokens of admitted sequences", all.prompt_tokens.clone());
        r.register(
            "sharp_prompt_tokens_cached",
            "Prompt tokens taken over from earlier sequences",
            all.cached_tokens.clone(),
        );
        r.register("sharp_generated_tokens", "Tokens generated", all.generated_tokens.clone());
        r.register("sharp_sequences_finished", "Sequences written to their end", all.finished.clone());
        r.register("sharp_sequences_cancelled", "Sequences whose client went away", all.cancelled.clone());
        r.register("sharp_sequences_timed_out", "Sequences that took too long", all.timeouts.clone());
        r.register("sharp_sequences_failed", "Sequences the engine could not write", all.failures.clone());
        r.register("sharp_sequences_waiting", "Sequences waiting for a place", all.waiting.clone());
        r.register("sharp_sequences_running", "Sequences being written", all.running.clone());
        r.register(
            "sharp_first_token_seconds",
            "Time from a request's arrival to its first token",
            all.first_token.clone(),
        );
        r.register(
            "sharp_sequence_seconds",
            "Time from a request's arrival to its last token",
            all.duration.clone(),
        );
        r.register("sharp_decode_batch", "Sequences decoded together", all.batch.clone());
        all
    }

    /// Writes the text that Prometheus reads.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
