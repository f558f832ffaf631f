//! The fields of a request. Each is taken out once, by its JSON type; what nobody took is refused.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
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

/// Fields that an object may have; this server knows some thirty.
const MOST_FIELDS: usize = 256;

/// Values that a field may hold, those within its lists and objects included. In memory each takes many
/// times the bytes that it has in a body.
const MOST_VALUES: usize = 100_000;

/// The fields of a JSON object that nobody took yet, as they are written; `null` is as good as nothing.
#[derive(Debug)]
pub(crate) struct Fields {
    /// What stands before the names in messages: nothing, or `stream_options.`.
    path: String,
    left: Vec<(String, Box<RawValue>)>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Reads a request's body.
    pub(crate) fn new(body: &[u8]) -> Result<Self, ApiError> {
        let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
        let left = match first {
            None => return Err(ApiError::bad("the body is empty; it has to be a JSON object")),
            Some(b'{') => object(body)?,
            Some(b'[') => {
                serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(|e| no_json(&e))?;
                return Err(ApiError::bad("the body is an array; it has to be a JSON object"));
            }
            Some(_) => {
                let other: Value = serde_json::from_slice(body).map_err(|e| no_json(&e))?;
                let message = format!("the body is {}; it has to be a JSON object", kind(&other));
                return Err(ApiError::bad(message));
            }
        };
        Ok(Self { path: String::new(), left, known: Vec::new() })
    }

    fn remove(&mut self, name: &str) -> Option<Box<RawValue>> {
        let at = self.left.iter().position(|(other, _)| other == name)?;
        Some(self.left.remove(at).1).filter(|raw| raw.get() != "null")
    }

    /// Takes a field as it is written.
    pub(crate) fn raw(&mut self, name: &'static str) -> Option<Box<RawValue>> {
        self.known.push(name);
        self.remove(name)
    }

    /// Takes a field whose type its caller checks.
    pub(crate) fn value(&mut self, name: &'static str) -> Result<Option<Value>, ApiError> {
        let raw = self.raw(name);
        raw.map(|raw| open(&format!("{}{name}", self.path), &raw)).transpose()
    }

    /// Takes a field and reads it; `rule` says what it has to be.
    fn read<T>(
        &mut self,
        name: &'static str,
        rule: &str,
        read: impl FnOnce(Value) -> Result<T, Value>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name)? else { return Ok(None) };
        read(value).map(Some).map_err(|value| wrong(&format!("{}{name}", self.path), &value, rule))
    }

    /// Takes a text.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        self.read(name, "a string", |value| match value {
            Value::String(text) => Ok(text),
            other => Err(other),
        })
    }

    /// Takes a switch.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", |value| value.as_bool().ok_or(value))
    }

    /// Takes a number.
    pub(crate) fn number(&mut self, name: &'static str) -> Result<Option<f32>, ApiError> {
        self.read(name, "a number within 3e38", |value| number(&value).ok_or(value))
    }

    /// Takes a whole number of either sign.
    pub(crate) fn whole(&mut self, name: &'static str) -> Result<Option<i128>, ApiError> {
        self.read(name, "a whole number", |value| whole(&value).ok_or(value))
    }

    /// Takes a whole number from 0.
    pub(crate) fn count(&mut self, name: &'static str) -> Result<Option<usize>, ApiError> {
        self.read(name, "a whole number from 0", |value| count(&value).ok_or(value))
    }

    /// Takes a limit on tokens; -1, as some clients write it, is none.
    pub(crate) fn limit(&mut self, name: &'static str) -> Result<Option<usize>, ApiError> {
        let rule = "a whole number from 0, or -1 for no limit of your own";
        self.read(name, rule, |value| match whole(&value) {
            Some(-1) => Ok(usize::MAX),
            _ => count(&value).ok_or(value),
        })
    }

    /// Takes an object whose keys are the client's own.
    pub(crate) fn object(&mut self, name: &'static str) -> Result<Option<Map<String, Value>>, ApiError> {
        self.read(name, "an object", |value| match value {
            Value::Object(map) => Ok(map),
            other => Err(other),
        })
    }

    /// Takes an object with fields of its own.
    pub(crate) fn inner(&mut self, name: &'static str) -> Result<Option<Self>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let at = format!("{}{name}", self.path);
        if !raw.get().starts_with('{') {
            return Err(wrong(&at, &open(&at, &raw)?, "an object"));
        }
        let left = object(raw.get().as_bytes())?;
        Ok(Some(Self { path: format!("{at}."), left, known: Vec::new() }))
    }

    /// Refuses a field that would change the answer and that this server has not. Values that ask for nothing
    /// pass: those in `idle`, `false` and what is empty.
    pub(crate) fn refuse(&mut self, name: &'static str, idle: &[Value]) -> Result<(), ApiError> {
        let value = self.remove(name).map(|raw| open(name, &raw)).transpose()?;
        let nothing = match value {
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
            self.left.iter().find(|(name, raw)| raw.get() != "null" && !HARMLESS.contains(&name.as_str()));
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

fn count(value: &Value) -> Option<usize> {
    usize::try_from(whole(value)?).ok()
}

/// Reads the fields of an object; of several with one name the last counts.
fn object(json: &[u8]) -> Result<Vec<(String, Box<RawValue>)>, ApiError> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<(String, Box<RawValue>)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Self::Value::new();
            while let Some((name, raw)) = map.next_entry::<String, Box<RawValue>>()? {
                entries.retain(|(other, _)| *other != name);
                if entries.len() == MOST_FIELDS {
                    return Err(A::Error::custom(format!("an object with more than {MOST_FIELDS} fields")));
                }
                entries.push((name, raw));
            }
            Ok(entries)
        }
    }
    let mut json = serde_json::Deserializer::from_slice(json);
    let entries = json.deserialize_map(Entries).map_err(|e| no_json(&e))?;
    json.end().map_err(|e| no_json(&e))?;
    Ok(entries)
}

/// Says why a text is no JSON, or none that this server reads.
fn no_json(error: &serde_json::Error) -> ApiError {
    let what = error.to_string();
    if error.is_data() {
        return ApiError::bad(format!("the body is not what this server reads: {what}"));
    }
    // Languages with texts of 16-bit units write one where they cut a text within a character.
    let half = if what.contains("hex escape") {
        "; an escape \\uD800 to \\uDFFF is half of a character (a surrogate) and needs its other half"
    } else {
        ""
    };
    ApiError::bad(format!("the body is no JSON: {what}{half}"))
}

/// Reads the value at `path`.
pub(crate) fn open(path: &str, raw: &RawValue) -> Result<Value, ApiError> {
    let field = path.split('[').next().unwrap_or(path);
    if values(raw.get()) > MOST_VALUES {
        let message = format!("{path} holds more than the {MOST_VALUES} values that this server takes");
        return Err(ApiError::bad(message).with_param(field));
    }
    serde_json::from_str(raw.get()).map_err(|e| no_json(&e).with_param(field))
}

/// Counts the values of a JSON text, or some more.
fn values(json: &str) -> usize {
    let (mut values, mut quoted, mut escaped) = (1, false, false);
    for byte in json.bytes() {
        if quoted {
            quoted = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else {
            quoted = byte == b'"';
            values += usize::from(matches!(byte, b',' | b'[' | b'{'));
        }
    }
    values
}

/// Calls `f` with the number and the text of each element of a list, one after the other. Returns false
/// where `raw` is no list.
pub(crate) fn each(
    raw: &RawValue,
    f: &mut dyn FnMut(usize, &RawValue) -> Result<(), ApiError>,
) -> Result<bool, ApiError> {
    struct Elements<'a> {
        f: &'a mut dyn FnMut(usize, &RawValue) -> Result<(), ApiError>,
        failed: &'a mut Option<ApiError>,
    }
    impl<'de> Visitor<'de> for Elements<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
            let mut i = 0;
            while let Some(element) = list.next_element::<&RawValue>()? {
                if let Err(error) = (self.f)(i, element) {
                    *self.failed = Some(error);
                    return Err(A::Error::custom("refused"));
                }
                i += 1;
            }
            Ok(())
        }
    }
    if !raw.get().starts_with('[') {
        return Ok(false);
    }
    let mut failed = None;
    let mut json = serde_json::Deserializer::from_str(raw.get());
    let read = json.deserialize_seq(Elements { f, failed: &mut failed });
    match failed {
        Some(error) => Err(error),
        None => read.map(|()| true).map_err(|e| no_json(&e)),
    }
}

/// Reads the token at `path`.
pub(crate) fn token(path: &str, raw: &RawValue) -> Result<u32, ApiError> {
    if let Ok(id) = raw.get().parse() {
        return Ok(id);
    }
    let value = open(path, raw)?;
    let id = whole(&value).and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| wrong(path, &value, "a token: a whole number from 0"))
}

/// Reads the tokens of a list at `path`, at most `most`; `None` where it is no list.
pub(crate) fn tokens(path: &str, raw: &RawValue, most: usize) -> Result<Option<Vec<u32>>, ApiError> {
    let mut all = Vec::new();
    let list = each(raw, &mut |i, raw| {
        if i == most {
            return Err(too_many(path, most));
        }
        all.push(token(&format!("{path}[{i}]"), raw)?);
        Ok(())
    })?;
    Ok(list.then_some(all))
}

/// Says that there are more tokens at `path` than the context holds.
pub(crate) fn too_many(path: &str, context: usize) -> ApiError {
    let field = path.split('[').next().unwrap_or(path);
    ApiError::bad(format!("{path} has more than {context} tokens, which is this server's context"))
        .with_code("context_length_exceeded")
        .with_param(field)
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
