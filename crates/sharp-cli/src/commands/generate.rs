//! `sharp generate`: text from a model.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sharp_data::{Chat, Message};
use sharp_infer::{Finish, GenerateOptions, Generation, Model, Options, Session, generate};
use sharp_model::tokenizer::Tokenizer;

use crate::Global;
use crate::model::{ModelArg, open_tokenizer};
use crate::output::{self, Output};
use crate::sampling::Sampling;

/// Generate text.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp generate --model model.sharp --prompt \"Once upon a time\" --max-tokens 64"
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// Text to go on from; `-` reads it from standard input.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Put the prompt into the model's chat template as a message of the user.
    #[arg(long)]
    chat: bool,
    /// At most so many tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// 0 always takes the likeliest token; higher is more varied.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Only the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    #[command(flatten)]
    sampling: Sampling,
    /// Text that ends the generation; may be given more than once.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
}

/// An open model with its tokenizer.
pub(crate) struct Runner {
    model: Model,
    tokenizer: Tokenizer,
}

/// What was generated, and how fast.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    /// The text after the prompt.
    pub(crate) text: String,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: usize,
    /// Tokens generated.
    pub(crate) tokens: usize,
    /// Why it ended.
    pub(crate) finish: &'static str,
    /// Prompt tokens a second.
    pub(crate) prefill_tokens_per_second: f64,
    /// Generated tokens a second, the first not counted.
    pub(crate) decode_tokens_per_second: f64,
}

impl Runner {
    /// Opens the model at `path` to run on `threads` threads.
    pub(crate) fn open(path: &Path, threads: usize) -> Result<Self> {
        let model = Model::open(path, &Options { threads, ..Options::default() })?;
        let tokenizer = open_tokenizer(path)?;
        Ok(Runner { model, tokenizer })
    }

    /// Goes on from `prompt` with the likeliest tokens.
    pub(crate) fn greedy(&self, prompt: &str, max_tokens: usize) -> Result<Written> {
        let options = GenerateOptions { max_tokens, ..GenerateOptions::default() };
        self.write(&self.tokenizer.encode(prompt, true)?, &options, &mut |_| true)
    }

    fn write(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        emit: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Written> {
        let longest = self.model.config().max_position_embeddings;
        if prompt.is_empty() {
            bail!("the prompt is empty, and this model has no token that begins a text; give some text");
        }
        if prompt.len() >= longest {
            bail!("the prompt has {} tokens, and the model takes {longest}; shorten it", prompt.len());
        }
        let capacity = prompt.len().saturating_add(options.max_tokens).min(longest);
        let mut session = Session::new(&self.model, capacity)?;
        let done = generate(&mut session, &self.tokenizer, prompt, options, emit)?;
        Ok(Written::new(prompt.len(), done))
    }
}

impl Written {
    fn new(prompt_tokens: usize, done: Generation) -> Self {
        let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
        Written {
            prompt_tokens,
            tokens: done.tokens.len(),
            finish: match done.finish {
                Finish::Eos => "eos",
                Finish::Stop => "stop",
                Finish::Length => "length",
                _ => "cancelled",
            },
            prefill_tokens_per_second: rate(prompt_tokens, done.prefill),
            decode_tokens_per_second: rate(done.tokens.len().saturating_sub(1), done.decode),
            text: done.text,
        }
    }
}

pub(crate) fn run(args: Args, global: &Global, output: &Output) -> Result<()> {
    let runner = Runner::open(args.model.path(), global.threads())?;
    let text = if args.prompt == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("reading the prompt from standard input")?;
        text
    } else {
        args.prompt
    };
    let prompt = if args.chat {
        let Some(chat) = Chat::from_tokenizer(&runner.tokenizer) else {
            bail!("{} has no chat template; leave --chat out", args.model.path().display());
        };
        runner.tokenizer.encode(&chat.render(&[Message::new("user", text)], true)?, false)?
    } else {
        runner.tokenizer.encode(&text, true)?
    };
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampler: args.sampling.options(args.temperature, args.top_p),
        stop: args.stop,
        ..GenerateOptions::default()
    };
    let mut failure = None;
    let stream = !output.is_json();
    let written = runner.write(&prompt, &options, &mut |piece| {
        if !stream {
            return true;
        }
        match output::say(piece) {
            Ok(()) => true,
            Err(error) => {
                failure = Some(error);
                false
            }
        }
    })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    tracing::info!(
        "{} prompt tokens at {:.0} a second, {} tokens at {:.0} a second",
        written.prompt_tokens,
        written.prefill_tokens_per_second,
        written.tokens,
        written.decode_tokens_per_second
    );
    output.result(&written, || "\n".to_owned())
}
