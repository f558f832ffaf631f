//! Where a command's result goes: lines for a person, or one JSON object for a program.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use serde::Serialize;

/// Standard output as a person or a program wants it.
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// An output that prints JSON, or text.
    pub(crate) fn new(json: bool) -> Self {
        Output { json }
    }

    /// Whether the result is wanted as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the result of a command: `value` as JSON, or the text that `text` makes.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn result<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            let text = text();
            let text = if out.is_terminal() { visible(&text) } else { text.into() };
            out.write_all(text.as_bytes())?;
            if !text.ends_with('\n') && !text.is_empty() {
                writeln!(out)?;
            }
        }
        out.flush()?;
        Ok(())
    }

    /// Prints a failure on standard error: the chain of causes, as text or as `{"error": ...}`.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let text = causes(error);
        let mut err = io::stderr().lock();
        // There is nobody left to tell when standard error is closed.
        let _ = if self.json {
            writeln!(err, "{}", serde_json::json!({ "error": text }))
        } else {
            writeln!(err, "error: {}", visible(&text))
        };
    }
}

/// Writes control characters out, but for line ends and tabs. A model's file or answer may hold some that
/// would command the terminal.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let commands = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(commands) {
        return text.into();
    }
    let write = |c: char| if commands(c) { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(write).collect::<String>().into()
}

/// Writes a piece of generated text; to a terminal only what cannot command it.
pub(crate) fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let text = if out.is_terminal() { visible(text) } else { text.into() };
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The chain of causes in one line, each said once: some errors have their cause in their own words.
fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Whether `error` only says that the reader of our output went away (`sharp … | head`).
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// A table of text with aligned columns; the first row is the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        for (c, cell) in row.iter().enumerate() {
            let padding = widths[c].saturating_sub(cell.chars().count());
            if c == 0 {
                text.push_str(cell);
                text.extend(std::iter::repeat_n(' ', padding));
            } else {
                text.push_str("  ");
                text.extend(std::iter::repeat_n(' ', padding));
                text.push_str(cell);
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// A number of bytes as a person reads it: `98.4 MB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::{bytes, causes, table, visible};

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(visible("a\tb\n\u{e9}"), "a\tb\n\u{e9}");
        assert_eq!(visible("\u{1b}]0;x\u{7}\u{9b}2J"), "\\u{1b}]0;x\\u{7}\\u{9b}2J");
    }

    #[test]
    fn a_cause_is_said_once() {
        let cause = std::io::Error::other("no space");
        let twice = anyhow::Error::new(cause).context("x.json: no space").context("writing the result");
        assert_eq!(causes(&twice), "writing the result: x.json: no space");
        let once = anyhow::anyhow!("no space").context("writing x.json");
        assert_eq!(causes(&once), "writing x.json: no space");
    }

    #[test]
    fn columns_align_on_the_right_after_the_first() {
        let rows = vec![vec!["row".into(), "loss".into()], vec!["original".into(), "2.1".into()]];
        assert_eq!(table(&rows), "row       loss\noriginal   2.1\n");
    }

    #[test]
    fn bytes_use_decimal_units() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(98_362_432), "98.4 MB");
    }
}
