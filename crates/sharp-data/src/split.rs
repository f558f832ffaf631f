//! Two sides of a corpus with nothing in common.

use std::collections::HashSet;

use crate::document::Document;
use crate::error::{Error, Result};
use crate::rng::mix;

/// The two sides of [`split`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// For training, in the order given.
    pub train: Vec<Document>,
    /// For measuring, in the order given.
    pub held_out: Vec<Document>,
}

/// Divides documents into training and held-out ones, without overlap: duplicates (up to white space) and
/// documents of one group always land on one side.
///
/// `held_out` is the fraction of distinct documents (or groups) to hold out, from 0 to 1, each drawn by
/// itself: a document's side follows from its text (or group) and the seed alone, not from what else there
/// is, so what is held out of one corpus is held out of a mixture with it too. Only where nothing, or
/// everything, would be held out with a fraction strictly between and two or more documents, one changes
/// sides. With fewer than two distinct documents nothing can be held out, and all are for training.
///
/// # Errors
/// [`Error::Argument`] if the fraction is not within 0 and 1.
pub fn split(docs: Vec<Document>, held_out: f64, seed: u64) -> Result<Split> {
    if !(0.0..=1.0).contains(&held_out) {
        return Err(Error::argument(format!("held-out fraction {held_out} is not within 0 and 1")));
    }
    // The seed goes through the mix first, so that neighbouring seeds give unrelated draws.
    let draw = |key: u64| mix(key ^ mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    let draws: Vec<u64> = docs.iter().map(|doc| draw(doc.split_key())).collect();
    let drawn: HashSet<u64> = draws.iter().copied().collect();
    let below = |n: u64| (n as f64) < held_out * TWO_TO_64;
    let mut chosen: HashSet<u64> = drawn.iter().copied().filter(|&n| below(n)).collect();
    if held_out > 0.0 && held_out < 1.0 {
        if drawn.len() < 2 {
            chosen.clear();
        } else if chosen.is_empty() {
            chosen.extend(drawn.iter().min());
        } else if chosen.len() == drawn.len()
            && let Some(last) = drawn.iter().max()
        {
            chosen.remove(last);
        }
    } else if held_out == 1.0 {
        chosen = drawn;
    }
    let mut out = Split::default();
    for (doc, n) in docs.into_iter().zip(draws) {
        if chosen.contains(&n) { out.held_out.push(doc) } else { out.train.push(doc) }
    }
    Ok(out)
}

/// The number of draws there are.
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn groups_stay_together() {
        let docs: Vec<Document> = (0..200)
            .map(|i| Document { group: Some(i % 20), ..Document::text(format!("document {i}")) })
            .collect();
        let s = split(docs, 0.25, 3).unwrap();
        let train: HashSet<_> = s.train.iter().map(|d| d.group).collect();
        let held: HashSet<_> = s.held_out.iter().map(|d| d.group).collect();
        assert!(train.is_disjoint(&held));
        assert_eq!(train.len() + held.len(), 20);
        assert_eq!(s.held_out.len(), 10 * held.len());
    }

    #[test]
    fn about_the_fraction_is_held_out() {
        let docs: Vec<Document> = (0..10_000).map(|i| Document::text(format!("document {i}"))).collect();
        let held_out = split(docs, 0.05, 7).unwrap().held_out.len();
        assert!((400..600).contains(&held_out), "{held_out}"); // 500, four deviations of 22 and more
    }

    /// Held out when it is measured by itself, a document is not trained on in a mixture either.
    #[test]
    fn other_documents_do_not_change_a_side() {
        let own: Vec<Document> = (0..300).map(|i| Document::text(format!("document {i}"))).collect();
        let others = (0..4000).map(|i| Document::text(format!("another {i}")));
        let mixture: Vec<Document> = own.iter().cloned().chain(others).collect();
        for seed in 0..20 {
            let alone = split(own.clone(), 0.1, seed).unwrap();
            let mixed = split(mixture.clone(), 0.1, seed).unwrap();
            let ours = |docs: Vec<Document>| -> Vec<Document> {
                docs.into_iter().filter(|d| d.completion.starts_with("document")).collect()
            };
            assert_eq!(alone.held_out, ours(mixed.held_out), "seed {seed}");
            assert_eq!(alone.train, ours(mixed.train), "seed {seed}");
        }
    }

    #[test]
    fn edges() {
        let one = vec![Document::text("only"); 3];
        assert_eq!(split(one, 0.5, 1).unwrap().train.len(), 3);
        let two = vec![Document::text("a"), Document::text("b")];
        assert_eq!(split(two.clone(), 0.001, 1).unwrap().held_out.len(), 1);
        assert_eq!(split(two.clone(), 0.999, 1).unwrap().train.len(), 1);
        assert_eq!(split(two.clone(), 0.0, 1).unwrap().train.len(), 2);
        assert_eq!(split(two.clone(), 1.0, 1).unwrap().held_out.len(), 2);
        assert!(split(two.clone(), 1.5, 1).is_err());
        assert!(split(two, f64::NAN, 1).is_err());
        assert_eq!(split(vec![], 0.5, 1).unwrap(), Split::default());
    }

    proptest! {
        #[test]
        fn never_overlaps_and_ignores_order(
            words in proptest::collection::vec("[a-c]{1,3}( [ab])?", 0..40),
            fraction in 0.0f64..=1.0,
            seed: u64,
        ) {
            let docs: Vec<_> = words.iter().map(Document::text).collect();
            let mut reversed = docs.clone();
            reversed.reverse();
            let a = split(docs.clone(), fraction, seed).unwrap();
            let mut b = split(reversed, fraction, seed).unwrap();
            b.train.reverse();
            b.held_out.reverse();
            prop_assert_eq!(&a, &b);
            prop_assert_eq!(a.train.len() + a.held_out.len(), docs.len());
            let held: HashSet<_> = a.held_out.iter().map(Document::split_key).collect();
            prop_assert!(a.train.iter().all(|d| !held.contains(&d.split_key())));
        }
    }
}
