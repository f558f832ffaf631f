//! Part of "Quality": how far the next-token distributions are from the original's.

use crate::report::blocks::{Block, strings};
use crate::report::rows::{Row, names};
use crate::report::text::percent;

pub(in crate::report) fn divergence(rows: &[Row], blocks: &mut Vec<Block>) {
    let (kl, top1) = (names(rows, |row| &row.kl), names(rows, |row| &row.top1_agreement));
    if kl.is_empty() && top1.is_empty() {
        return;
    }
    let mut head = strings(&["row"]);
    head.extend(kl.iter().map(|t| format!("KL to the original, {t}")));
    head.extend(top1.iter().map(|t| format!("same first choice, {t}")));
    let lines = rows
        .iter()
        .filter(|row| !row.measured.kl.is_empty() || !row.measured.top1_agreement.is_empty())
        .map(|row| {
            let mut line = vec![row.title.clone()];
            line.extend(kl.iter().map(|t| row.measured.kl.get(*t).map_or("-".into(), |v| format!("{v:.4}"))));
            line.extend(
                top1.iter().map(|t| row.measured.top1_agreement.get(*t).map_or("-".into(), |v| percent(*v))),
            );
            line
        })
        .collect();
    blocks.push(Block::Subheading("How far from the original".into()));
    blocks.push(Block::Table { head, rows: lines, wide: None });
    blocks.push(Block::Note(
        "KL divergence of the next-token distribution in nats, and how often the most likely token is the original's.".into(),
    ));
}
