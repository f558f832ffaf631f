//! "Did you mean": the nearest of the names that would have been right.

/// `; did you mean "X"?` where a name is near enough, otherwise the list of all names.
pub(crate) fn hint(typed: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), *name))
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((distance, name)) if distance <= (typed.len() / 3).max(2) => format!("; did you mean {name:?}?"),
        _ => format!("; there are: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_and_far_ones_listed() {
        assert_eq!(hint("stratgey", &["strategy", "seed"]), "; did you mean \"strategy\"?");
        assert_eq!(hint("zzzzzzzz", &["strategy", "seed"]), "; there are: strategy, seed");
    }
}
