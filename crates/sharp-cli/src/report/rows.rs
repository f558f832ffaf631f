//! Rows of the evaluation, looked up by name.

use std::collections::BTreeMap;

use sharp_schema::evaluation::{EvalRow, LossDifference};

use super::collect::Run;
use super::text::row_name;

/// One row of the results.
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    /// The name in words.
    pub(super) title: String,
    pub(super) measured: &'a EvalRow,
}

impl Row<'_> {
    /// Returns the perplexity on a text, where it was measured.
    pub(super) fn perplexity(&self, text: &str) -> Option<f64> {
        self.measured.perplexity.get(text).copied()
    }

    /// Returns what the loss on a text is over that of a row before this one, where it was measured.
    pub(super) fn over(&self, other: &str, text: &str) -> Option<LossDifference> {
        self.measured.differences.get(text)?.get(other).copied()
    }
}

/// Returns the evaluated rows in the order of the results file.
pub(super) fn rows(run: &Run) -> Vec<Row<'_>> {
    let listed = run.results.iter().flat_map(|results| &results.rows);
    listed.map(|measured| Row { name: &measured.name, title: row_name(&measured.name), measured }).collect()
}

/// Returns the names that any row has in one of its maps, in the order they are met: texts or tasks.
pub(super) fn names<'a, V: 'a>(
    rows: &[Row<'a>],
    map: impl Fn(&'a EvalRow) -> &'a BTreeMap<String, V>,
) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(|row| map(row.measured).keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// Returns the texts that perplexity was measured on.
pub(super) fn texts<'a>(rows: &[Row<'a>]) -> Vec<&'a str> {
    names(rows, |row| &row.perplexity)
}

/// Returns the row of this name, where it was evaluated.
pub(super) fn find<'a, 'b>(rows: &'b [Row<'a>], name: &str) -> Option<&'b Row<'a>> {
    rows.iter().find(|r| r.name == name)
}
