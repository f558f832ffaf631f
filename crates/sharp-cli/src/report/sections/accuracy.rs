//! Part of "Quality": accuracy in multiple-choice tasks.

use sharp_schema::evaluation::TaskScore;

use crate::report::blocks::Block;
use crate::report::rows::{Row, names};

pub(in crate::report) fn accuracy(rows: &[Row], blocks: &mut Vec<Block>) {
    let tasks = names(rows, |row| &row.tasks);
    if tasks.is_empty() {
        return;
    }
    blocks.push(Block::Subheading("Task accuracy".into()));
    type Measure = fn(&TaskScore) -> (f64, f64);
    let measures: [(&str, Measure); 2] = [
        ("accuracy", |score| (score.acc, score.acc_stderr)),
        ("accuracy, normalised by length", |score| (score.acc_norm, score.acc_norm_stderr)),
    ];
    for (title, measure) in measures {
        let mut head = vec![title.to_owned()];
        head.extend(tasks.iter().map(|task| {
            let score = rows.iter().find_map(|row| row.measured.tasks.get(*task));
            score.map_or((*task).to_owned(), |score| format!("{task} (n = {})", score.n))
        }));
        let lines = rows
            .iter()
            .filter(|row| !row.measured.tasks.is_empty())
            .map(|row| {
                let mut line = vec![row.title.clone()];
                line.extend(tasks.iter().map(|task| {
                    row.measured.tasks.get(*task).map_or("-".into(), |score| {
                        let (value, error) = measure(score);
                        format!("{:.1} ± {:.1} %", 100.0 * value, 100.0 * error)
                    })
                }));
                line
            })
            .collect();
        blocks.push(Block::Table { head, rows: lines, wide: None });
    }
    blocks.push(Block::Note("Mean and standard error over questions.".into()));
}
