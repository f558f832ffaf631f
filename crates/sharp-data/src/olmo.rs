//! Evaluation requests as OLMo's packages store them: one row per question and answer choice.

use std::borrow::Cow;

use serde_json::Value;

use crate::document::{Document, text_key};

/// Rows from this document number on repeat the choices without their question (for a normalisation that is
/// not used here).
pub(crate) const FIRST_UNCONDITIONAL: u64 = 1_000_000;

/// One row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) doc_id: u64,
    pub(crate) idx: usize,
    pub(crate) gold: usize,
    pub(crate) context: String,
    pub(crate) continuation: String,
    doc: Value,
}

/// Whether a JSON object is such a row.
pub(crate) fn is_row(value: &Value) -> bool {
    value.get("request").is_some() && value.get("doc").is_some() && value.get("doc_id").is_some()
}

impl Row {
    /// Takes a row apart; the error says what is missing or wrong.
    pub(crate) fn new(mut value: Value) -> Result<Row, String> {
        let doc_id = value.get("doc_id").and_then(Value::as_u64).ok_or("\"doc_id\" is not a whole number")?;
        let idx = value.get("idx").map_or(Some(0), Value::as_u64).ok_or("\"idx\" is not a whole number")?;
        let idx = usize::try_from(idx).map_err(|_| "\"idx\" is out of range")?;
        let request = value.get("request").ok_or("\"request\" is missing")?;
        let field = |name: &str| -> Result<String, String> {
            match request.get(name) {
                Some(Value::String(s)) => Ok(s.clone()),
                Some(_) => Err(format!("\"request.{name}\" is not a string")),
                None => Err(format!("\"request.{name}\" is missing")),
            }
        };
        let (context, continuation) = (field("context")?, field("continuation")?);
        if continuation.is_empty() {
            return Err("\"request.continuation\" is empty".into());
        }
        let doc = value.get_mut("doc").map(Value::take).ok_or("\"doc\" is missing")?;
        let label = doc
            .get("gold")
            .or_else(|| value.get("label"))
            .ok_or("there is no \"doc.gold\" and no \"label\"")?;
        let gold =
            choice_index(label).ok_or_else(|| format!("the label {label} is not the number of a choice"))?;
        Ok(Row { doc_id, idx, gold, context, continuation, doc })
    }

    /// Whether the row repeats a choice without its question.
    pub(crate) fn unconditional(&self) -> bool {
        self.doc_id >= FIRST_UNCONDITIONAL
    }

    fn doc_str(&self, name: &str) -> Option<&str> {
        self.doc.get(name).and_then(Value::as_str)
    }

    /// Returns the two halves of a cloze sentence and its options (WinoGrande), where the row has them.
    fn cloze(&self) -> Option<(&str, &str, [&str; 2])> {
        let (before, after) = self.doc_str("sentence")?.split_once('_')?;
        Some((before, after, [self.doc_str("option1")?, self.doc_str("option2")?]))
    }

    /// Returns the context without examples before it. The stored context is examples and then the query,
    /// except where the query is stored without its frame; there it is taken as it stands.
    pub(crate) fn zero_shot_context(&self) -> Cow<'_, str> {
        if let Some((before, _, options)) = self.cloze()
            && let Some(option) = options.get(self.idx)
        {
            return Cow::Owned(format!("{before}{option}"));
        }
        match self.doc_str("query") {
            Some(query) if !query.is_empty() && self.context.ends_with(query) => Cow::Borrowed(query),
            _ => Cow::Borrowed(&self.context),
        }
    }

    /// Returns the question with its right answer, zero-shot; questions about one subject, or with one and
    /// the same prompt, are one group.
    pub(crate) fn completion(&self) -> Result<Document, String> {
        if let Some((before, after, options)) = self.cloze() {
            let option = options
                .get(self.gold)
                .ok_or_else(|| format!("the right answer is choice {} of {}", self.gold, options.len()))?;
            // The blank's two readings share the sentence's second half, so they are one group.
            return Ok(Document {
                group: Some(text_key([before, after].into_iter())),
                ..Document::pair(format!("{before}{option}"), after)
            });
        }
        let choices = self.doc.get("choices").and_then(Value::as_array);
        let completion = match choices {
            Some(choices) => {
                let choice = choices.get(self.gold).and_then(Value::as_str).ok_or_else(|| {
                    format!("the right answer is choice {} of {}", self.gold, choices.len())
                })?;
                format!(" {choice}")
            }
            None if self.gold == self.idx => self.continuation.clone(),
            None => return Err("there are no \"doc.choices\" to take the right answer from".into()),
        };
        let prompt = self.zero_shot_context().into_owned();
        let group = text_key([passage_of(&prompt).map_or(prompt.as_str(), subject)].into_iter());
        Ok(Document { group: Some(group), ..Document::pair(prompt, completion) })
    }

    /// Returns the passage the question is about.
    pub(crate) fn passage(&self) -> Option<&str> {
        passage_of(self.doc_str("query")?)
    }
}

/// Returns what stands before the last `"\nQuestion:"`, if that is anything.
fn passage_of(query: &str) -> Option<&str> {
    let (passage, _) = query.rsplit_once("\nQuestion:")?;
    let passage = passage.trim();
    (!passage.is_empty()).then_some(passage)
}

/// Returns what passages share that a split keeps together: the title where one begins `Title -- `, as
/// BoolQ's do, since passages of one article overlap; else the passage itself.
pub(crate) fn subject(passage: &str) -> &str {
    let first = passage.lines().next().unwrap_or_default();
    match first.split_once(" -- ") {
        Some((title, _)) if !title.trim().is_empty() => title.trim(),
        _ => passage.trim(),
    }
}

/// Returns the number of a choice, however it is written: `2`, `"2"` or `"C"`.
fn choice_index(label: &Value) -> Option<usize> {
    match label {
        Value::Number(n) => n.as_u64().and_then(|n| usize::try_from(n).ok()),
        Value::String(s) => match s.trim().as_bytes() {
            [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
            _ => s.trim().parse().ok(),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn passages_of_one_article_share_a_subject() {
        assert_eq!(subject("Persian language -- Persian is spoken in Iran."), "Persian language");
        assert_eq!(subject(" Persian language --  Farsi -- is its name.\n"), "Persian language");
        for whole in ["Persian is spoken.", "Persian -is- spoken.\nIran -- Persia", " -- no title"] {
            assert_eq!(subject(whole), whole.trim());
        }
    }

    #[test]
    fn labels_of_all_kinds() {
        for (label, want) in [
            (json!(2), Some(2)),
            (json!("2"), Some(2)),
            (json!("C"), Some(2)),
            (json!(-1), None),
            (json!("x"), None),
            (json!(null), None),
            (json!(1.5), None),
        ] {
            assert_eq!(choice_index(&label), want, "{label}");
        }
    }
}
