//! Messages that call tools, as OpenAI's API has them, and as chat templates read them.

use serde_json::{Map, Value};

/// Gives a message a content that has none beside calls: none, or an empty text.
pub(crate) fn set_content(message: &mut Map<String, Value>, none: bool) {
    let there = |name: &str| message.get(name).is_some_and(|value| !value.is_null());
    if !there("content") && (there("tool_calls") || there("function_call")) {
        let content = if none { Value::Null } else { Value::String(String::new()) };
        message.insert("content".into(), content);
    }
}

/// Returns the messages with the arguments of calls as objects where they are JSON text; `None` where no call
/// has such.
pub(crate) fn with_objects(messages: &Value) -> Option<Value> {
    let mut messages = messages.clone();
    let mut changed = false;
    for message in messages.as_array_mut()?.iter_mut().filter_map(Value::as_object_mut) {
        let (mut calls, mut single) = (Vec::new(), None);
        for (name, value) in message.iter_mut() {
            match name.as_str() {
                "tool_calls" => calls.extend(value.as_array_mut().into_iter().flatten()),
                "function_call" => single = Some(value),
                _ => {}
            }
        }
        for call in calls.into_iter().chain(single) {
            // The function stands within the call; in older ones it is the call.
            let within = call.get("function").is_some();
            let function = if within { call.get_mut("function") } else { Some(call) };
            let Some(arguments) = function.and_then(|function| function.get_mut("arguments")) else {
                continue;
            };
            let Some(Ok(object @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str) else {
                continue;
            };
            *arguments = object;
            changed = true;
        }
    }
    changed.then_some(messages)
}
