//! Files to documents.
//!
//! - `.txt`, `.md` and anything that is not named otherwise: a document is a paragraph, that is the lines
//!   between blank lines.
//! - `.tokens` (WikiText's way): a document is an article, which begins at a line ` = Title = ` with one `=`
//!   each side.
//! - `.jsonl`, `.json`, `.ndjson`: one JSON object a line, with `messages`, `prompt` and `completion`, or
//!   `text`; or evaluation requests (`request`, `doc`, `doc_id`).
//! - `.parquet` and whatever begins as such a file does: its columns are what the fields of a JSON line are.
//!
//! Any but the last may be gzipped, with `.gz` after its name. Text is taken as it is, line ends become `\n`.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;
use sharp_schema::Side;

use crate::chat::Chat;
use crate::document::{Document, text_key};
use crate::error::{Error, Result};
use crate::json::{keys, kind};
use crate::json_line;
use crate::lines::{Lines, MAX_LINE_BYTES, regular};
use crate::olmo;
use crate::parquet::Rows;
use crate::spec::{DataSpec, View};
use crate::split::side;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Paragraphs,
    Articles,
    Json,
    Parquet,
}

impl Format {
    /// Tells the format by the name, without a `.gz` at its end; Parquet by its first bytes too.
    ///
    /// # Errors
    /// If it is no regular file.
    fn of(path: &Path) -> Result<Format> {
        regular(path)?;
        let mut start = [0; 4];
        let read = File::open(path).and_then(|mut f| f.read_exact(&mut start));
        if read.is_ok() && start == *b"PAR1" {
            return Ok(Format::Parquet);
        }
        let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        Ok(match name.rsplit_once('.').map(|(_, e)| e) {
            Some("jsonl" | "json" | "ndjson") => Format::Json,
            Some("tokens") => Format::Articles,
            Some("parquet") => Format::Parquet,
            _ => Format::Paragraphs,
        })
    }

    /// Whether a file of it has rows with fields.
    fn has_rows(self) -> bool {
        matches!(self, Format::Json | Format::Parquet)
    }
}

/// A file that is open.
enum Source {
    Lines(Lines),
    Rows(Box<Rows>),
}

impl Source {
    fn path(&self) -> &Path {
        match self {
            Source::Lines(lines) => lines.path(),
            Source::Rows(rows) => rows.path(),
        }
    }

    /// Makes an error about the line or row last read.
    fn error(&self, what: impl Into<String>) -> Error {
        match self {
            Source::Lines(lines) => lines.error(what),
            Source::Rows(rows) => rows.error(what),
        }
    }

    /// Reads the next JSON line that is not blank, or the next row.
    fn value(&mut self) -> Result<Option<Value>> {
        let lines = match self {
            Source::Lines(lines) => lines,
            Source::Rows(rows) => return rows.next_row(),
        };
        while let Some(line) = lines.next_line() {
            let line = line?;
            if !line.trim().is_empty() {
                return match json_line::parse(line) {
                    Ok(value) => Ok(Some(value)),
                    Err(what) => Err(lines.error(what)),
                };
            }
        }
        Ok(None)
    }
}

/// Refuses a file none of whose rows can have the fields of `view`.
fn fits(rows: &Rows, view: View) -> Result<()> {
    let pair = rows.have(&["prompt", "completion"]);
    let request = rows.have(&["request", "doc", "doc_id"]);
    let (fits, expected) = match view {
        View::Auto => (
            pair || request || rows.have(&["text"]) || rows.have(&["messages"]),
            "\"text\", \"prompt\" and \"completion\", or \"messages\"",
        ),
        View::Text => (pair || request || rows.have(&["text"]), "\"text\""),
        View::Completion => (pair || request, "\"prompt\" and \"completion\""),
        View::Messages => (rows.have(&["messages"]), "\"messages\""),
        View::Passage => (request || rows.have(&["passage"]), "\"passage\""),
    };
    if fits {
        return Ok(());
    }
    Err(Error::file(rows.path(), format!("expected columns {expected}; its columns are {}", rows.columns())))
}

/// The documents of one file, one after another: memory holds one at a time.
///
/// After an error nothing more comes.
pub struct Documents<'a> {
    source: Source,
    format: Format,
    view: View,
    chat: Option<&'a Chat>,
    left: usize,
    block: String,
    ready: VecDeque<Document>,
    seen: HashSet<u64>,
    yielded: bool,
    done: bool,
}

impl<'a> Documents<'a> {
    /// Opens a file.
    ///
    /// # Errors
    /// If it cannot be opened, is empty, is a folder, or is a text file of which a view of rows is asked.
    pub fn open(spec: &DataSpec, chat: Option<&'a Chat>) -> Result<Self> {
        let format = Format::of(&spec.path)?;
        if !format.has_rows() && !matches!(spec.view, View::Auto | View::Text) {
            return Err(Error::file(
                &spec.path,
                format!("is plain text, which has no view \"{}\"; only JSON lines and Parquet do", spec.view),
            ));
        }
        let source = if format == Format::Parquet {
            let rows = Rows::open(&spec.path)?;
            fits(&rows, spec.view)?;
            Source::Rows(Box::new(rows))
        } else {
            Source::Lines(Lines::open(&spec.path)?)
        };
        Ok(Documents {
            source,
            format,
            view: spec.view,
            chat,
            left: spec.limit.unwrap_or(usize::MAX),
            block: String::new(),
            ready: VecDeque::new(),
            seen: HashSet::new(),
            yielded: false,
            done: false,
        })
    }

    fn step(&mut self) -> Result<Option<Document>> {
        loop {
            if let Some(doc) = self.ready.pop_front() {
                return Ok(Some(doc));
            }
            if self.done {
                return Ok(None);
            }
            if self.format.has_rows() { self.row()? } else { self.text_line()? }
        }
    }

    fn text_line(&mut self) -> Result<()> {
        let Source::Lines(lines) = &mut self.source else { return Ok(()) };
        let Some(line) = lines.next_line() else {
            self.done = true;
            self.end_block();
            return Ok(());
        };
        let line = line?.trim_end();
        let (blank, title) = (line.is_empty(), is_title(line));
        let articles = self.format == Format::Articles;
        if if articles { title } else { blank } {
            let line = line.to_owned();
            self.end_block();
            if articles {
                self.block.push_str(&line);
                self.block.push('\n');
            }
            return Ok(());
        }
        if self.block.len() + line.len() >= MAX_LINE_BYTES {
            return Err(self.source.error(format!("the document is longer than {MAX_LINE_BYTES} bytes")));
        }
        self.block.push_str(line);
        self.block.push('\n');
        Ok(())
    }

    fn end_block(&mut self) {
        let text = self.block.trim_matches('\n');
        if !text.trim().is_empty() {
            self.ready.push_back(Document::text(text));
        }
        self.block.clear();
    }

    fn row(&mut self) -> Result<()> {
        let Some(value) = self.source.value()? else {
            self.done = true;
            return Ok(());
        };
        if !value.is_object() {
            return Err(self.source.error(json_line::not_an_object(&value)));
        }
        let doc = if olmo::is_row(&value) { self.request(value) } else { self.object(&value) };
        match doc {
            Ok(Some(doc)) => self.ready.push_back(doc),
            Ok(None) => {}
            Err(what) => return Err(self.source.error(what)),
        }
        Ok(())
    }

    fn request(&mut self, value: Value) -> std::result::Result<Option<Document>, String> {
        let row = olmo::Row::new(value)?;
        if row.unconditional() || !self.seen.insert(row.doc_id) {
            return Ok(None);
        }
        match self.view {
            View::Auto | View::Completion => row.completion().map(Some),
            View::Text => {
                let doc = row.completion()?;
                Ok(Some(Document { group: doc.group, ..Document::text(doc.full_text()) }))
            }
            View::Passage => {
                let passage = row.passage().ok_or("the query has no passage before a \"\\nQuestion:\"")?;
                // Passages and document numbers share the set: a clash of a hash with a small number is as
                // good as impossible, and would only lose one document.
                Ok(self.seen.insert(text_key([passage].into_iter())).then(|| passage_document(passage)))
            }
            View::Messages => Err("an evaluation request holds no messages".into()),
        }
    }

    fn object(&mut self, value: &Value) -> std::result::Result<Option<Document>, String> {
        let has = |name: &str| value.get(name).is_some_and(|v| !v.is_null());
        let view = match self.view {
            View::Auto if has("messages") => View::Messages,
            View::Auto if has("prompt") && has("completion") => View::Completion,
            View::Auto if has("text") => View::Text,
            View::Auto => {
                return Err(format!(
                    "expected \"text\", \"prompt\" and \"completion\", or \"messages\"; found {}",
                    keys(value)
                ));
            }
            view => view,
        };
        match view {
            View::Messages => {
                let messages = value.get("messages").ok_or_else(|| missing("messages", value))?;
                self.chat()?.document(messages).map(Some).map_err(|e| e.to_string())
            }
            View::Completion => {
                let field = |name: &str| value.get(name).ok_or_else(|| missing(name, value));
                match (field("prompt")?, field("completion")?) {
                    (Value::String(p), Value::String(c)) if c.is_empty() => Err(format!(
                        "\"completion\" is empty{}",
                        if p.is_empty() { ", and so is \"prompt\"" } else { "" }
                    )),
                    (Value::String(p), Value::String(c)) => Ok(Some(Document::pair(p, c))),
                    (Value::Array(p), Value::Array(c)) => {
                        let all: Vec<Value> = p.iter().chain(c).cloned().collect();
                        self.chat()?.pair(&Value::Array(all), p.len()).map(Some).map_err(|e| e.to_string())
                    }
                    (p, c) => Err(format!(
                        "\"prompt\" and \"completion\" must both be strings or both lists of messages; found {} and {}",
                        kind(p),
                        kind(c)
                    )),
                }
            }
            View::Passage => match value.get("passage") {
                Some(Value::String(p)) => Ok(self
                    .seen
                    .insert(text_key([p.as_str()].into_iter()))
                    .then(|| passage_document(p.trim()))),
                Some(other) => Err(format!("\"passage\" is {}, not a string", kind(other))),
                None => Err(missing("passage", value)),
            },
            View::Text | View::Auto => {
                match (value.get("text"), value.get("prompt"), value.get("completion")) {
                    // An empty text is no mistake, only no document.
                    (Some(Value::String(t)), _, _) => Ok((!t.trim().is_empty()).then(|| Document::text(t))),
                    (Some(other), _, _) => {
                        Err(format!("\"text\" is {}, not a string; leave the row out", kind(other)))
                    }
                    (None, Some(Value::String(p)), Some(Value::String(c))) => {
                        Ok(Some(Document::text(format!("{p}{c}"))))
                    }
                    _ => Err(missing("text", value)),
                }
            }
        }
    }

    fn chat(&self) -> std::result::Result<&'a Chat, String> {
        self.chat.ok_or_else(|| {
            "the row holds messages, but the model's tokenizer_config.json has no chat template to write them with"
                .to_owned()
        })
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        match self.step() {
            Ok(Some(doc)) => {
                self.left -= 1;
                self.yielded = true;
                Some(Ok(doc))
            }
            Ok(None) => {
                self.left = 0;
                (!self.yielded).then(|| Err(Error::file(self.source.path(), "holds no documents")))
            }
            Err(e) => {
                self.left = 0;
                Some(Err(e))
            }
        }
    }
}

/// Reads all documents of a file, in its order. Conversations need the model's chat template.
///
/// # Errors
/// If the file cannot be read, holds no documents, or one of its lines is malformed (with its number and what
/// was wrong).
pub fn read(spec: &DataSpec, chat: Option<&Chat>) -> Result<Vec<Document>> {
    let docs: Vec<Document> = Documents::open(spec, chat)?.collect::<Result<_>>()?;
    tracing::debug!(data = %spec, documents = docs.len(), "read");
    Ok(docs)
}

/// Reads what perplexity is measured on: the documents on one side of the [`split`](crate::split). Of a plain
/// text file of which all is asked it is the file as it stands (line ends become `\n`).
///
/// # Errors
/// As [`read`] and [`split`](crate::split); [`Error::File`] if there is nothing on that side.
pub fn read_texts(
    spec: &DataSpec,
    chat: Option<&Chat>,
    part: Side,
    held_out: f64,
    seed: u64,
) -> Result<Vec<String>> {
    let plain = !Format::of(&spec.path)?.has_rows() && spec.limit.is_none() && spec.view != View::Passage;
    let texts: Vec<String> = if plain && part == Side::All {
        vec![whole(&spec.path)?]
    } else {
        side(read(spec, chat)?, part, held_out, seed)?.iter().map(Document::full_text).collect()
    };
    if texts.iter().all(String::is_empty) {
        let what = format!("no text on the {part} side of the split; give more text");
        return Err(Error::File { path: spec.path.clone(), what });
    }
    Ok(texts)
}

/// Reads a text file as it stands; line ends become `\n`.
fn whole(path: &Path) -> Result<String> {
    let mut lines = Lines::open(path)?;
    let mut text = String::new();
    while let Some(line) = lines.next_line() {
        let line = line?;
        let bare = line.strip_suffix('\n').unwrap_or(line);
        text.push_str(bare.strip_suffix('\r').unwrap_or(bare));
        if bare.len() < line.len() {
            text.push('\n');
        }
    }
    Ok(text)
}

/// Returns whether a line is ` = Title = `, but not ` = = Section = = `.
fn is_title(line: &str) -> bool {
    let inner = line.trim().strip_prefix("= ").and_then(|l| l.strip_suffix(" ="));
    inner.is_some_and(|t| !t.is_empty() && !t.starts_with('=') && !t.ends_with('='))
}

/// Makes a document of a passage, in one group with the others of its subject.
fn passage_document(passage: &str) -> Document {
    Document { group: Some(text_key([olmo::subject(passage)].into_iter())), ..Document::text(passage) }
}

fn missing(name: &str, value: &Value) -> String {
    format!("{name:?} is missing; found {}", keys(value))
}
