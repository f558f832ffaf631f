//! `sharp chat`: a conversation in the terminal.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};
use serde_json::json;
use sharp_data::{Chat, Message};
use sharp_infer::{Finish, GenerateOptions, Generation, Model, Options, Session, generate};
use sharp_model::tokenizer::Tokenizer;

use crate::Global;
use crate::model::{ModelArg, open_tokenizer};
use crate::output::Output;
use crate::sampling::Sampling;

/// Talk with a model. Ctrl-C stops an answer, Ctrl-D ends.
///
/// Through a pipe every line that is not blank is a message, whatever it begins with. With --json each answer
/// is a line of JSON.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp chat --model model.sharp\n  echo 'Name three rivers.' | sharp chat --model model.sharp --temperature 0"
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Tokens of the whole conversation; 0: what the model takes, at most 4096. Where it gets longer, its
    /// oldest messages are left out.
    #[arg(long, value_name = "N", default_value_t = 0)]
    context: usize,
    /// At most so many tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// 0 always takes the likeliest token; higher is more varied.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Only the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    #[command(flatten)]
    sampling: Sampling,
    /// A file that keeps what was typed, for the arrow keys of the next time.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Obey commands (`/new`, `/undo`, `/save FILE`, ...) through a pipe too, as in a terminal.
    #[arg(long)]
    commands: bool,
}

const HELP: &str = "\
/new            begin a new conversation
/again          another answer to the last message
/undo           take back the last message and its answer
/system [TEXT]  change what the model is told before the conversation, and begin anew
/save FILE      write the conversation as JSON
/help           this list
/quit           end (as Ctrl-D)
A line that is none of these is a message. One that ends in \\ goes on in the next. Ctrl-C stops an answer.
";

/// Tokens of a conversation where nobody says how many.
const USUAL_CONTEXT: usize = 4096;

/// A conversation with the model that answers.
struct Conversation {
    tokenizer: Tokenizer,
    chat: Chat,
    session: Session,
    options: GenerateOptions,
    messages: Vec<Message>,
    /// Answers so far, each with a seed of its own.
    answers: u64,
}

/// Where lines come from.
enum Input {
    Terminal(Box<Editor<(), FileHistory>>),
    Lines(io::Lines<io::StdinLock<'static>>),
}

/// A line, or why there is none.
enum Line {
    Text(String),
    /// Ctrl-C on an unfinished line.
    Dropped,
    End,
}

impl Input {
    fn open(history: Option<&PathBuf>) -> Result<Self> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Input::Lines(io::stdin().lines()));
        }
        let config = Config::builder().auto_add_history(true).build();
        let mut editor = Editor::with_config(config).context("opening the terminal")?;
        if let Some(file) = history.filter(|file| file.exists()) {
            editor.load_history(file).with_context(|| format!("reading {}", file.display()))?;
        }
        Ok(Input::Terminal(Box::new(editor)))
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    fn line(&mut self, prompt: &str) -> Result<Line> {
        match self {
            Input::Lines(lines) => match lines.next() {
                None => Ok(Line::End),
                Some(line) => Ok(Line::Text(line.context("reading standard input")?)),
            },
            Input::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::Dropped),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("reading the terminal"),
            },
        }
    }

    /// A message: a line, and those that it goes on in.
    fn message(&mut self) -> Result<Line> {
        let mut text = String::new();
        let mut prompt = "> ";
        loop {
            match self.line(prompt)? {
                Line::Text(line) => match line.strip_suffix('\\') {
                    Some(line) => {
                        text.push_str(line);
                        text.push('\n');
                        prompt = ". ";
                    }
                    None => {
                        text.push_str(&line);
                        return Ok(Line::Text(text));
                    }
                },
                Line::End if !text.is_empty() => return Ok(Line::Text(text)),
                other => return Ok(other),
            }
        }
    }
}

impl Conversation {
    fn open(args: &Args, threads: usize) -> Result<Self> {
        let model = Model::open(args.model.path(), &Options { threads, ..Options::default() })?;
        let tokenizer = open_tokenizer(args.model.path())?;
        let Some(chat) = Chat::from_tokenizer(&tokenizer) else {
            bail!(
                "{} has no chat template; `sharp generate` goes on from a text",
                args.model.path().display()
            );
        };
        let longest = model.config().max_position_embeddings;
        let context = if args.context == 0 { longest.min(USUAL_CONTEXT) } else { args.context };
        if context > longest {
            bail!("--context is {context}; the model takes {longest} tokens");
        }
        let sampler = args.sampling.options(args.temperature, args.top_p);
        sampler.validate()?;
        Ok(Self {
            session: Session::new(&model, context)?,
            tokenizer,
            chat,
            options: GenerateOptions { max_tokens: args.max_tokens, sampler, ..GenerateOptions::default() },
            messages: args.system.iter().map(|text| Message::new("system", text)).collect(),
            answers: 0,
        })
    }

    fn restart(&mut self) {
        self.messages.retain(|m| m.role == "system");
    }

    /// Takes back everything from the last message of the user on, and gives that message.
    fn undo(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|m| m.role == "user")?;
        self.messages.drain(at..).next().map(|m| m.content)
    }

    /// The conversation's tokens, without its oldest messages where there would be no room for an answer; and
    /// how many were left out.
    fn tokens(&self) -> Result<(Vec<u32>, usize)> {
        let room = self.session.capacity();
        let wanted = self.options.max_tokens.min(room / 4).max(1);
        let system: Vec<Message> = self.messages.iter().filter(|m| m.role == "system").cloned().collect();
        let mut rest: &[Message] = self.messages.get(system.len()..).unwrap_or_default();
        let mut left_out = 0;
        loop {
            let list: Vec<Message> = system.iter().chain(rest).cloned().collect();
            let tokens = self.tokenizer.encode(&self.chat.render(&list, true)?, false)?;
            if tokens.len() + wanted <= room {
                return Ok((tokens, left_out));
            }
            // From one message of the user to the next.
            let next = rest.iter().skip(1).position(|m| m.role == "user").map(|i| i + 1);
            let Some(next) = next else {
                bail!(
                    "the message makes {} tokens, and the context has room for {room} with the answer; shorten it",
                    tokens.len()
                );
            };
            rest = rest.get(next..).unwrap_or_default();
            left_out += next;
        }
    }

    /// Answers the last message.
    fn answer(&mut self, emit: &mut dyn FnMut(&str) -> bool) -> Result<Generation> {
        let (tokens, left_out) = self.tokens()?;
        if left_out > 0 {
            tracing::warn!(
                "the conversation is longer than the context; its first {left_out} messages were left out"
            );
        }
        // What the session has seen already is not run again; the last token is, for its logits.
        let room = tokens.len().saturating_sub(1);
        let same = self.session.tokens().iter().zip(&tokens).take(room).take_while(|(a, b)| a == b).count();
        self.session.truncate(same);
        let mut options = self.options.clone();
        options.sampler.seed = options.sampler.seed.wrapping_add(self.answers);
        self.answers += 1;
        let rest = tokens.get(same..).unwrap_or_default();
        let done = generate(&mut self.session, &self.tokenizer, rest, &options, emit)?;
        self.messages.push(Message::new("assistant", done.text.trim()));
        Ok(done)
    }
}

/// What a typed line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Typed<'a> {
    Nothing,
    Message,
    Quit,
    Help,
    New,
    Undo,
    Again,
    System(&'a str),
    Save(&'a str),
}

impl<'a> Typed<'a> {
    /// Reads a line, which may be a command only where commands are obeyed. What is none is a message.
    fn read(line: &'a str, obey: bool) -> Self {
        let line = line.trim();
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, rest.trim()) {
            ("", _) => Self::Nothing,
            _ if !obey => Self::Message,
            ("/quit" | "/exit", "") => Self::Quit,
            ("/help", "") => Self::Help,
            ("/new", "") => Self::New,
            ("/undo", "") => Self::Undo,
            ("/again", "") => Self::Again,
            ("/system", text) => Self::System(text),
            ("/save", file) => Self::Save(file),
            _ => Self::Message,
        }
    }
}

impl Conversation {
    /// Does what a command asks for, and gives what there is to say.
    fn obey(&mut self, command: Typed<'_>) -> Option<String> {
        match command {
            Typed::Help => Some(HELP.to_owned()),
            Typed::New => {
                self.restart();
                None
            }
            Typed::Undo => self.undo().is_none().then(|| "there is nothing to take back\n".to_owned()),
            Typed::System(text) => {
                self.messages.clear();
                if !text.is_empty() {
                    self.messages.push(Message::new("system", text));
                }
                None
            }
            Typed::Save(file) => save(self, file).err().map(|error| format!("{error:#}\n")),
            Typed::Nothing | Typed::Message | Typed::Quit | Typed::Again => None,
        }
    }
}

/// Says something about the conversation; where standard output is JSON, on standard error.
fn note(text: &str, output: &Output) -> io::Result<()> {
    if output.is_json() { io::stderr().lock().write_all(text.as_bytes()) } else { say(text) }
}

/// Writes to standard output at once.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A piece of an answer as a terminal may show it: a model must not move the cursor or write into the
/// window's title.
fn harmless(piece: &str) -> String {
    let shown =
        |c: char| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    piece.chars().map(shown).collect()
}

pub(crate) fn run(args: Args, global: &Global, output: &Output) -> Result<()> {
    let mut conversation = Conversation::open(&args, global.threads())?;
    let mut input = Input::open(args.history.as_ref())?;
    // Ctrl-C while the model speaks; while a person types, the line editor sees it.
    let stop = Arc::new(AtomicBool::new(false));
    if input.is_terminal() {
        signal_hook::flag::register(signal_hook::consts::SIGINT, stop.clone()).context("catching Ctrl-C")?;
        say("/help lists commands; Ctrl-D ends.\n")?;
    }
    let obey = input.is_terminal() || args.commands;
    loop {
        let text = match input.message()? {
            Line::End => break,
            Line::Dropped => continue,
            Line::Text(text) => text,
        };
        let message = match Typed::read(&text, obey) {
            Typed::Nothing => continue,
            Typed::Quit => break,
            Typed::Message => text,
            Typed::Again => match conversation.undo() {
                Some(message) => message,
                None => {
                    note("there is nothing to answer\n", output)?;
                    continue;
                }
            },
            command => {
                if let Some(said) = conversation.obey(command) {
                    note(&said, output)?;
                }
                continue;
            }
        };
        conversation.messages.push(Message::new("user", message));
        turn(&mut conversation, &stop, output)?;
    }
    if let (Input::Terminal(editor), Some(file)) = (&mut input, &args.history) {
        editor.save_history(file).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// One answer, as it is written or, as JSON, once it is there.
fn turn(conversation: &mut Conversation, stop: &AtomicBool, output: &Output) -> Result<()> {
    stop.store(false, Ordering::SeqCst);
    let terminal = io::stdout().is_terminal();
    let mut failure = None;
    let done = conversation.answer(&mut |piece| {
        if !output.is_json()
            && let Err(error) = if terminal { say(&harmless(piece)) } else { say(piece) }
        {
            failure = Some(error);
            return false;
        }
        !stop.load(Ordering::SeqCst)
    });
    if let Some(error) = failure {
        return Err(error.into());
    }
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            // The message is taken back: the next one may fit.
            conversation.undo();
            output.error(&error);
            return Ok(());
        }
    };
    tracing::info!(
        "{} tokens at {:.0} a second",
        done.tokens.len(),
        done.tokens.len().saturating_sub(1) as f64 / done.decode.as_secs_f64().max(1e-9)
    );
    if output.is_json() {
        let finish = serde_json::to_value(done.finish)?;
        let line =
            json!({"role": "assistant", "content": done.text, "finish": finish, "tokens": done.tokens.len()});
        say(&format!("{line}\n"))?;
    } else {
        say(if done.finish == Finish::Cancelled { " [stopped]\n" } else { "\n" })?;
    }
    Ok(())
}

fn save(conversation: &Conversation, file: &str) -> Result<()> {
    if file.is_empty() {
        bail!("/save needs the name of a file");
    }
    let text = serde_json::to_string_pretty(&json!({ "messages": conversation.messages }))?;
    std::fs::write(file, text + "\n").with_context(|| format!("writing {file}"))
}

#[cfg(test)]
mod tests {
    use super::Typed;

    #[test]
    fn a_line_is_a_command_only_where_it_is_one_to_the_end() {
        for (line, typed) in [
            ("  ", Typed::Nothing),
            ("Hello", Typed::Message),
            (" /quit ", Typed::Quit),
            ("/quit smoking: how?", Typed::Message),
            ("/help me", Typed::Message),
            ("/etc/passwd - what is it?", Typed::Message),
            ("/new york is big", Typed::Message),
            ("/newest", Typed::Message),
            ("/new", Typed::New),
            ("/system\tBe kind ", Typed::System("Be kind")),
            ("/system", Typed::System("")),
            ("/save talk.json", Typed::Save("talk.json")),
        ] {
            assert_eq!(Typed::read(line, true), typed, "{line:?}");
            let piped = if line.trim().is_empty() { Typed::Nothing } else { Typed::Message };
            assert_eq!(Typed::read(line, false), piped, "{line:?}");
        }
    }
}
