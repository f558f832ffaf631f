//! The parameters that both kinds of completion share.

use std::collections::BTreeMap;

use rand::RngExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sharp_infer::SamplerOptions;

use super::error::ApiError;
use crate::job::Sampling;

/// A text or a list of texts.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Debug, Clone, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// As they stand in a request; `null` is as good as nothing.
#[derive(Debug, Clone, Deserialize)]
struct Raw {
    model: Option<String>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    stop: Option<OneOrMore>,
    n: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    ignore_eos: Option<bool>,
    max_tokens: Option<usize>,
}

/// The same, checked.
#[derive(Debug, Clone)]
pub(crate) struct Parameters {
    pub(crate) model: Option<String>,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
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

/// Reads `value` as a `T`; an error names the field.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let bad = ApiError::bad(format!("{path}: {}", error.inner()));
        if path == "." { bad } else { bad.with_param(path) }
    })
}

/// Refuses what this server would otherwise pass over in silence although it changes the answer.
pub(crate) fn refuse(body: &Value, names: &[&str]) -> Result<(), ApiError> {
    for &name in names {
        let nothing = match body.get(name) {
            None | Some(Value::Null) => true,
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::String(text)) => text.is_empty(),
            _ => false,
        };
        if !nothing {
            let message = format!("{name} is not supported by this server");
            return Err(ApiError::bad(message).with_code("unsupported_parameter").with_param(name));
        }
    }
    Ok(())
}

impl Parameters {
    pub(crate) fn read(body: &Value, vocab_size: usize) -> Result<Self, ApiError> {
        let raw: Raw = read(body)?;
        let rule = |name: &'static str, right: bool, rule: &str| {
            if right {
                Ok(())
            } else {
                Err(ApiError::bad(format!("{name} has to be {rule}")).with_param(name))
            }
        };
        let n = raw.n.unwrap_or(1);
        rule("n", (1..=MOST_CHOICES).contains(&n), &format!("from 1 to {MOST_CHOICES}"))?;
        let presence_penalty = raw.presence_penalty.unwrap_or(0.0);
        let frequency_penalty = raw.frequency_penalty.unwrap_or(0.0);
        rule("presence_penalty", (-2.0..=2.0).contains(&presence_penalty), "from -2 to 2")?;
        rule("frequency_penalty", (-2.0..=2.0).contains(&frequency_penalty), "from -2 to 2")?;
        let top_k = raw.top_k.unwrap_or(0);
        rule("top_k", top_k >= -1, "at least 1, or 0 or -1 for all tokens")?;
        let stop = match raw.stop {
            None => Vec::new(),
            Some(OneOrMore::One(text)) => vec![text],
            Some(OneOrMore::More(list)) => list,
        };
        rule(
            "stop",
            stop.len() <= MOST_STOPS && stop.iter().all(|s| s.len() <= LONGEST_STOP),
            &format!("at most {MOST_STOPS} texts of at most {LONGEST_STOP} bytes"),
        )?;
        let mut bias = Vec::new();
        for (token, value) in raw.logit_bias.unwrap_or_default() {
            let id = token.parse::<u32>().ok().filter(|&id| (id as usize) < vocab_size);
            let right = (-100.0..=100.0).contains(&value);
            rule(
                "logit_bias",
                right && id.is_some(),
                "tokens of the vocabulary with values from -100 to 100",
            )?;
            bias.extend(id.map(|id| (id, value)));
        }
        let options = SamplerOptions {
            temperature: raw.temperature.unwrap_or(1.0),
            top_k: usize::try_from(top_k).unwrap_or(0),
            top_p: raw.top_p.unwrap_or(1.0),
            min_p: raw.min_p.unwrap_or(0.0),
            repetition_penalty: raw.repetition_penalty.unwrap_or(1.0),
            seed: raw.seed.map_or_else(|| rand::rng().random(), |seed| seed as u64),
        };
        options.validate().map_err(|error| {
            let message = error.to_string();
            let param = message.split(' ').next().unwrap_or_default().to_owned();
            ApiError::bad(message).with_param(param)
        })?;
        Ok(Self {
            model: raw.model,
            sampling: Sampling { options, presence_penalty, frequency_penalty, bias },
            stop,
            n,
            stream: raw.stream.unwrap_or(false),
            include_usage: raw.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
            ignore_eos: raw.ignore_eos.unwrap_or(false),
            max_tokens: raw.max_tokens,
        })
    }

    /// Returns how choice `j` of a prompt chooses its tokens.
    pub(crate) fn sampling(&self, j: usize) -> Sampling {
        let mut sampling = self.sampling.clone();
        sampling.options.seed = sampling.options.seed.wrapping_add(j as u64);
        sampling
    }
}
