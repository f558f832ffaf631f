//! What the documents say can be followed: paths and links lead somewhere, configuration keys exist, and what
//! is to be read at one sitting stays short.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::fixture::{files, repository};

/// Documents whose sentences are counted.
const SHORT_SENTENCES: [&str; 6] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/usage.md",
    "docs/reliability.md",
];
const MOST_WORDS: usize = 30;
/// Folders at the top whose names begin a path of the repository.
const TOP: [&str; 9] =
    ["crates/", "docs/", "configs/", "tests/", "xtask/", "data/", "fuzz/", ".ci/", ".github/"];

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every document: those at the top, of the folder docs, and each crate's.
fn documents() -> Vec<PathBuf> {
    let root = repository();
    let top = fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path());
    let deeper = ["docs", "crates", "xtask", "fuzz"].into_iter().flat_map(|folder| files(&root.join(folder)));
    top.chain(deeper).filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect()
}

/// The text without fenced blocks.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let kept = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    kept.map(|line| format!("{line}\n")).collect()
}

/// What stands between single backticks.
fn code_spans(prose: &str) -> impl Iterator<Item = &str> {
    prose.split('`').skip(1).step_by(2)
}

/// Targets of `[text](target)`.
fn links(prose: &str) -> impl Iterator<Item = &str> {
    prose.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// The anchors that GitHub makes of a document's titles.
fn anchors(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |title: &str| -> String {
        let kept = title.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    titles.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    for document in documents() {
        let text = prose(&read(&document));
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", document.display());
            let known = anchor.is_empty() || anchors(&read(&target)).contains(anchor);
            assert!(known, "{}: {link} has no such title", document.display());
        }
    }
}

#[test]
fn paths_that_documents_name_exist() {
    let root = repository();
    let names: BTreeSet<String> = ["crates", "xtask", "tests", "fuzz"]
        .into_iter()
        .flat_map(|folder| files(&root.join(folder)))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    for document in documents() {
        let text = read(&document);
        let prose = prose(&text);
        let fenced = text.split("```").skip(1).step_by(2);
        for word in code_spans(&prose).chain(fenced).flat_map(str::split_whitespace) {
            let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
            if !plain || word.contains("...") {
                continue;
            }
            let is_path = TOP.iter().any(|top| word.starts_with(top));
            assert!(!is_path || root.join(word).exists(), "{}: there is no {word}", document.display());
            let source = word.ends_with(".rs") && !is_path;
            let last = word.rsplit('/').next().unwrap_or(word);
            assert!(!source || names.contains(last), "{}: no file is called {word}", document.display());
        }
    }
}

/// Configuration keys of `--set key=value` in a document are those of the explained configuration.
#[test]
fn keys_that_documents_set_exist() {
    let explained = read(&repository().join("configs/smollm2-135m.toml"));
    // A key that the file only explains stands in its section as a comment: `# key = value`.
    let (mut section, mut keys) = (String::new(), BTreeSet::new());
    for line in explained.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" =") {
            keys.insert(format!("{section}{key}"));
        }
    }
    let mut seen = 0;
    for document in documents() {
        let text = read(&document);
        for rest in text.split("--set ").skip(1) {
            let rest = rest.trim_start_matches(['\'', '"']);
            let Some((key, _)) = rest.split_once('=') else { continue };
            // `--set section.key=value` says how, not what.
            if ["key", "section.key"].contains(&key)
                || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b))
            {
                continue;
            }
            assert!(keys.contains(key), "{}: there is no key {key}", document.display());
            seen += 1;
        }
    }
    assert!(seen > 0, "no document sets a key");
}

#[test]
fn the_readme_is_a_screen_and_a_half() {
    let text = read(&repository().join("README.md"));
    assert!(text.lines().count() <= 150, "{} lines", text.lines().count());
    assert!(text.len() <= 9000, "{} bytes", text.len());
}

/// A document's sentences, a cell of a table being at least one. Code, links and pictures count as the words
/// that a reader sees.
fn sentences(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = vec![String::new()];
    for line in prose(text).lines() {
        let line = line.trim();
        if line.starts_with('|') {
            blocks.extend(line.split('|').map(str::to_owned));
            blocks.push(String::new());
            continue;
        }
        let item =
            line.starts_with("- ") || line.split_once(". ").is_some_and(|(n, _)| n.parse::<u32>().is_ok());
        if line.is_empty() || line.starts_with('#') || item {
            blocks.push(String::new());
        }
        let text = line.trim_start_matches("- ").trim_start_matches(|c: char| c.is_ascii_digit()).to_owned();
        let block = blocks.last_mut().unwrap();
        block.push_str(&text);
        block.push(' ');
        if line.starts_with('#') {
            blocks.push(String::new());
        }
    }
    let ended = |block: &String| -> Vec<String> {
        let mut found = vec![String::new()];
        let mut in_code = false;
        for word in block.split_whitespace() {
            // A span of code is one word, and a link's target none.
            let ticks = word.matches('`').count();
            if !in_code {
                let sentence = found.last_mut().unwrap();
                sentence.push_str(word);
                sentence.push(' ');
            }
            in_code ^= ticks % 2 == 1;
            let bare = word.trim_end_matches(['*', ')', '"']);
            if !in_code && bare.ends_with(['.', '!', '?']) {
                found.push(String::new());
            }
        }
        found
    };
    blocks.iter().flat_map(ended).collect()
}

fn words(sentence: &str) -> usize {
    sentence.split_whitespace().filter(|word| word.chars().any(char::is_alphanumeric)).count()
}

#[test]
fn sentences_are_short() {
    let mut documents: Vec<PathBuf> = SHORT_SENTENCES.iter().map(|name| repository().join(name)).collect();
    documents.extend(files(&repository().join("docs/formats")));
    let mut long = Vec::new();
    for document in documents {
        for sentence in sentences(&read(&document)) {
            if words(&sentence) > MOST_WORDS {
                long.push(format!("{}: {} words: {sentence}", document.display(), words(&sentence)));
            }
        }
    }
    assert!(long.is_empty(), "sentences over {MOST_WORDS} words:\n{}", long.join("\n"));
}

#[test]
fn a_long_sentence_is_seen() {
    let long = "word ".repeat(31);
    let found = |text: &str| sentences(text).iter().any(|s| words(s) > MOST_WORDS);
    assert!(found(&long) && found(&format!("- {long}")) && found(&format!("| a | {long} |")));
    assert!(!found(&format!("```\n{long}\n```")) && !found(&format!("`{long}`")));
    let halves = "word ".repeat(20);
    assert!(!found(&format!("{halves}. {halves}")) && !found(&format!("- {halves}\n- {halves}")));
    assert!(found(&format!("{halves}\n{halves}")));
}
