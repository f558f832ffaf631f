//! Two sides of a corpus with nothing in common.

use std::collections::{HashMap, HashSet};

use crate::document::Document;
use crate::error::{Error, Result};
use crate::seed::mix;

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
/// `held_out` is the fraction of distinct documents (or groups) to hold out, from 0 to 1; strictly between, and given
/// two or more, each side gets at least one. Which ones follows from their text and the seed alone, not from
/// their order. With fewer than two distinct documents nothing can be held out, and all are for training.
///
/// # Errors
/// [`Error::Argument`] if the fraction is not within 0 and 1.
pub fn split(docs: Vec<Document>, held_out: f64, seed: u64) -> Result<Split> {
    if !(0.0..=1.0).contains(&held_out) {
        return Err(Error::argument(format!("held-out fraction {held_out} is not within 0 and 1")));
    }
    let keys: Vec<u64> = docs.iter().map(Document::split_key).collect();
    let mut order: HashMap<u64, u64> = HashMap::new();
    for &key in &keys {
        // The seed goes through the mix first, so that neighbouring seeds give unrelated orders.
        order.insert(key, mix(key ^ mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))));
    }
    let mut ranked: Vec<(u64, u64)> = order.into_iter().map(|(key, rank)| (rank, key)).collect();
    ranked.sort_unstable();
    let n = ranked.len();
    let mut take = (held_out * n as f64).round() as usize;
    if held_out > 0.0 && held_out < 1.0 {
        take = if n < 2 { 0 } else { take.clamp(1, n - 1) };
    }
    let chosen: HashSet<u64> = ranked.iter().take(take).map(|(_, key)| *key).collect();
    let mut out = Split::default();
    for (doc, key) in docs.into_iter().zip(keys) {
        if chosen.contains(&key) { out.held_out.push(doc) } else { out.train.push(doc) }
    }
    Ok(out)
}

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
        assert_eq!(held.len(), 5);
        assert_eq!(s.held_out.len(), 50);
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
