//! Tokenizers and chat templates.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use sharp_data::{Chat, Message};
use sharp_model::tokenizer::Tokenizer;

use crate::seeds::golden;
use crate::target::{Place, Target};

/// Texts with letters, blanks, digits, special tokens and several scripts.
const TEXTS: [&str; 4] =
    ["", "Hello, world's 1234 tests\n\n  of <|im_end|> text", "naïve 東京 🙂\u{301} \u{0} ﷺ", "aaaaaaaa<s>"];

/// Encodes and decodes with a tokenizer that was read.
pub(crate) fn exercise(tokenizer: &Tokenizer) {
    for text in TEXTS {
        let Ok(ids) = tokenizer.encode(text, true) else { continue };
        let _ = tokenizer.encode_with_starts(text);
        let _ = (tokenizer.decode(&ids), tokenizer.decode_text(&ids));
        let mut stream = tokenizer.stream(&[], false);
        for id in ids {
            let _ = (stream.push(id), tokenizer.token(id));
        }
        let _ = stream.finish();
    }
    let _ = tokenizer.encode_batch(&TEXTS, false);
    let _ = tokenizer.decode(&[0, 1, 2, 5, u32::MAX]);
    let _ = (tokenizer.end_ids(), tokenizer.special_tokens(), tokenizer.to_json());
}

pub(crate) const TOKENIZER: Target =
    Target { name: "tokenizer", file: "tokenizer.json", longest: 1 << 16, prepare: |_| {}, run: load };

fn load(place: &Place<'_>) {
    if let Ok(tokenizer) = Tokenizer::load(place.folder) {
        exercise(&tokenizer);
    }
}

pub(crate) const SETTINGS: Target = Target {
    name: "tokenizer-settings",
    file: "tokenizer_config.json",
    longest: 1 << 16,
    prepare: beside_the_settings,
    run: |place| {
        load(place);
        let _ = Chat::load(place.folder);
    },
};

/// Puts a tokenizer beside its settings.
fn beside_the_settings(folder: &Path) {
    fs::write(folder.join("tokenizer.json"), golden("data/tokenizer.json")).expect("a file in a new folder");
}

pub(crate) const TEMPLATE: Target = Target {
    name: "template",
    file: "chat_template.jinja",
    longest: 1 << 14,
    prepare: |_| {},
    run: template,
};

/// A template is compiled, and written with conversations and tools.
fn template(place: &Place<'_>) {
    let mut tokens = Map::new();
    tokens.insert("bos_token".to_owned(), json!("<s>"));
    tokens.insert("eos_token".to_owned(), json!("</s>"));
    let Ok(chat) = Chat::new(&place.text(), tokens) else { return };
    let chat = chat.with_now(Some(0));
    let _ = chat.render(&[Message::new("system", "Be brief."), Message::new("user", "Hello?")], true);
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "What is 2 + 2?"}]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": [2]}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ]);
    let mut more = Map::new();
    more.insert("tools".to_owned(), json!([{"type": "function", "function": {"name": "add"}}]));
    more.insert("enable_thinking".to_owned(), Value::Bool(false));
    let _ = chat.render_json(&messages, true, &more);
    let _ = chat.document(&messages);
}
