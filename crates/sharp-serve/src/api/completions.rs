//! `/v1/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;

use super::body::object;
use super::error::ApiError;
use super::fields::{self, Fields, wrong};
use super::parameters::Parameters;
use super::reply::{Kind, Reply};
use super::{Common, Events, Site, aside};
use crate::job::Job;

/// A prompt, as text or as tokens.
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Likeliest tokens told beside each token.
const MOST_LOGPROBS: usize = 20;
/// Tokens of an answer where the request does not say, as OpenAI has it.
const USUAL_TOKENS: usize = 16;

pub(crate) async fn post(State(site): State<Arc<Site>>, request: Request) -> Result<Response, ApiError> {
    let fields = Fields::new(object(&site, request).await?);
    let prepared = site.clone();
    let (reply, stream, jobs, events) = aside(move || prepare(&prepared, fields)).await?;
    site.submit(jobs)?;
    reply.answer(events, stream).await
}

/// Reads what `prompt` may be: a text, tokens, or a list of either.
fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    const RULE: &str = "a string, an array of strings, an array of tokens or an array of arrays of tokens";
    let list = match value {
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(Value::Array(_)) => return Err(ApiError::bad("there is no prompt").with_param("prompt")),
        Some(other) => return Err(wrong("prompt", &other, RULE)),
        None => {
            return Err(ApiError::bad(format!("prompt is missing; it has to be {RULE}")).with_param("prompt"));
        }
    };
    if list.first().is_some_and(Value::is_number) {
        return Ok(vec![Prompt::Tokens(fields::tokens("prompt", &list)?)]);
    }
    let one = |(i, value): (usize, Value)| match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(list) => Ok(Prompt::Tokens(fields::tokens(&format!("prompt[{i}]"), &list)?)),
        other => {
            Err(wrong(&format!("prompt[{i}]"), &other, "a string or an array of tokens, as all of them"))
        }
    };
    list.into_iter().enumerate().map(one).collect()
}

/// Checks a prompt's tokens; where there are none, puts the token there that texts begin with.
fn tokens(site: &Site, tokens: Vec<u32>) -> Result<Vec<u32>, ApiError> {
    site.check_tokens(&tokens, "prompt")?;
    if !tokens.is_empty() {
        return Ok(tokens);
    }
    // Something has to stand before the first token.
    let begin = site.tokenizer.bos_id().or_else(|| site.tokenizer.eos_ids().first().copied());
    match begin {
        Some(token) => Ok(vec![token]),
        None => Err(ApiError::bad("the prompt is empty").with_param("prompt")),
    }
}

fn prepare(site: &Arc<Site>, mut fields: Fields) -> Result<(Reply, bool, Vec<Job>, Events), ApiError> {
    let parameters = Parameters::read(&mut fields, site.vocab_size)?;
    let prompt = fields.value("prompt");
    let echo = fields.flag("echo")?.unwrap_or(false);
    let logprobs = fields.count("logprobs")?;
    let best_of = fields.count("best_of")?;
    fields.refuse("suffix", &[])?;
    fields.finish()?;
    site.check_model(parameters.model.as_deref())?;
    if best_of.is_some_and(|best| best != parameters.n) {
        let message = "best_of other than n is not supported by this server";
        return Err(ApiError::bad(message).with_code("unsupported_parameter").with_param("best_of"));
    }
    if logprobs.is_some_and(|n| n > MOST_LOGPROBS) {
        return Err(
            ApiError::bad(format!("logprobs has to be at most {MOST_LOGPROBS}")).with_param("logprobs")
        );
    }
    let encode = |text: &str| {
        site.tokenizer.encode(text, true).map_err(|e| ApiError::bad(e.to_string()).with_param("prompt"))
    };
    let decode = |tokens: &[u32]| {
        if !echo {
            return Ok(String::new());
        }
        site.tokenizer.decode(tokens).map_err(|e| ApiError::bad(e.to_string()).with_param("prompt"))
    };
    let prompts = prompts(prompt)?;
    // Before any of them costs time or memory.
    site.check_count(prompts.len().saturating_mul(parameters.n))?;
    let prompts = prompts.into_iter().map(|prompt| match prompt {
        Prompt::Text(text) => encode(&text).map(|ids| (text, ids)),
        Prompt::Tokens(ids) => decode(&ids).map(|text| (text, ids)),
    });
    let (common, events) = Common::new(site);
    let mut jobs = Vec::new();
    let mut echoes = Vec::new();
    let mut prompt_tokens = 0;
    for prompt in prompts {
        let (text, ids) = prompt?;
        let ids: Arc<[u32]> = tokens(site, ids)?.into();
        let max_tokens = site.check_prompt(&ids, Some(parameters.max_tokens.unwrap_or(USUAL_TOKENS)))?;
        prompt_tokens += ids.len();
        for j in 0..parameters.n {
            echoes.push(if echo { text.clone() } else { String::new() });
            jobs.push(Job {
                logprobs,
                score_prompt: echo && logprobs.is_some(),
                ..common.job(&parameters, (jobs.len(), j), &ids, max_tokens)
            });
        }
    }
    let reply = Reply::new(site, Kind::Completion { echoes }, jobs.len(), prompt_tokens, &parameters)
        .with_logprobs(logprobs.is_some());
    Ok((reply, parameters.stream, jobs, events))
}
