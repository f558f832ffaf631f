//! Whether what a model was trained on gives away the questions it is measured with.

use std::collections::{HashMap, HashSet};
use std::hash::Hasher;

use serde::Serialize;

use crate::document::Document;
use crate::hash::StableHash;
use crate::task::Question;

/// Words in a row that two texts must share to count as overlapping, as in the GPT-3 paper (Brown et al.,
/// 2020, appendix C).
pub const NGRAM_WORDS: usize = 13;

/// Questions with fewer words than this are not looked for: so short a text can occur anywhere.
pub const SHORTEST_WORDS: usize = 8;

/// What [`overlap`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Overlap {
    /// How many questions were looked for.
    pub questions: usize,
    /// How many were too short to look for.
    pub too_short: usize,
    /// Positions of the questions that share words with a document, ascending.
    pub shared_questions: Vec<usize>,
    /// Positions of the documents that share words with a question, ascending.
    pub shared_documents: Vec<usize>,
}

impl Overlap {
    /// Whether nothing is shared.
    pub fn is_clean(&self) -> bool {
        self.shared_documents.is_empty()
    }
}

/// Looks for the questions (context and right answer) in training documents.
///
/// Both are taken as lower-case words without punctuation. A question and a document overlap when they share
/// [`NGRAM_WORDS`] words in a row; of a shorter question, all of its words in a row, if they are at least
/// [`SHORTEST_WORDS`].
pub fn overlap<'a>(docs: impl IntoIterator<Item = &'a Document>, questions: &[Question]) -> Overlap {
    let mut out = Overlap { questions: questions.len(), ..Overlap::default() };
    // Hash of a run of words -> questions it occurs in, for each length of run.
    let mut runs: HashMap<usize, HashMap<u64, Vec<usize>>> = HashMap::new();
    for (i, question) in questions.iter().enumerate() {
        let text = question.choices.get(question.gold).map(|c| format!("{}{}", c.context, c.continuation));
        let words = words(&text.unwrap_or_default());
        let n = words.len().min(NGRAM_WORDS);
        if n < SHORTEST_WORDS {
            out.too_short += 1;
            continue;
        }
        let map = runs.entry(n).or_default();
        for run in words.windows(n) {
            let of = map.entry(run_hash(run)).or_default();
            if of.last() != Some(&i) {
                of.push(i);
            }
        }
    }
    let mut found: HashSet<usize> = HashSet::new();
    for (i, doc) in docs.into_iter().enumerate() {
        let words = words(&doc.full_text());
        let mut shared = false;
        for (&n, map) in &runs {
            for run in words.windows(n) {
                if let Some(of) = map.get(&run_hash(run)) {
                    shared = true;
                    found.extend(of);
                }
            }
        }
        if shared {
            out.shared_documents.push(i);
        }
    }
    out.shared_questions = found.into_iter().collect();
    out.shared_questions.sort_unstable();
    out
}

/// Returns the documents that share nothing with the questions.
pub fn without_overlap(docs: Vec<Document>, overlap: &Overlap) -> Vec<Document> {
    let shared: HashSet<usize> = overlap.shared_documents.iter().copied().collect();
    docs.into_iter().enumerate().filter(|(i, _)| !shared.contains(i)).map(|(_, d)| d).collect()
}

/// Hashes each word: lower case, letters and digits only.
fn words(text: &str) -> Vec<u64> {
    let mut out = Vec::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
        let mut hash = StableHash::default();
        hash.write(word.to_lowercase().as_bytes());
        out.push(hash.finish());
    }
    out
}

fn run_hash(run: &[u64]) -> u64 {
    let mut hash = StableHash::default();
    for word in run {
        hash.write(&word.to_le_bytes());
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Choice;

    fn question(context: &str, answer: &str) -> Question {
        let choice = |a: &str| Choice { context: context.into(), continuation: format!(" {a}") };
        Question { id: 0, choices: vec![choice("wrong"), choice(answer)], gold: 1 }
    }

    #[test]
    fn finds_what_is_shared_and_nothing_else() {
        let long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen";
        let questions = [
            question(&format!("Question: {long}?\nAnswer:"), "yes"),
            question("a b c d e f g", "h"),
            question("too short", "a"),
        ];
        let docs = [
            Document::text(format!("Before. {}! After", long.to_uppercase())),
            Document::text("one two three four five six seven eight nine ten eleven twelve and no more"),
            Document::pair("x A, b, c; d e f", " g h"),
            Document::text("a b c d e f g wrong"),
        ];
        let found = overlap(&docs, &questions);
        assert_eq!(found.shared_documents, [0, 2]);
        assert_eq!(found.shared_questions, [0, 1]);
        assert_eq!((found.questions, found.too_short), (3, 1));
        assert!(!found.is_clean());
        let kept = without_overlap(docs.to_vec(), &found);
        assert_eq!(kept, [docs[1].clone(), docs[3].clone()]);
        assert!(overlap(&kept, &questions).is_clean());
    }
}
