//! Files of texts, rows and conversations.

use std::sync::LazyLock;

use serde_json::Map;
use sharp_data::{Chat, DataSpec, Documents, View};

use crate::target::{Place, Target};

/// A template of the simplest kind.
static CHAT: LazyLock<Chat> = LazyLock::new(|| {
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}";
    Chat::new(template, Map::new()).expect("a sound template")
});

/// Rows are read in one of the ways that they may be asked for, by the length of the input.
fn rows(place: &Place<'_>) {
    let (_, view) = View::ALL[place.input.len() % View::ALL.len()];
    let spec = DataSpec::new(&place.file).with_view(view);
    if let Ok(documents) = Documents::open(&spec, Some(&CHAT)) {
        documents.take_while(|document| document.is_ok()).for_each(drop);
    }
}

pub(crate) const PARQUET: Target =
    Target { name: "parquet", file: "rows.parquet", longest: 1 << 14, prepare: |_| {}, run: rows };

pub(crate) const JSON: Target =
    Target { name: "json-lines", file: "rows.jsonl", longest: 1 << 14, prepare: |_| {}, run: rows };

pub(crate) const TEXT: Target =
    Target { name: "text", file: "text.txt", longest: 1 << 14, prepare: |_| {}, run: rows };

pub(crate) const ARTICLES: Target =
    Target { name: "articles", file: "text.tokens", longest: 1 << 14, prepare: |_| {}, run: rows };
