//! Rows of the evaluation, looked up by name.

use serde_json::{Map, Value};

use super::collect::Run;
use super::metrics::number;
use super::text::row_name;

/// One row of the results.
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    /// The name in words.
    pub(super) title: String,
    pub(super) values: &'a Map<String, Value>,
}

impl Row<'_> {
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        number(self.values, &[key])
    }

    /// A measurement by text: `{"perplexity": {"boolq": 21.5}}`.
    pub(super) fn of(&self, key: &str, text: &str) -> Option<f64> {
        self.values.get(key)?.get(text)?.as_f64().filter(|v| v.is_finite())
    }
}

/// Returns the evaluated rows in the order of the results file.
pub(super) fn rows(run: &Run) -> Vec<Row<'_>> {
    let listed = run.results.as_ref().and_then(|r| r.get("rows")).and_then(Value::as_array);
    listed
        .into_iter()
        .flatten()
        .filter_map(|row| {
            let values = row.as_object()?;
            let name = values.get("name")?.as_str()?;
            Some(Row { name, title: row_title(run, name), values })
        })
        .collect()
}

/// Returns the name of a row in words: without training, a pruned plan shares nothing.
pub(super) fn row_title(run: &Run, name: &str) -> String {
    match name {
        "direct" if run.only_prunes() => "largest neurons, as they are".into(),
        _ => row_name(name),
    }
}

/// Returns the names under `key` in any row, in the order they are met: texts or tasks.
pub(super) fn names<'a>(rows: &[Row<'a>], key: &str) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        for name in row.values.get(key).and_then(Value::as_object).into_iter().flat_map(|m| m.keys()) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
    }
    names
}

pub(super) fn find<'a, 'b>(rows: &'b [Row<'a>], name: &str) -> Option<&'b Row<'a>> {
    rows.iter().find(|r| r.name == name)
}
