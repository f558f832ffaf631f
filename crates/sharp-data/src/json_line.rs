//! One JSON line of a file, and what is wrong with it in words that help.

use serde_json::Value;

/// Parses a line.
///
/// # Errors
/// What was found, where in the line, and what to do.
pub(crate) fn parse(line: &str) -> Result<Value, String> {
    serde_json::from_str(line).map_err(|e| explain(line, &e))
}

/// Says why a row is no object.
pub(crate) fn not_an_object(value: &Value) -> String {
    let found = crate::json::kind(value);
    let hint = match value {
        Value::Array(_) => {
            "; a file of JSON lines has one object a line: `jq -c '.[]' FILE` makes it of a list"
        }
        _ => "",
    };
    format!("expected a JSON object, found {found}{hint}")
}

fn explain(line: &str, e: &serde_json::Error) -> String {
    let (column, said) = (e.column(), bare(e));
    if let Some(word) = not_a_number(line, column) {
        return format!(
            "not JSON at column {column}: {word}, which Python's json.dumps writes for a number that is none; \
             write null in its place (pandas' to_json does, and json.dumps refuses it with allow_nan=False)"
        );
    }
    if said.contains("surrogate") || said.contains("hex escape") {
        return format!(
            "not JSON at column {column}: half of a surrogate pair (such as \\ud83d), which is no character: an \
             emoji was cut in two; take it out (jq and pandas write U+FFFD in its place)"
        );
    }
    if e.is_eof() {
        let filter = if line.trim_start().starts_with('[') { ".[]" } else { "." };
        return format!(
            "not JSON at column {column}, where the line ends within a value: the file is cut off, or is a list or \
             objects over several lines, where one object a line is wanted (JSON lines: \
             `jq -c '{filter}' FILE` makes them)"
        );
    }
    format!("not JSON at column {column}: {said}")
}

/// Finds the word at a column that JavaScript and Python know as a number and JSON does not.
fn not_a_number(line: &str, column: usize) -> Option<&'static str> {
    // The parser stops at the word, within it, or after its sign.
    let near = |at: usize, word: &str| at < column.max(1) && column <= at + word.len() + 1;
    ["-Infinity", "Infinity", "NaN"]
        .into_iter()
        .find(|word| line.match_indices(word).any(|(at, _)| near(at, word)))
}

/// Returns serde_json's message without its "at line 1 column 5": the line would be that of the row.
fn bare(e: &serde_json::Error) -> String {
    let text = e.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_says_what_was_found_and_what_to_do() {
        for (line, words) in [
            (r#"{"text": "NaN and Infinity", "score": NaN}"#, ["column 39: NaN", "null"]),
            (r#"{"score": -Infinity, "text": "a"}"#, ["-Infinity", "allow_nan"]),
            (r#"{"score": Infinity}"#, [": Infinity", "null"]),
            (r#"{"text": "cut \ud83d"}"#, ["surrogate", "take it out"]),
            (r#"{"text": "cut \ud83d\n"}"#, ["surrogate", "emoji"]),
            ("[\n", ["one object a line", "jq -c '.[]'"]),
            ("{\n", ["one object a line", "jq -c '.'"]),
            (r#"{"text": "cut"#, ["cut off", "one object a line"]),
            (r#"{"text": NaX}"#, ["column 10", "expected"]),
            (r#"{"NaN": "a", "b" 3}"#, ["column 18", "expected `:`"]),
        ] {
            let text = parse(line).unwrap_err();
            assert!(words.iter().all(|word| text.contains(word)), "{line}: {text}");
            assert!(!text.contains("at line"), "{text}");
        }
        assert!(not_an_object(&serde_json::json!([{}])).contains("a list; a file of JSON lines"));
        assert!(!not_an_object(&Value::Null).contains("jq"));
    }
}
