//! JSON as Python's `json.dumps` writes it, which is what chat templates were made with.

use serde_json::Value;

/// The arguments of `json.dumps`.
#[derive(Debug, Default)]
pub(crate) struct Style {
    pub(crate) indent: Option<usize>,
    pub(crate) ascii: bool,
    pub(crate) sort_keys: bool,
    /// Between items, and between key and value.
    pub(crate) separators: Option<[String; 2]>,
}

pub(crate) fn write(value: &Value, style: &Style) -> String {
    let mut out = String::new();
    write_value(value, style, 0, &mut out);
    out
}

fn write_value(value: &Value, style: &Style, depth: usize, out: &mut String) {
    let default = [if style.indent.is_some() { "," } else { ", " }, ": "];
    let [comma, colon] = match &style.separators {
        Some([a, b]) => [a.as_str(), b.as_str()],
        None => default,
    };
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth).min(1024)));
        }
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(comma);
                }
                line(depth + 1, out);
                write_value(item, style, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        Value::Object(map) if !map.is_empty() => {
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|(k, _)| *k);
            }
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push_str(comma);
                }
                line(depth + 1, out);
                write_string(key, style.ascii, out);
                out.push_str(colon);
                write_value(item, style, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        Value::String(s) => write_string(s, style.ascii, out),
        // Numbers, true, false, null, [] and {} are the same in both.
        other => out.push_str(&other.to_string()),
    }
}

fn write_string(s: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ascii && !c.is_ascii()) || (ascii && c == '\u{7f}') => {
                if ascii && c == '\u{7f}' {
                    out.push(c);
                    continue;
                }
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
