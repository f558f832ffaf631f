//! The small endpoints.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::parameters::read;
use super::{Site, aside, chat, object};

fn card(site: &Site) -> Value {
    json!({
        "id": site.options.model_name,
        "object": "model",
        "created": site.created,
        "owned_by": "sharp",
        "max_model_len": site.options.context,
    })
}

pub(crate) async fn models(State(site): State<Arc<Site>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [card(&site)]}))
}

pub(crate) async fn model(
    State(site): State<Arc<Site>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    site.check_model(Some(&id))?;
    Ok(Json(card(&site)))
}

pub(crate) async fn health(State(site): State<Arc<Site>>) -> Response {
    if site.queue.is_closed() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "stopping"}))).into_response();
    }
    let chat = site.chat.is_some();
    Json(json!({"status": "ok", "model": site.options.model_name, "chat": chat})).into_response()
}

pub(crate) async fn metrics(State(site): State<Arc<Site>>) -> Result<Response, ApiError> {
    let text = site.metrics.text().map_err(|e| ApiError::internal(e.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

#[derive(Debug, Deserialize)]
struct Tokenize {
    prompt: Option<String>,
    messages: Option<Vec<Map<String, Value>>>,
    add_special_tokens: Option<bool>,
}

pub(crate) async fn tokenize(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let request: Tokenize = read(&object(&headers, body)?)?;
    aside(move || {
        let tokens = match (request.prompt, request.messages) {
            (Some(text), None) => site
                .tokenizer
                .encode(&text, request.add_special_tokens.unwrap_or(true))
                .map_err(|e| ApiError::bad(e.to_string()).with_param("prompt"))?,
            (None, Some(messages)) => chat::encode(&site, messages, &Map::new())?,
            _ => return Err(ApiError::bad("give either prompt or messages").with_param("prompt")),
        };
        let max = site.options.context;
        Ok(Json(json!({"count": tokens.len(), "max_model_len": max, "tokens": tokens})))
    })
    .await
}

#[derive(Debug, Deserialize)]
struct Detokenize {
    tokens: Vec<u32>,
}

pub(crate) async fn detokenize(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let request: Detokenize = read(&object(&headers, body)?)?;
    aside(move || {
        if let Some(token) = request.tokens.iter().find(|&&t| t as usize >= site.vocab_size) {
            let message = format!("token {token} is not in the vocabulary of {}", site.vocab_size);
            return Err(ApiError::bad(message).with_param("tokens"));
        }
        let text = site.tokenizer.decode(&request.tokens).map_err(|e| ApiError::bad(e.to_string()))?;
        Ok(Json(json!({ "prompt": text })))
    })
    .await
}
