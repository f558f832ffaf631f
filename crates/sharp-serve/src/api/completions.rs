//! `/v1/completions`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use super::parameters::{Parameters, read, refuse};
use super::reply::{Kind, Reply};
use super::{Common, Events, Site, aside, object};
use crate::job::Job;

/// One or more prompts, as text or as tokens.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, a list of texts, a list of tokens, or a list of lists of tokens"
)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

#[derive(Debug, Deserialize)]
struct Own {
    prompt: Prompt,
    echo: Option<bool>,
    logprobs: Option<usize>,
    best_of: Option<usize>,
}

/// Likeliest tokens told beside each token.
const MOST_LOGPROBS: usize = 20;
/// Tokens of an answer where the request does not say, as OpenAI has it.
const USUAL_TOKENS: usize = 16;

pub(crate) async fn post(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = object(&headers, body)?;
    let prepared = site.clone();
    let (reply, stream, jobs, events) = aside(move || prepare(&prepared, &body)).await?;
    site.submit(jobs)?;
    reply.answer(events, stream).await
}

/// Tokenises a text as it goes into the model; never none.
fn tokens(site: &Site, tokens: Vec<u32>) -> Result<Vec<u32>, ApiError> {
    if let Some(token) = tokens.iter().find(|&&t| t as usize >= site.vocab_size) {
        let message = format!("token {token} is not in the vocabulary of {}", site.vocab_size);
        return Err(ApiError::bad(message).with_param("prompt"));
    }
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

fn prepare(site: &Arc<Site>, body: &Value) -> Result<(Reply, bool, Vec<Job>, Events), ApiError> {
    refuse(body, &["suffix"])?;
    let own: Own = read(body)?;
    let parameters = Parameters::read(body, site.vocab_size)?;
    site.check_model(parameters.model.as_deref())?;
    if own.best_of.is_some_and(|best| best != parameters.n) {
        let message = "best_of other than n is not supported by this server";
        return Err(ApiError::bad(message).with_code("unsupported_parameter").with_param("best_of"));
    }
    if own.logprobs.is_some_and(|n| n > MOST_LOGPROBS) {
        return Err(
            ApiError::bad(format!("logprobs has to be at most {MOST_LOGPROBS}")).with_param("logprobs")
        );
    }
    let encode = |text: &str| {
        site.tokenizer.encode(text, true).map_err(|e| ApiError::bad(e.to_string()).with_param("prompt"))
    };
    let echo = own.echo.unwrap_or(false);
    let decode = |tokens: &[u32]| {
        if !echo {
            return Ok(String::new());
        }
        site.tokenizer.decode(tokens).map_err(|e| ApiError::bad(e.to_string()).with_param("prompt"))
    };
    let mut prompts: Vec<(String, Vec<u32>)> = Vec::new();
    match own.prompt {
        Prompt::Text(text) => prompts.push((text.clone(), encode(&text)?)),
        Prompt::Texts(texts) => {
            for text in texts {
                let ids = encode(&text)?;
                prompts.push((text, ids));
            }
        }
        Prompt::Tokens(ids) if ids.is_empty() => {}
        Prompt::Tokens(ids) => prompts.push((decode(&ids)?, ids)),
        Prompt::TokenLists(lists) => {
            for ids in lists {
                prompts.push((decode(&ids)?, ids));
            }
        }
    }
    if prompts.is_empty() {
        return Err(ApiError::bad("there is no prompt").with_param("prompt"));
    }
    let (common, events) = Common::new(site);
    let mut jobs = Vec::new();
    let mut echoes = Vec::new();
    let mut prompt_tokens = 0;
    for (text, ids) in prompts {
        let ids: Arc<[u32]> = tokens(site, ids)?.into();
        let max_tokens = site.check_prompt(&ids, Some(parameters.max_tokens.unwrap_or(USUAL_TOKENS)))?;
        prompt_tokens += ids.len();
        for j in 0..parameters.n {
            echoes.push(if echo { text.clone() } else { String::new() });
            jobs.push(Job {
                logprobs: own.logprobs,
                score_prompt: echo && own.logprobs.is_some(),
                ..common.job(&parameters, (jobs.len(), j), &ids, max_tokens)
            });
        }
    }
    let reply = Reply::new(site, Kind::Completion { echoes }, jobs.len(), prompt_tokens, &parameters)
        .with_logprobs(own.logprobs.is_some());
    Ok((reply, parameters.stream, jobs, events))
}
