//! The report in Markdown: the same words and tables; the pictures' numbers stand in the tables beside them.

use std::fmt::Write as _;

use super::blocks::{Block, Document};

/// The page.
pub(super) fn page(document: &Document) -> String {
    let mut s = format!("# {}\n", inline(&document.title));
    for block in &document.blocks {
        let _ = match block {
            Block::Heading(text) => write!(s, "\n## {}\n", inline(text)),
            Block::Subheading(text) => write!(s, "\n### {}\n", inline(text)),
            Block::Text(text) | Block::Note(text) => write!(s, "\n{}\n", inline(text)),
            Block::Missing(text) => write!(s, "\n*{}*\n", inline(text)),
            Block::Picture(_) => Ok(()),
            Block::Quote(text) => write!(s, "\n{}\n", quoted(text)),
            Block::Folded { summary, text } => write!(s, "\n{}:\n\n{}\n", inline(summary), quoted(text)),
            Block::Table { head, rows, .. } => {
                let line = |cells: &[String]| {
                    let cells: Vec<String> = cells.iter().map(|c| inline(c)).collect();
                    format!("| {} |\n", cells.join(" | "))
                };
                s.push('\n');
                s.push_str(&line(head));
                let _ = writeln!(s, "|---{}|", "|---:".repeat(head.len().saturating_sub(1)));
                rows.iter().for_each(|row| s.push_str(&line(row)));
                Ok(())
            }
        };
    }
    s
}

/// Text in which nothing is Markdown or HTML.
fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => {
                out.push('\\');
                out.push(c);
            }
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// An indented block: no fence for the text to close.
fn quoted(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("    {}", line.replace('\r', ""))).collect();
    lines.join("\n")
}
