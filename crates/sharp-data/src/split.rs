//! Three sides of a corpus with nothing in common.

use sharp_schema::Side;

use crate::document::Document;
use crate::error::{Error, Result};
use crate::rng::mix;

/// The three sides of [`split`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// For training, in the order given.
    pub train: Vec<Document>,
    /// For choices while training: the best state, the rate; in the order given.
    pub validation: Vec<Document>,
    /// For measuring what is reported, in the order given.
    pub held_out: Vec<Document>,
}

/// Divides documents into those for training, validation and measuring, without overlap: duplicates (up to
/// white space) and documents of one group always land on one side.
///
/// `held_out` is the fraction of distinct documents (or groups) to hold out, from 0 to 1, each drawn by
/// itself: a document's side follows from its text (or group) and the seed alone, not from what else there
/// is, so what is held out of one corpus is held out of a mixture with it too. As many again are for
/// validation, but no more than stay for training. Only where nothing, or everything, would be held out with
/// a fraction strictly between and two or more documents, one changes sides; likewise of the rest for
/// validation. With fewer than two distinct documents nothing can be held out, with fewer than three there is
/// no validation.
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
    let mut drawn = draws.clone();
    drawn.sort_unstable();
    drawn.dedup();
    let held = lowest(&drawn, held_out);
    let rest = &drawn[held..];
    let validation = held_out + held_out.min((1.0 - held_out) / 2.0);
    let chosen = if held_out == 0.0 { 0 } else { lowest(rest, validation) };
    // The draws of each side lie together: those to measure on are the lowest, those to train on the highest.
    let place = |n: u64| drawn.partition_point(|&other| other < n);
    let mut out = Split::default();
    for (doc, n) in docs.into_iter().zip(draws) {
        match place(n) {
            at if at < held => out.held_out.push(doc),
            at if at < held + chosen => out.validation.push(doc),
            _ => out.train.push(doc),
        }
    }
    Ok(out)
}

/// Returns the documents on one side of [`split`]; for [`Side::All`] all of them.
///
/// # Errors
/// As [`split`].
pub fn side(docs: Vec<Document>, side: Side, held_out: f64, seed: u64) -> Result<Vec<Document>> {
    let sides = |docs| split(docs, held_out, seed);
    Ok(match side {
        Side::All => docs,
        Side::Train => sides(docs)?.train,
        Side::Validation => sides(docs)?.validation,
        Side::HeldOut => sides(docs)?.held_out,
    })
}

/// Counts the draws below a fraction of all that could be drawn; `sorted` is in order. With a fraction
/// strictly between 0 and 1 and two draws or more, neither none nor all.
fn lowest(sorted: &[u64], fraction: f64) -> usize {
    let below = sorted.partition_point(|&n| (n as f64) < fraction * TWO_TO_64);
    match (fraction, sorted.len()) {
        (0.0, _) => 0,
        (1.0, all) => all,
        (_, 0 | 1) => 0,
        (_, all) => below.clamp(1, all - 1),
    }
}

/// The number of draws there are.
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn groups_stay_together() {
        let docs: Vec<Document> = (0..200)
            .map(|i| Document { group: Some(i % 20), ..Document::text(format!("document {i}")) })
            .collect();
        let s = split(docs, 0.25, 3).unwrap();
        let groups = |docs: &[Document]| docs.iter().map(|d| d.group).collect::<HashSet<_>>();
        let sides = [groups(&s.train), groups(&s.validation), groups(&s.held_out)];
        assert_eq!(sides.iter().map(HashSet::len).sum::<usize>(), 20, "no group is on two sides");
        assert!(sides.iter().all(|side| !side.is_empty()));
        assert_eq!(s.held_out.len(), 10 * sides[2].len());
    }

    #[test]
    fn about_the_fraction_is_held_out_and_as_much_is_for_validation() {
        let docs: Vec<Document> = (0..10_000).map(|i| Document::text(format!("document {i}"))).collect();
        let sides = |held_out| {
            let s = split(docs.clone(), held_out, 7).unwrap();
            [s.train.len(), s.validation.len(), s.held_out.len()]
        };
        // 500, four deviations of 22 and more.
        for side in &sides(0.05)[1..] {
            assert!((400..600).contains(side), "{side}");
        }
        let [train, validation, held_out] = sides(0.8);
        assert!(train.abs_diff(1000) < 200 && validation.abs_diff(1000) < 200, "{train} {validation}");
        assert!(held_out.abs_diff(8000) < 200, "{held_out}");
    }

    /// What was held out before there was a validation side is held out still: figures stay comparable.
    #[test]
    fn the_held_out_side_is_that_of_two_sides() {
        let docs: Vec<Document> = (0..2000).map(|i| Document::text(format!("document {i}"))).collect();
        let of_two_sides: Vec<Document> = docs
            .iter()
            .filter(|doc| {
                let draw = mix(doc.split_key() ^ mix(7u64.wrapping_add(0x9e37_79b9_7f4a_7c15)));
                (draw as f64) < 0.05 * TWO_TO_64
            })
            .cloned()
            .collect();
        assert_eq!(split(docs, 0.05, 7).unwrap().held_out, of_two_sides);
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
            assert_eq!(alone.validation, ours(mixed.validation), "seed {seed}");
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
        let three = [two.clone(), vec![Document::text("c")]].concat();
        for fraction in [0.001, 0.5, 0.999] {
            let s = split(three.clone(), fraction, 1).unwrap();
            let all = [s.train, s.validation, s.held_out].concat();
            assert_eq!(all.len(), 3, "{fraction}");
        }
        let s = split(three.clone(), 0.001, 1).unwrap();
        assert_eq!([s.train.len(), s.validation.len(), s.held_out.len()], [1, 1, 1]);
        assert_eq!(split(three, 0.0, 1).unwrap().train.len(), 3);
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
            b.validation.reverse();
            b.held_out.reverse();
            prop_assert_eq!(&a, &b);
            prop_assert_eq!(a.train.len() + a.validation.len() + a.held_out.len(), docs.len());
            let keys = |docs: &[Document]| docs.iter().map(Document::split_key).collect::<HashSet<_>>();
            let (train, validation, held) = (keys(&a.train), keys(&a.validation), keys(&a.held_out));
            prop_assert!(train.is_disjoint(&validation) && held.is_disjoint(&(&train | &validation)));
        }
    }
}
