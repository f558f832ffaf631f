//! Blocks: the document model that the HTML page and the Markdown page are both written from.

/// One part of the report.
#[derive(Debug, Clone)]
pub(super) enum Block {
    Heading(String),
    Subheading(String),
    Text(String),
    Note(String),
    /// What is missing, and why.
    Missing(String),
    /// An SVG picture.
    Picture(String),
    /// Text of a model, shown unchanged.
    Quote(String),
    /// Long text behind a summary line.
    Folded {
        summary: String,
        text: String,
    },
    /// A table; the column `wide` holds sentences.
    Table {
        head: Vec<String>,
        rows: Vec<Vec<String>>,
        wide: Option<usize>,
    },
}

/// The whole report.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) title: String,
    pub(super) blocks: Vec<Block>,
}

/// Returns the cells as owned strings.
pub(super) fn strings(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|c| (*c).to_owned()).collect()
}

/// Returns a table without a wide column.
pub(super) fn table(head: &[&str], rows: Vec<Vec<String>>) -> Block {
    Block::Table { head: strings(head), rows, wide: None }
}
