//! Formats `table.md`: a line for each mean, and what is missing.

use std::fmt::Write as _;

use super::Table;
use super::means::{Difference, Spread};
use super::row::State;

impl Table {
    /// Formats `table.md`.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n`{}`\n\n", self.study, self.command);
        let done = self.cells.iter().filter(|cell| cell.state == State::Done).count();
        let seeds: Vec<String> = self.seeds.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "{done} of {} cells; base `{}`, seeds {}. Perplexity and the Kullback-Leibler divergence from the original (KL, in nats) on \
             each text; loss over the original's in nats, in brackets its 95 % interval over documents; accuracy where tasks are measured; \
             ± is the standard deviation over seeds. A difference smaller than what seeds and documents differ by is not called a win. Training is the wall time of warm-up \
             and fine-tuning. Bytes are those of the weights as they were measured: rows from before the export have the type of the \
             import.\n",
            self.cells.len(),
            self.base,
            seeds.join(", ")
        );
        let mut head: Vec<String> = self.axes.clone();
        head.extend(["row", "seeds", "MLP parameters", "saved", "bytes"].map(str::to_owned));
        let compared = self.means.iter().any(|mean| !mean.loss_over_original.is_empty());
        for text in &self.texts {
            head.extend([text.clone(), format!("KL {text}")]);
            head.extend(compared.then(|| format!("loss over the original's, {text}")));
        }
        head.extend(self.tasks.iter().cloned());
        head.push("training".to_owned());
        let words = self.axes.len() + 1;
        let _ = writeln!(text, "| {} |", head.join(" | "));
        let _ = writeln!(text, "|{}{}", "---|".repeat(words), "---:|".repeat(head.len() - words));
        for mean in &self.means {
            let mut cells: Vec<String> = match mean.values.is_empty() {
                true => self.axes.iter().map(|_| "-".to_owned()).collect(),
                false => mean.values.clone(),
            };
            cells.push(mean.row.clone());
            cells.push(mean.seeds.to_string());
            cells.push(format!("{:.2} M", mean.mlp_parameters / 1e6));
            cells.push(format!("{:.1} %", 100.0 * mean.saved));
            cells.push(mean.bytes.map_or("-".to_owned(), |bytes| format!("{:.1} MB", bytes / 1e6)));
            for name in &self.texts {
                cells.push(shown(mean.perplexity.get(name), 1.0, 2));
                cells.push(shown(mean.kl.get(name), 1.0, 3));
                cells.extend(compared.then(|| over_original(mean.loss_over_original.get(name))));
            }
            for name in &self.tasks {
                cells.push(shown(mean.accuracy.get(name), 100.0, 1));
            }
            cells.push(match mean.training_wall_s > 0.0 {
                true => format!("{:.0} s", mean.training_wall_s),
                false => "-".to_owned(),
            });
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        let left: Vec<String> = self
            .cells
            .iter()
            .filter_map(|cell| match &cell.state {
                State::Done => None,
                State::Missing => Some(format!("- {}: not run\n", cell.cell)),
                State::Failed { error } => {
                    let first = error.lines().next().unwrap_or_default();
                    Some(format!("- {}: failed: {first}\n", cell.cell))
                }
            })
            .collect();
        if !left.is_empty() {
            let _ = write!(text, "\nNot in the table:\n\n{}", left.concat());
        }
        text
    }
}

/// Formats a mean and its deviation, as in `12.34 ± 0.05`.
fn shown(spread: Option<&Spread>, times: f64, digits: usize) -> String {
    match spread {
        None => "-".to_owned(),
        Some(Spread { mean, deviation: None }) => format!("{:.digits$}", times * mean),
        Some(Spread { mean, deviation: Some(deviation) }) => {
            format!("{:.digits$} ± {:.digits$}", times * mean, times * deviation)
        }
    }
}

/// Formats a difference and its interval, as in `0.123 ± 0.005 [0.101, 0.140]`.
fn over_original(difference: Option<&Difference>) -> String {
    match difference {
        None => "-".to_owned(),
        Some(Difference { over_seeds, low, high }) => {
            format!("{} [{low:.3}, {high:.3}]", shown(Some(over_seeds), 1.0, 3))
        }
    }
}
