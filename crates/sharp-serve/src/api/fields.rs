//! The fields of a request. Each is taken out once, by its JSON type; what nobody took is refused.

use serde_json::{Map, Value};
use sharp_schema::suggest;

use super::error::ApiError;

/// Fields of OpenAI's API that ask for nothing in an answer: who asks, and what is kept about it.
const HARMLESS: [&str; 8] = [
    "user",
    "safety_identifier",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "cache_prompt",
];

/// What llama.cpp's server and transformers call fields of this one, beyond the reach of a slip.
const ELSEWHERE: [(&str, &str); 3] =
    [("repeat_penalty", "repetition_penalty"), ("n_predict", "max_tokens"), ("max_new_tokens", "max_tokens")];

/// Integers beyond it are not all whole numbers of their own in a JSON number with a fraction (2^53).
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Characters of a value that a message shows.
const SHOWN: usize = 40;

/// The fields of a JSON object that nobody took yet; `null` is as good as nothing.
#[derive(Debug)]
pub(crate) struct Fields {
    /// What stands before the names in messages: nothing, or `stream_options.`.
    path: String,
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Reads a request's body.
    pub(crate) fn new(body: Map<String, Value>) -> Self {
        Self { path: String::new(), left: body, known: Vec::new() }
    }

    /// Takes a field whose type its caller checks.
    pub(crate) fn value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field and reads it; `rule` says what it has to be.
    fn read<T>(
        &mut self,
        name: &'static str,
        rule: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(wrong(&format!("{}{name}", self.path), &value, rule)),
        }
    }

    /// Takes a text.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        self.read(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// Takes a switch.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// Takes a number.
    pub(crate) fn number(&mut self, name: &'static str) -> Result<Option<f32>, ApiError> {
        self.read(name, "a number within 3e38", number)
    }

    /// Takes a whole number of either sign.
    pub(crate) fn whole(&mut self, name: &'static str) -> Result<Option<i128>, ApiError> {
        self.read(name, "a whole number", whole)
    }

    /// Takes a whole number from 0.
    pub(crate) fn count(&mut self, name: &'static str) -> Result<Option<usize>, ApiError> {
        self.read(name, "a whole number from 0", |value| usize::try_from(whole(value)?).ok())
    }

    /// Takes a limit on tokens, which some clients write as -1 for none.
    pub(crate) fn limit(&mut self, name: &'static str) -> Result<Option<usize>, ApiError> {
        let rule = "a whole number from 0; leave it out for no limit of your own";
        self.read(name, rule, |value| usize::try_from(whole(value)?).ok())
    }

    /// Takes an object whose keys are the client's own.
    pub(crate) fn object(&mut self, name: &'static str) -> Result<Option<Map<String, Value>>, ApiError> {
        self.read(name, "an object", |value| value.as_object().cloned())
    }

    /// Takes an object with fields of its own.
    pub(crate) fn inner(&mut self, name: &'static str) -> Result<Option<Self>, ApiError> {
        let path = format!("{}{name}.", self.path);
        Ok(self.object(name)?.map(|left| Self { path, left, known: Vec::new() }))
    }

    /// Refuses a field that would change the answer and that this server has not. Values that ask for nothing
    /// pass: those in `idle`, `false` and what is empty.
    pub(crate) fn refuse(&mut self, name: &'static str, idle: &[Value]) -> Result<(), ApiError> {
        let nothing = match self.left.remove(name) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Array(list)) if list.is_empty() => true,
            Some(Value::Object(map)) if map.is_empty() => true,
            Some(Value::String(text)) if text.is_empty() => true,
            Some(value) => idle.contains(&value),
        };
        if nothing {
            return Ok(());
        }
        Err(ApiError::bad(format!("{name} is not supported by this server; leave it out"))
            .with_code("unsupported_parameter")
            .with_param(name))
    }

    /// Refuses what is left: a field that is not read would change nothing, and its writer would not know.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let unknown =
            self.left.iter().find(|(name, value)| !value.is_null() && !HARMLESS.contains(&name.as_str()));
        let Some((name, _)) = unknown else { return Ok(()) };
        let shown: String = name.chars().take(SHOWN).collect();
        let full = format!("{}{shown}", self.path);
        let here = ELSEWHERE.iter().find(|(there, here)| *there == shown && self.known.contains(here));
        let hint = suggest::hint(here.map_or(shown.as_str(), |(_, here)| here), &self.known);
        let message = format!("unknown field `{full}`{hint}");
        Err(ApiError::bad(message).with_code("unknown_parameter").with_param(full))
    }
}

/// Reads a whole number. One with a fraction of zero is one too, as JSON has but one kind of number.
pub(crate) fn whole(value: &Value) -> Option<i128> {
    let exact = |f: &f64| f.fract() == 0.0 && f.abs() <= EXACT;
    let integer = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    integer.or_else(|| value.as_f64().filter(exact).map(|f| f as i128))
}

/// Reads the tokens of a list at `path`.
pub(crate) fn tokens(path: &str, list: &[Value]) -> Result<Vec<u32>, ApiError> {
    let token = |(i, value): (usize, &Value)| {
        let id = whole(value).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong(&format!("{path}[{i}]"), value, "a token: a whole number from 0"))
    };
    list.iter().enumerate().map(token).collect()
}

/// Reads a number that a 32-bit float can hold.
pub(crate) fn number(value: &Value) -> Option<f32> {
    value.as_f64().map(|f| f as f32).filter(|f| f.is_finite())
}

/// Says that the value at `path` is of another kind than it has to be.
pub(crate) fn wrong(path: &str, value: &Value, rule: &str) -> ApiError {
    // OpenAI names the field of the body, not the place in its list.
    let field = path.split('[').next().unwrap_or(path);
    ApiError::bad(format!("{path} is {}; it has to be {rule}", kind(value))).with_param(field)
}

/// Names a value by JSON's types: `the string "4"`, `an array`.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() <= SHOWN => format!("the string {text:?}"),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
    }
}
