//! Part of "Quality": accuracy in multiple-choice tasks.

use crate::report::blocks::Block;
use crate::report::rows::{Row, names};
use crate::report::text::percent;

pub(in crate::report) fn accuracy(rows: &[Row], blocks: &mut Vec<Block>) {
    let tasks = names(rows, "tasks");
    if tasks.is_empty() {
        return;
    }
    blocks.push(Block::Subheading("Task accuracy".into()));
    let get = |row: &Row, task: &str, key: &str| row.values.get("tasks")?.get(task)?.get(key)?.as_f64();
    for (measure, title) in [("acc", "accuracy"), ("acc_norm", "accuracy, normalised by length")] {
        let value = |row: &Row, task: &str| get(row, task, &format!("{measure},none"));
        if !rows.iter().any(|r| tasks.iter().any(|t| value(r, t).is_some())) {
            continue;
        }
        let mut head = vec![title.to_owned()];
        head.extend(tasks.iter().map(|t| {
            let n = rows.iter().find_map(|r| {
                let n = r.values.get("tasks")?.get(*t)?.get("n")?;
                n.as_u64()
            });
            n.map_or((*t).to_owned(), |n| format!("{t} (n = {n})"))
        }));
        let lines = rows
            .iter()
            .filter(|r| tasks.iter().any(|t| value(r, t).is_some()))
            .map(|row| {
                let mut line = vec![row.title.clone()];
                line.extend(tasks.iter().map(|task| match value(row, task) {
                    None => "-".into(),
                    Some(v) => match get(row, task, &format!("{measure}_stderr,none")) {
                        Some(e) => format!("{:.1} ± {:.1} %", 100.0 * v, 100.0 * e),
                        None => percent(v),
                    },
                }));
                line
            })
            .collect();
        blocks.push(Block::Table { head, rows: lines, wide: None });
    }
    blocks.push(Block::Note("Mean and standard error over questions.".into()));
}
