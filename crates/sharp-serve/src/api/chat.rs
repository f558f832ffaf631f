//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::parameters::{Parameters, read, refuse};
use super::reply::{Kind, Reply};
use super::{Common, Events, Site, aside, object};
use crate::job::Job;

#[derive(Debug, Deserialize)]
struct Own {
    messages: Vec<Map<String, Value>>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    max_completion_tokens: Option<usize>,
    /// Further variables for the template.
    chat_template_kwargs: Option<Map<String, Value>>,
}

const MOST_LOGPROBS: usize = 20;

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

/// Returns the messages as templates want them: content as one text, the role `developer` under its older
/// name.
fn messages(list: Vec<Map<String, Value>>) -> Result<Value, ApiError> {
    let bad = |i: usize, what: &str| ApiError::bad(format!("messages[{i}]: {what}")).with_param("messages");
    if list.is_empty() {
        return Err(ApiError::bad("there are no messages").with_param("messages"));
    }
    let mut all = Vec::with_capacity(list.len());
    for (i, mut message) in list.into_iter().enumerate() {
        match message.get("role").and_then(Value::as_str) {
            None => return Err(bad(i, "there is no role")),
            Some("developer") => {
                message.insert("role".into(), json!("system"));
            }
            Some(_) => {}
        }
        match message.get("content") {
            Some(Value::String(_)) => {}
            Some(Value::Array(parts)) => {
                let mut text = String::new();
                for part in parts {
                    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str))
                    {
                        (Some("text"), Some(piece)) => text.push_str(piece),
                        _ => return Err(bad(i, "only parts of type \"text\" are understood")),
                    }
                }
                message.insert("content".into(), Value::String(text));
            }
            _ => return Err(bad(i, "content has to be a text or a list of parts")),
        }
        all.push(Value::Object(message));
    }
    Ok(Value::Array(all))
}

/// Tokenises a conversation up to where the model begins to speak.
pub(crate) fn encode(
    site: &Site,
    list: Vec<Map<String, Value>>,
    more: &Map<String, Value>,
) -> Result<Vec<u32>, ApiError> {
    let Some(chat) = &site.chat else {
        return Err(ApiError::bad("this model has no chat template; use /v1/completions")
            .with_code("no_chat_template"));
    };
    let text = chat
        .render_json(&messages(list)?, true, more)
        .map_err(|e| ApiError::bad(e.to_string()).with_param("messages"))?;
    site.tokenizer.encode(&text, false).map_err(|e| ApiError::bad(e.to_string()).with_param("messages"))
}

fn prepare(site: &Arc<Site>, body: &Value) -> Result<(Reply, bool, Vec<Job>, Events), ApiError> {
    refuse(body, &["tools", "functions", "audio"])?;
    let format = body.get("response_format").and_then(|f| f.get("type"));
    if format.is_some_and(|kind| kind != "text") {
        refuse(body, &["response_format"])?;
    }
    let own: Own = read(body)?;
    let parameters = Parameters::read(body, site.vocab_size)?;
    site.check_model(parameters.model.as_deref())?;
    let logprobs = own.logprobs.unwrap_or(false);
    let top = own.top_logprobs.unwrap_or(0);
    if top > MOST_LOGPROBS || (top > 0 && !logprobs) {
        let message = format!("top_logprobs has to be at most {MOST_LOGPROBS}, with logprobs true");
        return Err(ApiError::bad(message).with_param("top_logprobs"));
    }
    let ids = encode(site, own.messages, &own.chat_template_kwargs.unwrap_or_default())?;
    if ids.is_empty() || ids.iter().any(|&t| t as usize >= site.vocab_size) {
        return Err(ApiError::internal("the template wrote nothing that the model can read"));
    }
    let ids: Arc<[u32]> = ids.into();
    let max_tokens = site.check_prompt(&ids, own.max_completion_tokens.or(parameters.max_tokens))?;
    let (common, events) = Common::new(site);
    let jobs: Vec<Job> = (0..parameters.n)
        .map(|j| Job {
            logprobs: logprobs.then_some(top),
            ..common.job(&parameters, (j, j), &ids, max_tokens)
        })
        .collect();
    let reply = Reply::new(site, Kind::Chat, jobs.len(), ids.len(), &parameters).with_logprobs(logprobs);
    Ok((reply, parameters.stream, jobs, events))
}
