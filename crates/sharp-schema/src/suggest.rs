//! Suggests the known word nearest to a misspelt one.

/// Returns the candidate nearest to `word`, if it is near enough to be a likely slip.
///
/// Near enough: at most a third of the letters changed, dropped, doubled or swapped. Two edits are always
/// forgiven in words of four letters and more, one in shorter words. Case does not count, and `-` counts as
/// `_`.
///
/// ```
/// assert_eq!(sharp_schema::suggest::nearest("refernce", ["layer", "reference"]), Some("reference"));
/// assert_eq!(sharp_schema::suggest::nearest("colour", ["layer", "reference"]), None);
/// ```
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let typed = plain(word);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&typed, &plain(candidate)), candidate))
        .filter(|&(edits, candidate)| {
            let length = candidate.chars().count().max(typed.chars().count());
            edits <= (length / 3).max(if length < 4 { 1 } else { 2 })
        })
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, candidate)| candidate)
}

/// Formats what follows the naming of an unknown word: the nearest known one, or all of them.
///
/// ```
/// use sharp_schema::suggest::hint;
/// assert_eq!(hint("stratgey", &["strategy", "seed"]), "; did you mean `strategy`?");
/// assert_eq!(hint("zzzzzzzz", &["strategy", "seed"]), "; known are strategy, seed");
/// ```
pub fn hint(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => format!("; known are {}", known.join(", ")),
    }
}

/// Formats the sentence for an unknown word of some kind, with [`hint`].
///
/// ```
/// use sharp_schema::suggest::unknown;
/// assert_eq!(unknown("key", "leyer", &["layer", "form"]), "unknown key `leyer`; did you mean `layer`?");
/// ```
pub fn unknown(kind: &str, word: &str, known: &[&str]) -> String {
    format!("unknown {kind} `{word}`{}", hint(word, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_the_nearest_or_lists_all() {
        assert_eq!(unknown("key", "leyer", &["layer", "form"]), "unknown key `leyer`; did you mean `layer`?");
        assert_eq!(unknown("key", "zzzzz", &["layer", "form"]), "unknown key `zzzzz`; known are layer, form");
        assert_eq!(nearest("low-rank", ["low_rank"]), Some("low_rank"));
        assert_eq!(nearest("LOW_RANK", ["low_rank"]), Some("low_rank"));
    }

    #[test]
    fn a_word_with_nothing_near_it_gets_no_suggestion() {
        assert_eq!(nearest("f8", ["f16", "f32"]), None);
        assert_eq!(nearest("pruned", ["none", "drop"]), None);
        assert_eq!(nearest("", ["none"]), None);
    }

    #[test]
    fn long_words_may_have_more_slips() {
        assert_eq!(
            nearest("row_colum_scaled_lowrank", ["row_column_scaled_low_rank"]),
            Some("row_column_scaled_low_rank")
        );
    }
}
