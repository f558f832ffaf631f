//! Tokens that end a turn whatever a model's files call its end of text.
//!
//! Many converted chat models name `<|endoftext|>` as their end while their template ends turns with another
//! token. A generation that waits for the named one talks on in the user's place.

/// Texts of tokens that end a turn in published chat models. llama.cpp ends a generation at each of them, as
/// `special_eog_ids` in its `llama-vocab.cpp` says.
const TURN_ENDS: [&str; 12] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
];

/// Says whether a token of this text ends a turn, in whatever model it is.
pub(crate) fn is_turn_end(text: &str) -> bool {
    TURN_ENDS.contains(&text)
}

/// Picks the tokens that end a turn from a vocabulary's added tokens, each an id and a text, in that order.
pub(crate) fn turn_ends<'a>(added: impl Iterator<Item = (u32, &'a str)> + Clone) -> Vec<u32> {
    let has = |wanted: &str| added.clone().any(|(_, text)| text == wanted);
    // Harmony's channels end with `<|end|>`, and the answer goes on after it.
    let harmony = has("<|return|>") && has("<|call|>");
    added
        .clone()
        .filter(|&(_, text)| is_turn_end(text) && !(harmony && text == "<|end|>"))
        .map(|(id, _)| id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::turn_ends;

    #[test]
    fn a_channel_of_harmony_ends_no_turn() {
        let plain = [(3, "<|end|>"), (4, "<|user|>"), (7, "<|im_end|>")];
        assert_eq!(turn_ends(plain.into_iter()), [3, 7]);
        let harmony = [(3, "<|end|>"), (4, "<|return|>"), (5, "<|call|>")];
        assert_eq!(turn_ends(harmony.into_iter()), [4, 5]);
    }
}
