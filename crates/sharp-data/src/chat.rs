//! Conversations to text, with the template the model came with.
//!
//! The templates are Jinja as Hugging Face transformers runs it: blocks trimmed, Python's string methods,
//! `tojson` that writes as Python's `json.dumps` does, `raise_exception`, `strftime_now`, loop controls, and
//! `{% generation %}` marks (which are read over).

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, ErrorKind, Value as Jinja};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sharp_model::tokenizer::Tokenizer;

use crate::document::{Document, Turn};
use crate::error::{Error, Result};
use crate::json::kind;
use crate::python_json::{self, Style};
use crate::python_methods;
use crate::roomy::on_large_stack;
use crate::strftime;
use crate::template_text::{
    calls_where_content_is_none, loops_over_content, with_format_calls, without_generation_marks,
};
use crate::tool_calls;

/// Work a template may do before it is stopped: far more than any real one needs (a message takes some
/// hundreds), little enough that a hostile one ends within a second, with 32 MB, and with values no deeper
/// than the stack that it runs on.
const FUEL: u64 = 500_000;

/// Bytes of a template. Long ones in use have 20,000; how deep an expression lies is bounded by it too.
const MOST_BYTES: usize = 64 << 10;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Makes a message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
pub struct Chat {
    env: Environment<'static>,
    /// `bos_token`, `eos_token` and their like, by name.
    tokens: Map<String, Value>,
    /// Why a model's own template does not compile.
    broken: Option<String>,
    /// Whether the template takes a content of several parts apart.
    reads_parts: bool,
    /// Whether the template writes calls where a content is none.
    reads_none: bool,
}

impl std::fmt::Debug for Chat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chat").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

fn template_error(e: &minijinja::Error) -> Error {
    let detail = e.detail().unwrap_or_default();
    // What a template itself complains of is the best account of what was wrong.
    if let Some(what) = detail.strip_prefix(RAISED) {
        return Error::Template { what: what.to_owned() };
    }
    let colon = if detail.is_empty() { "" } else { ": " };
    let line = e.line().map(|n| format!(" (line {n})")).unwrap_or_default();
    Error::Template { what: format!("{}{colon}{detail}{line}", e.kind()) }
}

const RAISED: &str = "raised: ";

impl Chat {
    /// Makes a template with the special tokens it may name (`bos_token`, `eos_token`, ...).
    ///
    /// # Errors
    /// [`Error::Template`] if it does not compile, with the line, or has more than 64 KiB.
    pub fn new(template: &str, tokens: Map<String, Value>) -> Result<Self> {
        let bytes = template.len();
        if bytes > MOST_BYTES {
            let what = format!("the template has {bytes} bytes; {MOST_BYTES} are the most that are read");
            return Err(Error::Template { what });
        }
        let env = on_large_stack(|| Self::compile(template))??;
        let (reads_parts, reads_none) = (loops_over_content(template), calls_where_content_is_none(template));
        Ok(Chat { env, tokens, broken: None, reads_parts, reads_none }.with_now(None))
    }

    fn compile(template: &str) -> Result<Environment<'static>> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| template_error(&e))?);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(python_methods::call);
        env.add_test("sequence", python_methods::is_sequence);
        env.add_test("iterable", python_methods::is_iterable);
        env.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Bool => {
                out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Into::into)
            }
            ValueKind::None => out.write_str("None").map_err(Into::into),
            _ => minijinja::escape_formatter(out, state, value),
        });
        // Written with indentation, deep values take the square of their depth.
        env.remove_filter("pprint");
        env.add_filter("tojson", tojson);
        env.add_function(
            "raise_exception",
            |what: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{what}")))
            },
        );
        let template = with_format_calls(&without_generation_marks(template));
        env.add_template_owned("chat template", template).map_err(|e| template_error(&e))?;
        Ok(env)
    }

    /// Makes the template that came with a model. One that does not compile stops only what needs it: plain
    /// text is read and written without.
    fn of_model(template: &str, tokens: Map<String, Value>) -> Self {
        match Chat::new(template, tokens) {
            Ok(chat) => chat,
            Err(error) => {
                let what = match error {
                    Error::Template { what } => what,
                    other => other.to_string(),
                };
                let broken = format!(
                    "the model's own does not compile, so it cannot take messages: {what}; mend `chat_template` \
                     in its tokenizer_config.json, or put a chat_template.jinja beside it"
                );
                tracing::warn!("chat template: {broken}");
                let env = Environment::new();
                Chat { env, tokens: Map::new(), broken: Some(broken), reads_parts: true, reads_none: true }
            }
        }
    }

    /// Sets the clock of `strftime_now` to `now` (seconds since 1970, UTC); `None` is
    /// the real time. Training data should set it, so that the same input gives the same bytes.
    #[must_use]
    pub fn with_now(mut self, now: Option<i64>) -> Self {
        self.env.add_function(
            "strftime_now",
            move |format: String| -> std::result::Result<String, minijinja::Error> {
                strftime::strftime(&format, now)
                    .map_err(|what| minijinja::Error::new(ErrorKind::InvalidOperation, what))
            },
        );
        self
    }

    /// Returns the template in the text of a `tokenizer_config.json`, or `None` if it has none. Of several
    /// named templates the one named `default` is taken. One that does not compile fails where it is used.
    ///
    /// # Errors
    /// If the text is not such a file.
    pub fn from_tokenizer_config(json: &str) -> Result<Option<Self>> {
        let config: Map<String, Value> = serde_json::from_str(json)
            .map_err(|e| Error::Template { what: format!("tokenizer_config.json: {e}") })?;
        let template = match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(s)) => s,
            Some(Value::Array(named)) => named
                .iter()
                .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
                .or_else(|| named.first())
                .and_then(|t| t.get("template"))
                .and_then(Value::as_str)
                .ok_or_else(|| Error::Template {
                    what: "none of the named templates is \"default\"".into(),
                })?,
            Some(other) => {
                return Err(Error::Template { what: format!("\"chat_template\" is {}", kind(other)) });
            }
        };
        Ok((!template.trim().is_empty()).then(|| Chat::of_model(template, special_tokens(&config))))
    }

    /// Returns the template a tokenizer came with, or `None` if it has none. One that does not compile fails
    /// where it is used.
    pub fn from_tokenizer(tokenizer: &Tokenizer) -> Option<Self> {
        let tokens = special_tokens(tokenizer.config());
        tokenizer.chat_template().map(|template| Chat::of_model(template, tokens))
    }

    /// Returns the template of a model's folder: `chat_template.jinja`, else the one in
    /// `tokenizer_config.json`; `None` if there is neither. One that does not compile fails where it is used.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let read = |name: &str| -> Result<Option<String>> {
            let path = folder.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Error::io(&path, e)),
            }
        };
        let config = read("tokenizer_config.json")?;
        if let Some(template) = read("chat_template.jinja")?.filter(|t| !t.trim().is_empty()) {
            let config: Map<String, Value> = match &config {
                None => Map::new(),
                Some(json) => serde_json::from_str(json)
                    .map_err(|e| Error::file(&folder.join("tokenizer_config.json"), e.to_string()))?,
            };
            return Ok(Some(Chat::of_model(&template, special_tokens(&config))));
        }
        config.map_or(Ok(None), |json| Chat::from_tokenizer_config(&json))
    }

    /// Writes a conversation; with `add_generation_prompt`, up to where the assistant begins to speak.
    ///
    /// # Errors
    /// [`Error::Template`] if the template refuses the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(Jinja::from(Serde(messages)), add_generation_prompt, &Map::new())
    }

    /// Renders as [`Chat::render`] does, for messages as JSON (content in parts, tool calls and so on), with
    /// further variables for the template (`tools`, `enable_thinking`, ...).
    ///
    /// The `arguments` of tool calls that are JSON text, as OpenAI's API has them, become the objects that
    /// most templates are made for; templates that cannot take these get the text. A content that is null
    /// or absent beside tool calls is none to templates that write the calls there, and empty to others.
    ///
    /// # Errors
    /// [`Error::Template`] if the template refuses the messages.
    pub fn render_json(
        &self,
        messages: &Value,
        add_generation_prompt: bool,
        more: &Map<String, Value>,
    ) -> Result<String> {
        let mut messages = messages.clone();
        for message in messages.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            tool_calls::set_content(message, self.reads_none);
            // For templates that would write "None".
            let kept = |name: &str| name == "content" && self.reads_none;
            message.retain(|name, v| !v.is_null() || kept(name));
        }
        let render =
            |messages: &Value| self.render_with(Jinja::from(Serde(messages)), add_generation_prompt, more);
        match tool_calls::with_objects(&messages) {
            Some(objects) => render(&objects).or_else(|_| render(&messages)),
            None => render(&messages),
        }
    }

    /// Returns the conversation's first `n` messages up to where the next answer begins. Before the first
    /// message there is nothing: many templates fail on an empty conversation, or open it with a default
    /// message.
    fn before(&self, list: &[Value], n: usize) -> Result<String> {
        match list.get(..n) {
            None | Some([]) => Ok(String::new()),
            Some(head) => self.render_json(&Value::Array(head.to_vec()), true, &Map::new()),
        }
    }

    fn render_with(&self, messages: Jinja, generate: bool, more: &Map<String, Value>) -> Result<String> {
        if let Some(what) = &self.broken {
            return Err(Error::Template { what: what.clone() });
        }
        // Transformers defines these two always; some templates tell "none" and "not defined" apart.
        let mut context: Vec<(String, Jinja)> =
            ["tools", "documents"].map(|name| (name.to_owned(), Jinja::from(()))).into();
        context.extend(self.tokens.iter().chain(more).map(|(k, v)| (k.clone(), Jinja::from(Serde(v)))));
        context.push(("messages".into(), messages));
        context.push(("add_generation_prompt".into(), Jinja::from(generate)));
        on_large_stack(move || {
            let template = self.env.get_template("chat template");
            template.and_then(|t| t.render(Jinja::from_pairs(context))).map_err(|e| template_error(&e))
        })?
    }

    /// Makes a document of a conversation (a JSON list of messages): what the assistant says is its
    /// completions, all else its prompts.
    ///
    /// Where one message ends and the next begins follows from writing ever longer beginnings of the
    /// conversation. Some templates write an earlier answer differently once another follows it; with
    /// those only the last answer is a completion.
    ///
    /// # Errors
    /// [`Error::Template`] if it is not a list of messages with roles, none is the assistant's, the template
    /// refuses them, or it does not write the last answer after what came before it.
    pub fn document(&self, messages: &Value) -> Result<Document> {
        let messages = &self.as_texts(messages)?;
        let list = self.messages(messages)?;
        let answers: Vec<usize> =
            (0..list.len()).filter(|&i| list.get(i).and_then(role) == Some("assistant")).collect();
        let Some(&last) = answers.last() else {
            return Err(Error::Template { what: "no message has the role \"assistant\"".into() });
        };
        // What a user says after the last answer is no part of the document: nothing comes of it.
        let list = list.get(..=last).unwrap_or(list);
        match self.turns(list, &answers)? {
            Some(doc) => Ok(doc),
            None => self.pair(&Value::Array(list.to_vec()), last),
        }
    }

    /// Makes a document of a conversation whose messages from number `first` on are the completion.
    ///
    /// # Errors
    /// As [`Chat::document`].
    pub fn pair(&self, messages: &Value, first: usize) -> Result<Document> {
        let messages = &self.as_texts(messages)?;
        let list = self.messages(messages)?;
        let whole = self.render_json(messages, false, &Map::new())?;
        let prompt = self.before(list, first)?;
        match whole.strip_prefix(prompt.as_str()) {
            Some("") | None => Err(Error::Template {
                what: "the conversation as written does not begin with its prompt as written".into(),
            }),
            Some(rest) => Ok(Document { chat: true, ..Document::pair(prompt.as_str(), rest) }),
        }
    }

    /// Returns the document with every answer counted, or `None` if the template rewrites what came before.
    fn turns(&self, list: &[Value], answers: &[usize]) -> Result<Option<Document>> {
        let whole = self.render_json(&Value::Array(list.to_vec()), false, &Map::new())?;
        let mut turns = Vec::new();
        let mut at = 0;
        for &answer in answers {
            let after = Value::Array(list[..=answer].to_vec());
            let begin = self.before(list, answer)?;
            let end = self.render_json(&after, false, &Map::new())?;
            if !(whole.starts_with(&begin)
                && whole.starts_with(&end)
                && at <= begin.len()
                && begin.len() < end.len())
            {
                return Ok(None);
            }
            let (Some(prompt), Some(completion)) =
                (whole.get(at..begin.len()), whole.get(begin.len()..end.len()))
            else {
                return Ok(None);
            };
            turns.push(Turn { prompt: prompt.to_owned(), completion: completion.to_owned() });
            at = end.len();
        }
        let mut turns = turns.into_iter();
        let Some(first) = turns.next() else { return Ok(None) };
        Ok(Some(Document {
            prompt: first.prompt,
            completion: first.completion,
            turns: turns.collect(),
            chat: true,
            group: None,
        }))
    }

    /// Joins contents of several parts for a template that takes a content for one text; it would write the
    /// list itself.
    fn as_texts(&self, messages: &Value) -> Result<Value> {
        let mut messages = messages.clone();
        if self.reads_parts {
            return Ok(messages);
        }
        for (i, message) in messages.as_array_mut().into_iter().flatten().enumerate() {
            let Some(parts) = message.get("content").and_then(Value::as_array) else { continue };
            let text = |part: &Value| match (part.get("type").and_then(Value::as_str), part.get("text")) {
                (Some("text"), Some(Value::String(text))) => Ok(text.clone()),
                (kind, _) => Err(Error::Template {
                    what: format!(
                        "message {} has a part of type {:?}; of a list only parts of type \"text\" are read",
                        i + 1,
                        kind.unwrap_or("none")
                    ),
                }),
            };
            let text: String = parts.iter().map(text).collect::<Result<_>>()?;
            if let Some(message) = message.as_object_mut() {
                message.insert("content".into(), Value::String(text));
            }
        }
        Ok(messages)
    }

    fn messages<'v>(&self, messages: &'v Value) -> Result<&'v [Value]> {
        let bad = |what: String| Error::Template { what };
        let list = messages
            .as_array()
            .ok_or_else(|| bad(format!("\"messages\" is {}, not a list", kind(messages))))?;
        if list.is_empty() {
            return Err(bad("the list of messages is empty".into()));
        }
        for (i, message) in list.iter().enumerate() {
            if role(message).is_none() {
                return Err(bad(format!("message {} has no \"role\"", i + 1)));
            }
        }
        Ok(list)
    }
}

fn role(message: &Value) -> Option<&str> {
    message.get("role")?.as_str()
}

/// Returns the tokens a template may name: every `*_token` of the configuration, a string or an object with
/// `content`.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    config
        .iter()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| {
            let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str))?;
            Some((name.clone(), Value::String(text.to_owned())))
        })
        .collect()
}

/// Levels of a value that is written as JSON; Python's own writer ends near a thousand.
const DEEPEST: usize = 500;

/// Says whether a value has few levels.
fn is_shallow(value: &Value) -> bool {
    let mut left = vec![(value, 0)];
    while let Some((value, depth)) = left.pop() {
        if depth > DEEPEST {
            return false;
        }
        match value {
            Value::Array(list) => left.extend(list.iter().map(|inner| (inner, depth + 1))),
            Value::Object(map) => left.extend(map.values().map(|inner| (inner, depth + 1))),
            _ => {}
        }
    }
    true
}

/// Writes JSON as the `tojson` of transformers does: Python's `json.dumps` with `ensure_ascii=False`.
fn tojson(value: &Jinja, options: Kwargs) -> std::result::Result<Jinja, minijinja::Error> {
    let json = serde_json::to_value(value)
        .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    if !is_shallow(&json) {
        let what = format!("tojson of a value with more than {DEEPEST} levels");
        return Err(minijinja::Error::new(ErrorKind::BadSerialization, what));
    }
    let separators: Option<Vec<String>> = options.get("separators")?;
    let style = Style {
        indent: options.get::<Option<usize>>("indent")?,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: separators.and_then(|s| <[String; 2]>::try_from(s).ok()),
    };
    options.assert_all_used()?;
    Ok(Jinja::from_safe_string(python_json::write(&json, &style)))
}
