//! The token a chat template ends an answer with.

use sharp_model::tokenizer::Tokenizer;

use crate::chat::{Chat, Message};

/// Words that no template writes by itself.
const SAID: [&str; 2] = ["sharp asks 4f1c", "sharp answers 9b7e"];

impl Chat {
    /// Returns the token that the template writes after an answer, which ends a generation whatever the
    /// model's files name as its end. `None` where it writes no token there, or the one that begins a turn.
    pub fn turn_end(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let talk = [Message::new("user", SAID[0]), Message::new("assistant", SAID[1])];
        let text = self.render(&talk, false).ok()?;
        let special = tokenizer.special_tokens();
        let (before, after) = text.rsplit_once(SAID[1])?;
        let after = after.trim_start();
        let longest = |(_, token): &&(u32, String)| token.len();
        let (id, end) =
            special.iter().filter(|(_, t)| !t.is_empty() && after.starts_with(t)).max_by_key(longest)?;
        // Some templates write the beginning of the next turn without being asked to.
        let begins = |before: &str| {
            let at = |token: &str| before.rfind(token).map(|at| at + token.len());
            let last = special.iter().filter_map(|(_, t)| Some((at(t)?, t))).max_by_key(|(at, _)| *at);
            last.is_some_and(|(_, token)| token == end)
        };
        let first = text.split_once(SAID[0]).map_or("", |(before, _)| before);
        (!begins(before.split_once(SAID[0]).map_or(before, |(_, last)| last)) && !begins(first))
            .then_some(*id)
    }
}
