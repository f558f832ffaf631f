//! Text from a model: sampling, end of text, stop strings, streaming.

use std::ops::Range;
use std::time::{Duration, Instant};

use sharp_model::tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::sampler::{Sampler, SamplerOptions};
use crate::session::Session;

/// How much text to generate, and how.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// At most so many tokens.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
    /// Whether tokens that end a text are ignored.
    pub ignore_eos: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_tokens: 256, sampler: SamplerOptions::default(), stop: Vec::new(), ignore_eos: false }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// A token that ends a text.
    Eos,
    /// A stop string.
    Stop,
    /// As many tokens as asked for, or as the session has room for.
    Length,
    /// The caller did not want more.
    Cancelled,
}

/// A finished generation.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The text, without stop string and special tokens.
    pub text: String,
    /// The tokens chosen, the last of which may be the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Time for the prompt.
    pub prefill: Duration,
    /// Time for the tokens after the first.
    pub decode: Duration,
}

/// Finds stop strings in text that arrives in pieces, holding back what may be the beginning of one.
///
/// Special tokens are searched too, though their text is not given out.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    /// Bytes of `held` that are special tokens' text, in order.
    hidden: Vec<Range<usize>>,
}

impl StopStrings {
    /// Makes a search for `stops`; empty ones are left out.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), ..Self::default() }
    }

    /// Appends a piece of text. Returns the text that no stop string can begin in any more, and whether one
    /// was found; what follows it is dropped.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        // The first to begin ends the text, whichever is listed first.
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            let out = self.take(at);
            self.held.clear();
            self.hidden.clear();
            return (out, true);
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        (self.take(self.held.len() - keep), false)
    }

    /// Appends the piece of text that a token completes, and the token's own text where it is a special one,
    /// as [`StopStrings::push`] does.
    pub fn push_token(&mut self, piece: &str, special: Option<&str>) -> (String, bool) {
        let (mut out, mut stopped) = self.push(piece);
        if let Some(special) = special.filter(|_| !stopped) {
            let (more, found) = self.push_special(special);
            out.push_str(&more);
            stopped = found;
        }
        (out, stopped)
    }

    /// Appends the text of a special token, which stop strings may contain and which is never given out.
    fn push_special(&mut self, text: &str) -> (String, bool) {
        if self.stops.is_empty() {
            return (String::new(), false);
        }
        self.hidden.push(self.held.len()..self.held.len() + text.len());
        self.push(text)
    }

    /// Returns what was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        self.take(self.held.len())
    }

    /// Removes the first `n` bytes of the held text and gives what is to be seen of them.
    fn take(&mut self, n: usize) -> String {
        let rest = self.held.split_off(n);
        let text = std::mem::replace(&mut self.held, rest);
        let (mut out, mut at) = (String::with_capacity(n), 0);
        for hidden in &self.hidden {
            out.push_str(&text[at..hidden.start.min(n)]);
            at = hidden.end.min(n);
        }
        out.push_str(&text[at..]);
        self.hidden.retain(|hidden| hidden.end > n);
        for hidden in &mut self.hidden {
            *hidden = hidden.start.saturating_sub(n)..hidden.end - n;
        }
        out
    }
}

/// Length in bytes of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(i, c)| i + c.len_utf8())
        .rev()
        .find(|&n| text.ends_with(&stop[..n]))
        .unwrap_or(0)
}

/// Appends `prompt` to the session and generates a continuation.
///
/// Calls `emit(text)` with each piece of text that no stop string can take back any more; `emit` returns
/// whether to go on.
///
/// # Errors
/// [`Error::Full`] if there is no room for the prompt and one token, [`Error::Argument`] for an empty prompt
/// on an empty session or for sampler options, [`Error::NotFinite`] if the model gives no numbers,
/// [`Error::Model`] from the tokenizer.
pub fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    emit: &mut dyn FnMut(&str) -> bool,
) -> Result<Generation> {
    let mut sampler = Sampler::new(options.sampler.clone())?;
    sampler.reserve(session.logits().len());
    if prompt.is_empty() && session.is_empty() {
        return Err(Error::argument("an empty prompt"));
    }
    let begun = Instant::now();
    session.prefill(prompt)?;
    let prefill = begun.elapsed();
    let eos = &session.model().config().eos_token_ids;
    let ends: Vec<u32> = if options.ignore_eos {
        Vec::new()
    } else {
        eos.iter().chain(tokenizer.end_ids()).copied().collect()
    };
    let room = session.capacity() - session.len();
    let most = options.max_tokens.min(room + 1);
    let mut tokens = Vec::with_capacity(most.min(1 << 16));
    let mut stops = StopStrings::new(options.stop.iter().cloned());
    let mut stream = tokenizer.stream(session.tokens(), true);
    let mut text = String::new();
    let mut finish = Finish::Length;
    let begun = Instant::now();
    while tokens.len() < most {
        let position = session.len();
        let (logits, history) = session.logits_mut();
        let token = sampler.sample(logits, history).ok_or(Error::NotFinite { position })?;
        tokens.push(token);
        if ends.contains(&token) {
            finish = Finish::Eos;
            break;
        }
        let (out, stopped) = stops.push_token(&stream.push(token)?, tokenizer.special_text(token));
        text.push_str(&out);
        if !out.is_empty() && !emit(&out) {
            finish = Finish::Cancelled;
            break;
        }
        if stopped {
            finish = Finish::Stop;
            break;
        }
        if tokens.len() < most {
            session.decode(token)?;
        }
    }
    if matches!(finish, Finish::Length | Finish::Eos) {
        // An unfinished character at the very end becomes visible as such.
        let (mut rest, stopped) = stops.push(&stream.finish()?);
        if stopped {
            finish = Finish::Stop;
        } else {
            rest.push_str(&stops.finish());
        }
        if !rest.is_empty() {
            text.push_str(&rest);
            emit(&rest);
        }
    }
    Ok(Generation { text, tokens, finish, prefill, decode: begun.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut s = StopStrings::new(stops.iter().map(|s| (*s).to_owned()));
        let mut all = String::new();
        for p in pieces {
            let (out, stopped) = s.push(p);
            all.push_str(&out);
            if stopped {
                return (all, true);
            }
        }
        all.push_str(&s.finish());
        (all, false)
    }

    #[test]
    fn stop_strings_across_pieces() {
        assert_eq!(through(&["END"], &["ab E", "N", "D more"]), ("ab ".into(), true));
        assert_eq!(through(&["END"], &["ab E", "N", "d"]), ("ab ENd".into(), false));
        assert_eq!(through(&["\n\n", "x"], &["a\n", "b\n", "\nc"]), ("a\nb".into(), true));
        assert_eq!(through(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(through(&["éé"], &["aé", "b"]), ("aéb".into(), false));
        assert_eq!(through(&["long", "o"], &["l", "ong"]), (String::new(), true));
        assert_eq!(through(&[""], &["a"]), ("a".into(), false));
        assert_eq!(through(&[], &["a", "b"]), ("ab".into(), false));
    }

    #[test]
    fn special_tokens_are_searched_and_not_given_out() {
        let mut s = StopStrings::new(["x<|turn|>\n".to_owned()]);
        assert_eq!(s.push("ax"), ("a".into(), false));
        assert_eq!(s.push_special("<|turn|>"), (String::new(), false));
        assert_eq!(s.push("b"), ("xb".into(), false));
        assert_eq!(s.push("x"), (String::new(), false));
        assert_eq!(s.push_special("<|turn|>"), (String::new(), false));
        assert_eq!(s.push("\nmore"), (String::new(), true));
        assert_eq!(s.push("x"), (String::new(), false));
        assert_eq!(s.push_special("<|turn|>"), (String::new(), false));
        assert_eq!(s.finish(), "x");
        assert_eq!(StopStrings::new([]).push_special("<|turn|>"), (String::new(), false));
    }

    #[test]
    fn nothing_is_held_back_without_need() {
        let mut s = StopStrings::new(["###".to_owned()]);
        assert_eq!(s.push("hello"), ("hello".into(), false));
        assert_eq!(s.push("#"), (String::new(), false));
        assert_eq!(s.push("!"), ("#!".into(), false));
    }
}
