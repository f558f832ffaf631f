//! The unit of data: a text, or a prompt with what should follow it.

use std::hash::Hasher;

use crate::hash::StableHash;

/// One document: a plain text, a prompt with its completion, or a conversation.
///
/// Of a plain text, `prompt` is empty and `completion` holds it all. Of a conversation, `prompt` is
/// everything before the assistant's first words, rendered with the chat template, `completion` those words,
/// and `turns` the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// What comes first and is not counted in the loss.
    pub prompt: String,
    /// What follows it and is counted in the loss.
    pub completion: String,
    /// The further turns of a conversation, in order.
    pub turns: Vec<Turn>,
    /// Whether a chat template wrote the text, which then holds its own begin and end tokens.
    pub chat: bool,
    /// Documents of one group belong together (they ask about one passage): a split keeps them on one side.
    pub group: Option<u64>,
}

/// A further turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// What the others said; not counted in the loss.
    pub prompt: String,
    /// What the assistant said; counted in the loss.
    pub completion: String,
}

impl Document {
    /// Makes a document of a plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Document { completion: text.into(), ..Document::default() }
    }

    /// Makes a document of a prompt and its completion.
    pub fn pair(prompt: impl Into<String>, completion: impl Into<String>) -> Self {
        Document { prompt: prompt.into(), completion: completion.into(), ..Document::default() }
    }

    /// Returns the pieces in order, each with whether it is counted in the loss; empty pieces are left out.
    pub fn pieces(&self) -> impl Iterator<Item = (&str, bool)> {
        [(self.prompt.as_str(), false), (self.completion.as_str(), true)]
            .into_iter()
            .chain(
                self.turns.iter().flat_map(|t| [(t.prompt.as_str(), false), (t.completion.as_str(), true)]),
            )
            .filter(|(text, _)| !text.is_empty())
    }

    /// Returns the whole text.
    pub fn full_text(&self) -> String {
        self.pieces().map(|(text, _)| text).collect()
    }

    /// Returns what two documents must share to be kept on one side of a split: the group where there is one,
    /// otherwise the text with its white space evened out. Stable across versions of this crate and
    /// machines.
    pub fn split_key(&self) -> u64 {
        if let Some(group) = self.group {
            return group;
        }
        text_key(self.pieces().map(|(text, _)| text))
    }
}

/// Hashes a text given in pieces, blind to the amount of white space.
pub(crate) fn text_key<'a>(pieces: impl Iterator<Item = &'a str>) -> u64 {
    let mut hash = StableHash::default();
    let mut gap = false;
    let mut started = false;
    for piece in pieces {
        for c in piece.chars() {
            if c.is_whitespace() {
                gap = started;
                continue;
            }
            if gap {
                hash.write_u8(b' ');
                gap = false;
            }
            started = true;
            hash.write(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_does_not_make_a_new_document() {
        let a = Document::text("A  b\n c ");
        let b = Document::pair("A b", " c");
        assert_eq!(a.split_key(), b.split_key());
        assert_ne!(a.split_key(), Document::text("A bc").split_key());
        assert_ne!(Document::text("ab").split_key(), Document::text("a b").split_key());
    }
}
