//! "Did you mean": the known word nearest to a misspelt one.

/// The candidate nearest to `word`, if one is near enough to be a likely slip (at most a third of the letters
/// changed, dropped, doubled or swapped, and at least one edit is always forgiven).
///
/// ```
/// assert_eq!(sharp_model::suggest::nearest("refernce", ["layer", "reference"]), Some("reference"));
/// assert_eq!(sharp_model::suggest::nearest("colour", ["layer", "reference"]), None);
/// ```
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|c| (distance(&lower, &c.to_lowercase()), c))
        .filter(|&(d, c)| d <= (c.chars().count().max(lower.chars().count()) / 3).max(1))
        .min_by_key(|&(d, _)| d)
        .map(|(_, c)| c)
}

/// A sentence for an unknown key: names it, offers the nearest known one, or lists them all.
pub fn unknown(kind: &str, word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("unknown {kind} `{word}`; did you mean `{near}`?"),
        None => format!("unknown {kind} `{word}`; known are {}", known.join(", ")),
    }
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`; words longer than 64 letters are never near.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(65).collect();
    let b: Vec<char> = b.chars().take(65).collect();
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    // Three rows of the usual table: the swap looks back two.
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &cb) in b.iter().enumerate() {
            let mut best = (last[j + 1] + 1).min(row[j] + 1).min(last[j] + usize::from(ca != cb));
            if i > 0 && j > 0 && ca == b[j - 1] && a[i - 1] == cb {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("from", "form"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn offers_the_nearest_or_all() {
        assert_eq!(unknown("key", "leyer", &["layer", "form"]), "unknown key `leyer`; did you mean `layer`?");
        assert_eq!(unknown("key", "zzzzz", &["layer", "form"]), "unknown key `zzzzz`; known are layer, form");
        assert_eq!(nearest("low-rank", ["low_rank"]), Some("low_rank"));
    }
}
