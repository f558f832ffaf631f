//! The parameters that both kinds of completion share.

use std::sync::Arc;

use rand::RngExt;
use serde_json::{Map, Value, json};
use sharp_infer::SamplerOptions;

use super::error::ApiError;
use super::fields::{Fields, number, wrong};
use crate::job::Sampling;

/// The shared parameters of a request, checked.
#[derive(Debug, Clone)]
pub(crate) struct Parameters {
    pub(crate) model: Option<String>,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Arc<[String]>,
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) ignore_eos: bool,
    pub(crate) max_tokens: Option<usize>,
}

/// Choices of one prompt.
const MOST_CHOICES: usize = 64;
/// Stop strings of a request, and bytes of each.
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 1024;

fn rule(name: &'static str, right: bool, rule: &str) -> Result<(), ApiError> {
    if right { Ok(()) } else { Err(ApiError::bad(format!("{name} has to be {rule}")).with_param(name)) }
}

/// Reads one stop string or a list of them.
fn stops(value: Option<Value>) -> Result<Vec<String>, ApiError> {
    let stops = match value {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => {
            let text = |(i, value): (usize, Value)| match value {
                Value::String(text) => Ok(text),
                other => Err(wrong(&format!("stop[{i}]"), &other, "a string")),
            };
            list.into_iter().enumerate().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong("stop", &other, "a string or an array of strings")),
    };
    rule(
        "stop",
        stops.len() <= MOST_STOPS && stops.iter().all(|s| s.len() <= LONGEST_STOP),
        &format!("at most {MOST_STOPS} texts of at most {LONGEST_STOP} bytes"),
    )?;
    Ok(stops)
}

/// Reads what is added to the logits of tokens.
fn bias(map: &Map<String, Value>, vocab_size: usize) -> Result<Arc<[(u32, f32)]>, ApiError> {
    let mut bias = Vec::with_capacity(map.len());
    for (token, value) in map {
        let id = token.parse::<u32>().ok().filter(|&id| (id as usize) < vocab_size);
        let value = number(value).filter(|value| (-100.0..=100.0).contains(value));
        let both = id.zip(value);
        rule("logit_bias", both.is_some(), "tokens of the vocabulary with numbers from -100 to 100")?;
        bias.extend(both);
    }
    // Two spellings of a token ("7", "07") count alike in whatever order they came.
    bias.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    Ok(bias.into())
}

/// Reads a seed: any integer of 64 bits, with a sign or without.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(seed) = fields.whole("seed")? else { return Ok(None) };
    let bits = u64::try_from(seed).ok().or_else(|| i64::try_from(seed).ok().map(|seed| seed as u64));
    rule("seed", bits.is_some(), "a whole number of 64 bits")?;
    Ok(bits)
}

impl Parameters {
    /// Takes the shared parameters out of a request's fields.
    pub(crate) fn read(fields: &mut Fields, vocab_size: usize) -> Result<Self, ApiError> {
        let n = fields.count("n")?.unwrap_or(1);
        rule("n", (1..=MOST_CHOICES).contains(&n), &format!("from 1 to {MOST_CHOICES}"))?;
        let presence_penalty = fields.number("presence_penalty")?.unwrap_or(0.0);
        let frequency_penalty = fields.number("frequency_penalty")?.unwrap_or(0.0);
        rule("presence_penalty", (-2.0..=2.0).contains(&presence_penalty), "from -2 to 2")?;
        rule("frequency_penalty", (-2.0..=2.0).contains(&frequency_penalty), "from -2 to 2")?;
        let top_k = fields.whole("top_k")?.unwrap_or(0);
        rule("top_k", top_k >= -1, "at least 1, or 0 or -1 for all tokens")?;
        let options = SamplerOptions {
            temperature: fields.number("temperature")?.unwrap_or(1.0),
            top_k: usize::try_from(top_k).unwrap_or(0),
            top_p: fields.number("top_p")?.unwrap_or(1.0),
            min_p: fields.number("min_p")?.unwrap_or(0.0),
            repetition_penalty: fields.number("repetition_penalty")?.unwrap_or(1.0),
            seed: seed(fields)?.unwrap_or_else(|| rand::rng().random()),
        };
        options.validate().map_err(|error| {
            let message = error.to_string();
            let param = message.split(' ').next().unwrap_or_default().to_owned();
            ApiError::bad(message).with_param(param)
        })?;
        let mut include_usage = false;
        if let Some(mut stream) = fields.inner("stream_options")? {
            include_usage = stream.flag("include_usage")?.unwrap_or(false);
            // Padding against those who count bytes; there is none to be switched off.
            stream.flag("include_obfuscation")?;
            stream.finish()?;
        }
        fields.refuse("response_format", &[json!({"type": "text"})])?;
        let bias = bias(&fields.object("logit_bias")?.unwrap_or_default(), vocab_size)?;
        Ok(Self {
            model: fields.text("model")?,
            sampling: Sampling { options, presence_penalty, frequency_penalty, bias },
            stop: stops(fields.value("stop")?)?.into(),
            n,
            stream: fields.flag("stream")?.unwrap_or(false),
            include_usage,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            max_tokens: fields.limit("max_tokens")?,
        })
    }

    /// Returns how choice `j` of a prompt chooses its tokens.
    pub(crate) fn sampling(&self, j: usize) -> Sampling {
        let mut sampling = self.sampling.clone();
        sampling.options.seed = sampling.options.seed.wrapping_add(j as u64);
        sampling
    }
}
