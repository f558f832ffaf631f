//! Methods of Python's strings, lists and dicts, and jinja2's tests, where the template engine has none or
//! other ones.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

type Result<T> = std::result::Result<T, Error>;

/// Calls a method of a value as Python would; for `Environment::set_unknown_method_callback`.
pub(crate) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value> {
    let own = match value.kind() {
        ValueKind::String => value.as_str().map(|text| of_string(state, text, method, args)),
        ValueKind::Seq => Some(of_list(value, method, args)),
        ValueKind::Map if method == "copy" => Some(from_args(args).map(|()| Some(value.clone()))),
        _ => None,
    };
    match own.transpose()?.flatten() {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Says whether jinja2 calls a value a sequence: it has a length and items, so texts and dicts are.
pub(crate) fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
}

/// Says whether jinja2 calls a value iterable.
pub(crate) fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || value.kind() == ValueKind::Iterable
}

fn of_string(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>> {
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let (at,): (&str,) = from_args(args)?;
            let parts = match separated(at)?.then(|| text.split_once(at)).flatten() {
                Some((before, after)) => [before, at, after],
                None => [text, "", ""],
            };
            parts.into_iter().map(Value::from).collect()
        }
        "rpartition" => {
            let (at,): (&str,) = from_args(args)?;
            let parts = match separated(at)?.then(|| text.rsplit_once(at)).flatten() {
                Some((before, after)) => [before, at, after],
                None => ["", "", text],
            };
            parts.into_iter().map(Value::from).collect()
        }
        "rsplit" => {
            let (at, most): (Option<&str>, Option<i64>) = from_args(args)?;
            rsplit(text, at, most.and_then(|n| usize::try_from(n).ok()))?
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "title" => {
            let () = from_args(args)?;
            let mut inside = false;
            let cased = |c: char| -> String {
                let first = !std::mem::replace(&mut inside, c.is_alphabetic());
                if first { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
            };
            Value::from(text.chars().map(cased).collect::<String>())
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "index" => {
            let (what,): (&str,) = from_args(args)?;
            let at = text.find(what).ok_or_else(|| invalid("substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let sign = if text.starts_with(['+', '-']) { 1 } else { 0 };
            let zeros = fill(state, text, width, "0")?;
            Value::from(format!("{}{zeros}{}", &text[..sign], &text[sign..]))
        }
        "ljust" | "rjust" | "center" => {
            let (width, with): (usize, Option<&str>) = from_args(args)?;
            let filling = fill(state, text, width, with.unwrap_or(" "))?;
            let n = filling.chars().count();
            // Python puts the odd one before the text where the width is odd.
            let left = match method {
                "ljust" => 0,
                "rjust" => n,
                _ => n / 2 + (n & width & 1),
            };
            let split = filling.char_indices().nth(left).map_or(filling.len(), |(i, _)| i);
            Value::from(format!("{}{text}{}", &filling[..split], &filling[split..]))
        }
        _ => return Ok(None),
    }))
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>> {
    match method {
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            for (i, item) in value.try_iter()?.checked().enumerate() {
                if item? == *what {
                    return Ok(Some(Value::from(i)));
                }
            }
            Err(invalid(format!("{what} is not in the list")))
        }
        _ => Ok(None),
    }
}

/// Splits from the right, at most `most` times.
fn rsplit(text: &str, at: Option<&str>, most: Option<usize>) -> Result<Value> {
    let mut parts = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let text = if at.is_none() { text.trim_end() } else { text };
        if most.is_some_and(|most| parts.len() >= most) {
            parts.push(text);
            break;
        }
        let split = match at {
            Some(at) => separated(at)?.then(|| text.rsplit_once(at)).flatten(),
            None => text.rsplit_once(char::is_whitespace),
        };
        parts.push(split.map_or(text, |(_, last)| last));
        rest = split.map(|(before, _)| before);
    }
    if at.is_none() {
        parts.retain(|part| !part.is_empty());
    }
    Ok(parts.into_iter().rev().map(Value::from).collect())
}

/// Checks a separator, which Python refuses where it is empty.
fn separated(at: &str) -> Result<bool> {
    if at.is_empty() { Err(invalid("empty separator")) } else { Ok(true) }
}

/// Returns what brings a text to a width, paid for before it is made.
fn fill(state: &State, text: &str, width: usize, with: &str) -> Result<String> {
    let n = width.saturating_sub(text.chars().count());
    if with.chars().count() != 1 {
        return Err(invalid("the fill character must be exactly one character long"));
    }
    state.consume_fuel((n / 16) as u64)?;
    Ok(with.repeat(n))
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}
