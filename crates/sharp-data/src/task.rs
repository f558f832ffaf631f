//! Multiple-choice questions.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::lines::Lines;
use crate::olmo::{self, Row};

/// A set of questions, such as SciQ's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its questions, in the file's order.
    pub questions: Vec<Question>,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its number in the file.
    pub id: u64,
    /// Its answers; at least one. In most tasks they share the context; in WinoGrande they share the
    /// continuation.
    pub choices: Vec<Choice>,
    /// Which of them is right.
    pub gold: usize,
}

/// One answer: how likely is `continuation` after `context`?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What the model is given.
    pub context: String,
    /// What is scored, with the space it begins with.
    pub continuation: String,
}

impl Choice {
    /// Returns the answer's length for `acc_norm`, as lm-evaluation-harness has it: characters, without the
    /// space that separates it from the context. At least 1.
    pub fn chars(&self) -> usize {
        self.answer().chars().count().max(1)
    }

    /// Returns the answer's length in bytes of UTF-8, for lm-evaluation-harness's `acc_bytes`. At least 1.
    pub fn bytes(&self) -> usize {
        self.answer().len().max(1)
    }

    fn answer(&self) -> &str {
        self.continuation.strip_prefix(' ').unwrap_or(&self.continuation)
    }
}

/// Which context a question is put in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shots {
    /// As the file has it: with its examples, in the files that have some.
    #[default]
    AsStored,
    /// Without examples.
    Zero,
}

/// The questions' own words in a file, for reading more than one way.
impl Task {
    /// Reads the questions of a `requests.jsonl` or `requests.jsonl.gz`, the first `limit` of them.
    ///
    /// # Errors
    /// If the file cannot be read, a line is malformed or lacks a field, a question's rows disagree about the
    /// right answer or are not numbered 0, 1, 2, ..., or there are no questions.
    pub fn load(path: &Path, name: &str, limit: Option<usize>) -> Result<Task> {
        Task::load_with(path, name, limit, Shots::AsStored)
    }

    /// Reads a task as [`Task::load`] does, choosing the context.
    ///
    /// # Errors
    /// As [`Task::load`].
    pub fn load_with(path: &Path, name: &str, limit: Option<usize>, shots: Shots) -> Result<Task> {
        let mut lines = Lines::open(path)?;
        let mut questions: Vec<Question> = Vec::new();
        let limit = limit.unwrap_or(usize::MAX);
        let mut open: Option<(u64, Question)> = None;
        let mut finished = std::collections::HashSet::new();
        while let Some(line) = lines.next_line() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let value: Value = match serde_json::from_str(line) {
                Ok(value) => value,
                Err(e) => return Err(lines.error(format!("not JSON at column {}", e.column()))),
            };
            if !olmo::is_row(&value) {
                return Err(
                    lines.error("expected an evaluation request with \"request\", \"doc\" and \"doc_id\"")
                );
            }
            let row = Row::new(value).map_err(|what| lines.error(what))?;
            if row.unconditional() {
                continue;
            }
            if open.as_ref().is_none_or(|(_, q)| q.id != row.doc_id) {
                if let Some((at, question)) = open.take() {
                    finished.insert(question.id);
                    questions.push(checked(path, at, question)?);
                }
                if questions.len() >= limit {
                    break;
                }
                if finished.contains(&row.doc_id) {
                    return Err(
                        lines.error(format!("the rows of question {} do not lie together", row.doc_id))
                    );
                }
                open =
                    Some((lines.number(), Question { id: row.doc_id, choices: Vec::new(), gold: row.gold }));
            }
            let Some((_, question)) = open.as_mut() else { continue };
            if row.idx != question.choices.len() {
                return Err(lines.error(format!(
                    "choice {} of question {} comes where choice {} should",
                    row.idx,
                    row.doc_id,
                    question.choices.len()
                )));
            }
            if row.gold != question.gold {
                return Err(lines.error(format!(
                    "question {} has the right answer {} here and {} before",
                    row.doc_id, row.gold, question.gold
                )));
            }
            let context = match shots {
                Shots::AsStored => row.context,
                Shots::Zero => row.zero_shot_context().into_owned(),
            };
            question.choices.push(Choice { context, continuation: row.continuation });
        }
        if let Some((at, question)) = open.take()
            && questions.len() < limit
        {
            questions.push(checked(path, at, question)?);
        }
        if questions.is_empty() {
            return Err(Error::file(path, "holds no questions"));
        }
        tracing::debug!(task = name, questions = questions.len(), "loaded");
        Ok(Task { name: name.to_owned(), questions })
    }

    /// Returns the name for a `requests.jsonl.gz` in a folder `<task>/<split>/`: the task's folder, if there
    /// is one.
    pub fn name_of(path: &Path) -> Option<String> {
        Some(path.parent()?.parent()?.file_name()?.to_string_lossy().into_owned())
    }
}

fn checked(path: &Path, line: u64, question: Question) -> Result<Question> {
    if question.gold >= question.choices.len() {
        let what = format!(
            "question {}: the right answer is number {}, but there are {} choices",
            question.id,
            question.gold,
            question.choices.len()
        );
        return Err(Error::line(path, line, what));
    }
    Ok(question)
}
