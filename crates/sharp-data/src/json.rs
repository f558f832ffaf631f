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

/// Lists the first keys of an object, with what is null of them.
pub(crate) fn keys(value: &Value) -> String {
    let name = |(key, value): (&String, &Value)| match value {
        Value::Null => format!("{key:?} (null; leave the row out)"),
        _ => format!("{key:?}"),
    };
    let names: Vec<String> = value.as_object().into_iter().flatten().take(8).map(name).collect();
    if names.is_empty() { "an empty object".to_owned() } else { names.join(", ") }
}
