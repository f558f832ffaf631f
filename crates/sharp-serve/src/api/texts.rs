//! Single tokens as text and as bytes.

use std::collections::HashMap;
use std::sync::Arc;

use sharp_model::tokenizer::Tokenizer;

use crate::error::Result;

/// Writes single tokens as they read in the middle of a text, where a word keeps the space before it.
pub(crate) struct Texts {
    tokenizer: Arc<Tokenizer>,
    /// A token that stands before the one that is written, and its text.
    anchor: Option<(u32, String)>,
    /// What the characters of a byte-level vocabulary stand for.
    bytes: HashMap<char, u8>,
}

/// Returns the characters with which byte-level vocabularies spell bytes, as GPT-2's `bytes_to_unicode` has
/// them: printable ones stand for themselves, the others are numbered from U+0100 on.
fn byte_level() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|&byte| !printable(byte));
    let numbered = ('\u{100}'..).zip(others);
    (0..=u8::MAX)
        .filter(|&byte| printable(byte))
        .map(|byte| (char::from(byte), byte))
        .chain(numbered)
        .collect()
}

impl Texts {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let anchor = match tokenizer.encode("a", false)?.last() {
            Some(&token) => Some((token, tokenizer.decode(&[token])?)),
            None => None,
        };
        Ok(Self { tokenizer, anchor, bytes: byte_level() })
    }

    /// Returns the text of `token`, where it is whole characters.
    fn whole(&self, token: u32) -> Option<String> {
        let text = match &self.anchor {
            None => self.tokenizer.decode(&[token]).ok(),
            Some((anchor, before)) => self
                .tokenizer
                .decode(&[*anchor, token])
                .ok()
                .and_then(|text| text.strip_prefix(before.as_str()).map(str::to_owned)),
        };
        text.filter(|text| !text.contains(char::REPLACEMENT_CHARACTER))
    }

    /// Returns the text of `token`. One that is a part of a character only is spelled as the vocabulary
    /// spells it, so that no two tokens look alike.
    pub(crate) fn text(&self, token: u32) -> String {
        match self.whole(token) {
            Some(text) if !text.is_empty() => text,
            _ => self.tokenizer.token(token).unwrap_or_else(|| format!("<{token}>")),
        }
    }

    /// Returns the bytes that `token` adds to an answer: put together, those of all tokens are the answer's
    /// text. Special tokens add none.
    pub(crate) fn bytes(&self, token: u32) -> Vec<u8> {
        if self.tokenizer.special_text(token).is_some() {
            return Vec::new();
        }
        if let Some(text) = self.whole(token) {
            return text.into_bytes();
        }
        let spelled = self.tokenizer.token(token).unwrap_or_default();
        // SentencePiece's vocabularies have a token for each byte, `<0xF0>`.
        let byte = spelled.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if let Some(byte) = byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            return vec![byte];
        }
        let bytes: Option<Vec<u8>> = spelled.chars().map(|c| self.bytes.get(&c).copied()).collect();
        bytes.unwrap_or_else(|| spelled.into_bytes())
    }
}

/// Counts the characters of a text that comes as the bytes of its tokens, some of which are parts of one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Characters {
    complete: usize,
    /// Bytes that the last character still lacks.
    lacks: usize,
}

impl Characters {
    /// Returns the place of the character that the next byte belongs to.
    pub(crate) fn complete(self) -> usize {
        self.complete
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let continues = byte & 0xc0 == 0x80;
            if self.lacks > 0 && !continues {
                // What is cut off is written as a character of its own.
                self.complete += 1;
                self.lacks = 0;
            }
            self.lacks = match byte {
                _ if continues => self.lacks.saturating_sub(1),
                0xc2..=0xdf => 1,
                0xe0..=0xef => 2,
                0xf0..=0xf4 => 3,
                _ => 0,
            };
            self.complete += usize::from(self.lacks == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn joined(tokenizer: Tokenizer, text: &str) -> (usize, Vec<u8>) {
        let tokens = tokenizer.encode(text, false).unwrap();
        let texts = Texts::new(Arc::new(tokenizer)).unwrap();
        (tokens.len(), tokens.iter().flat_map(|&token| texts.bytes(token)).collect())
    }

    #[test]
    fn parts_of_a_character_stand_where_it_stands() {
        let mut characters = Characters::default();
        let mut places = Vec::new();
        // A woman, a joiner in two tokens, a woman, a space and a letter; then half a character and a letter.
        let tokens: [&[u8]; 7] =
            ["\u{1f469}".as_bytes(), b"\xe2\x80", b"\x8d", "\u{1f469}".as_bytes(), b" x", b"\xc3", b"y"];
        for token in tokens {
            places.push(characters.complete());
            characters.push(token);
        }
        assert_eq!(places, [0, 1, 1, 2, 3, 5, 5]);
        assert_eq!(characters.complete(), 7);
    }

    #[test]
    fn the_bytes_of_tokens_are_the_texts() {
        // Byte-level, as GPT-2: every byte a token of its own.
        let (json, settings) = sharp_infer::synth_tokenizer(272).unwrap();
        let byte_level =
            Tokenizer::from_parts("tokenizer.json".as_ref(), json.as_bytes(), settings, &[]).unwrap();
        // Every byte that UTF-8 has occurs in one of these.
        let text: String = (0..0x800).chain(0xfff0..0x1_0040).filter_map(char::from_u32).collect();
        let (count, bytes) = joined(byte_level, &text);
        assert!(count >= text.len());
        assert_eq!(bytes, text.as_bytes());
        // Bytes as tokens `<0xF0>` where the vocabulary has no other way, as Llama 2.
        let mut vocab = Map::new();
        for (id, token) in (0..=255).map(|b| format!("<0x{b:02X}>")).chain(["a".into()]).enumerate() {
            vocab.insert(token, json!(id));
        }
        let json = json!({
            "version": "1.0", "added_tokens": [],
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "byte_fallback": true, "vocab": vocab, "merges": []},
        });
        let fallback =
            Tokenizer::from_parts("tokenizer.json".as_ref(), json.to_string().as_bytes(), Map::new(), &[])
                .unwrap();
        assert_eq!(joined(fallback, "a\u{1f600}\u{e9}a"), (8, "a\u{1f600}\u{e9}a".as_bytes().to_vec()));
    }
}
