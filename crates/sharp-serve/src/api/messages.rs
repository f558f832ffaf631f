//! The messages of a conversation, from what OpenAI's clients send to what chat templates read.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::wrong;

/// Returns the messages as templates want them: content as one text, the role `developer` under its older
/// name.
pub(crate) fn normalise(messages: Value) -> Result<Value, ApiError> {
    let list = match messages {
        Value::Array(list) => list,
        other => return Err(wrong("messages", &other, "an array of messages")),
    };
    if list.is_empty() {
        return Err(ApiError::bad("there are no messages").with_param("messages"));
    }
    let mut all = Vec::with_capacity(list.len());
    for (i, message) in list.into_iter().enumerate() {
        let path = format!("messages[{i}]");
        let mut message = match message {
            Value::Object(message) => message,
            other => return Err(wrong(&path, &other, "an object with role and content")),
        };
        // Without one the template decides what stands for it.
        let content = content(&path, &message)?.map_or(Value::Null, Value::String);
        message.insert("content".into(), content);
        if message.get("role").is_some_and(|role| role == "developer") {
            message.insert("role".into(), json!("system"));
        }
        all.push(Value::Object(message));
    }
    Ok(Value::Array(all))
}

/// Returns what a message says, `None` where it calls tools instead, after a look at its role and its calls.
fn content(path: &str, message: &Map<String, Value>) -> Result<Option<String>, ApiError> {
    let field = |name: &str| message.get(name).filter(|value| !value.is_null());
    let assistant = match field("role") {
        Some(Value::String(role)) => role == "assistant",
        Some(other) => return Err(wrong(&format!("{path}.role"), other, "a string")),
        None => return Err(ApiError::bad(format!("{path} has no role")).with_param("messages")),
    };
    if let Some(other) = field("tool_calls").filter(|calls| !calls.is_array()) {
        return Err(wrong(&format!("{path}.tool_calls"), other, "an array of calls"));
    }
    let calls = field("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
    let at = format!("{path}.content");
    match field("content") {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) => {
            let pieces = parts.iter().enumerate().map(|(i, part)| piece(&format!("{at}[{i}]"), part));
            pieces.collect::<Result<_, _>>().map(Some)
        }
        Some(other) => Err(wrong(&at, other, "a string or an array of parts")),
        // OpenAI's own answers have no content beside calls or a refusal, and clients send them back.
        None if assistant => match field("refusal").and_then(Value::as_str) {
            Some(refusal) => Ok(Some(refusal.to_owned())),
            None if calls || field("function_call").is_some() => Ok(None),
            None => {
                let message = format!("{at} is missing; only beside tool_calls or a refusal may it be");
                Err(ApiError::bad(message).with_param("messages"))
            }
        },
        None => {
            let found = if message.contains_key("content") { "null" } else { "missing" };
            let message = format!("{at} is {found}; it has to be a string or an array of parts");
            Err(ApiError::bad(message).with_param("messages"))
        }
    }
}

/// Returns the text of one part of a content.
fn piece(path: &str, part: &Value) -> Result<String, ApiError> {
    let name = match part.get("type").and_then(Value::as_str) {
        Some(name @ ("text" | "refusal")) => name,
        found => {
            let found = found.map_or("no type".to_owned(), |found| format!("the type {found:?}"));
            let message = format!("{path} has {found}; this server understands parts of type \"text\" only");
            return Err(ApiError::bad(message).with_param("messages"));
        }
    };
    match part.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => Err(wrong(&format!("{path}.{name}"), other.unwrap_or(&Value::Null), "a string")),
    }
}
