//! The small endpoints.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Map, Value, json};

use super::body::Received;
use super::error::ApiError;
use super::fields::{self, wrong};
use super::{Site, aside, chat};

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

pub(crate) async fn tokenize(
    State(site): State<Arc<Site>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let arrived = Instant::now();
    let mut body = Received::new(&site, request).await?;
    aside(&site, arrived, move |site| {
        let mut fields = body.fields()?;
        site.check_model(fields.text("model")?.as_deref())?;
        let prompt = fields.text("prompt")?;
        let messages = fields.value("messages")?;
        let add_special = fields.flag("add_special_tokens")?;
        // Clients that send it with every request say false here.
        fields.refuse("stream", &[])?;
        fields.finish()?;
        let tokens = match (prompt, messages) {
            (Some(text), None) => site.encode(&text, add_special.unwrap_or(true), "prompt")?,
            (None, Some(messages)) => chat::encode(site, messages, &Map::new())?,
            _ => return Err(ApiError::bad("give either prompt or messages").with_param("prompt")),
        };
        let max = site.options.context;
        Ok(Json(json!({"count": tokens.len(), "max_model_len": max, "tokens": tokens})))
    })
    .await
}

pub(crate) async fn detokenize(
    State(site): State<Arc<Site>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let arrived = Instant::now();
    let mut body = Received::new(&site, request).await?;
    aside(&site, arrived, move |site| {
        let mut fields = body.fields()?;
        site.check_model(fields.text("model")?.as_deref())?;
        let Some(raw) = fields.raw("tokens") else {
            let message = "tokens is missing; it has to be an array of tokens";
            return Err(ApiError::bad(message).with_param("tokens"));
        };
        let Some(tokens) = fields::tokens("tokens", &raw, site.options.context)? else {
            return Err(wrong("tokens", &fields::open("tokens", &raw)?, "an array of tokens"));
        };
        // Clients that send it with every request say false here.
        fields.refuse("stream", &[])?;
        fields.finish()?;
        site.check_tokens(&tokens, "tokens")?;
        let text = site.tokenizer.decode(&tokens).map_err(|e| ApiError::bad(e.to_string()))?;
        Ok(Json(json!({ "prompt": text })))
    })
    .await
}
