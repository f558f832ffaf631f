//! Names what a JSON value is, for messages.

use serde_json::Value;

/// Names the kind of a value: `a string`, `a list`.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Lists the first keys of an object.
pub(crate) fn keys(value: &Value) -> String {
    let names: Vec<String> =
        value.as_object().into_iter().flat_map(|o| o.keys()).take(8).map(|k| format!("{k:?}")).collect();
    if names.is_empty() { "an empty object".to_owned() } else { names.join(", ") }
}
