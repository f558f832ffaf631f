//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::body::Received;
use super::error::ApiError;
use super::fields::Fields;
use super::messages::normalise;
use super::parameters::Parameters;
use super::reply::{Kind, Reply, Size};
use super::{Common, Events, Site, aside};
use crate::job::Job;

const MOST_LOGPROBS: usize = 20;

pub(crate) async fn post(State(site): State<Arc<Site>>, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let mut body = Received::new(&site, request).await?;
    let (reply, stream, jobs, events) =
        aside(&site, arrived, move |site| prepare(site, body.fields()?, arrived)).await?;
    site.submit(jobs)?;
    reply.answer(events, stream).await
}

/// Tokenises a conversation up to where the model begins to speak.
pub(crate) fn encode(site: &Site, messages: Value, more: &Map<String, Value>) -> Result<Vec<u32>, ApiError> {
    let Some(chat) = &site.chat else {
        return Err(ApiError::bad("this model has no chat template; use /v1/completions")
            .with_code("no_chat_template"));
    };
    let text = chat
        .render_json(&normalise(messages)?, true, more)
        .map_err(|e| ApiError::bad(e.to_string()).with_param("messages"))?;
    site.encode(&text, false, "messages")
}

/// Refuses what OpenAI's API has and this server has not, but for values that ask for nothing.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["tools", "functions", "audio", "prediction", "web_search_options"] {
        fields.refuse(name, &[])?;
    }
    // Without tools these say what happens anyway.
    fields.refuse("tool_choice", &[json!("none"), json!("auto")])?;
    fields.refuse("function_call", &[json!("none"), json!("auto")])?;
    fields.refuse("parallel_tool_calls", &[json!(true)])?;
    fields.refuse("modalities", &[json!(["text"])])?;
    fields.refuse("reasoning_effort", &[json!("none")])?;
    fields.refuse("verbosity", &[json!("medium")])
}

fn prepare(
    site: &Arc<Site>,
    mut fields: Fields,
    arrived: Instant,
) -> Result<(Reply, bool, Vec<Job>, Events), ApiError> {
    refuse(&mut fields)?;
    let parameters = Parameters::read(&mut fields, site.vocab_size)?;
    let logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs")?.unwrap_or(0);
    // The newer name of `max_tokens`.
    let max_tokens = fields.limit("max_completion_tokens")?.or(parameters.max_tokens);
    // Further variables for the template.
    let more = fields.object("chat_template_kwargs")?.unwrap_or_default();
    let messages = fields.value("messages")?;
    fields.finish()?;
    let Some(messages) = messages else {
        return Err(
            ApiError::bad("messages is missing; it has to be an array of messages").with_param("messages")
        );
    };
    site.check_model(parameters.model.as_deref())?;
    if top > MOST_LOGPROBS || (top > 0 && !logprobs) {
        let message = format!("top_logprobs has to be at most {MOST_LOGPROBS}, with logprobs true");
        return Err(ApiError::bad(message).with_param("top_logprobs"));
    }
    let ids = encode(site, messages, &more)?;
    if ids.is_empty() {
        return Err(ApiError::bad("the model's chat template writes nothing for these messages")
            .with_param("messages"));
    }
    site.check_tokens(&ids, "messages")?;
    let ids: Arc<[u32]> = ids.into();
    let max_tokens = site.check_prompt(&ids, max_tokens)?;
    let n = parameters.n;
    let entries = if logprobs { top + 1 } else { 0 };
    let size = Size { text: 0, tokens: ids.len() + max_tokens * n, scored: max_tokens * n, entries };
    let bytes = site.sequence_bytes(ids.len() + max_tokens)?;
    let mut memory = site.reserve(bytes.saturating_mul(n as u64).saturating_add(size.bytes()))?;
    let (common, events) = Common::new(site, arrived);
    let jobs: Vec<Job> = (0..n)
        .map(|j| Job {
            logprobs: logprobs.then_some(top),
            ..common.job(&parameters, (j, j), &ids, max_tokens, memory.split(bytes))
        })
        .collect();
    let reply = Reply::new(site, Kind::Chat, n, ids.len(), &parameters, memory).with_logprobs(logprobs);
    Ok((reply, parameters.stream, jobs, events))
}
