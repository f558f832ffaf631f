//! The rows of a batch, and the order in which rows are trained on.

use sharp_data::{TokenBlocks, shuffle};

use crate::attention::Batch;
use crate::error::Result;
use crate::tensors::dim;

/// Rows of tokens of one length, one after another, and the positions that count in them.
#[derive(Debug, Clone)]
pub(super) struct Sequences {
    /// How many.
    pub(super) rows: usize,
    pub(super) tokens: Vec<u32>,
    /// Where a token that counts comes next, as a place in `tokens`.
    pub(super) positions: Vec<i64>,
    /// That token.
    pub(super) labels: Vec<i64>,
}

impl Sequences {
    /// Makes one of each row of `blocks`, with the positions that count.
    pub(super) fn of_rows(blocks: &TokenBlocks, rows: impl IntoIterator<Item = usize>) -> Vec<Self> {
        rows.into_iter()
            .map(|row| {
                let (tokens, mask) = blocks.row(row);
                let mut sequence =
                    Self { rows: 1, tokens: tokens.to_vec(), positions: Vec::new(), labels: Vec::new() };
                for (i, (&token, &counted)) in tokens.iter().zip(mask).enumerate().skip(1) {
                    if counted {
                        sequence.positions.push(i as i64 - 1);
                        sequence.labels.push(i64::from(token));
                    }
                }
                sequence
            })
            .collect()
    }

    /// Joins neighbours until up to `at_once` rows are together.
    pub(super) fn stacked(all: impl IntoIterator<Item = Self>, at_once: usize) -> Result<Vec<Self>> {
        let mut stacks: Vec<Self> = Vec::new();
        for next in all {
            match stacks.last_mut() {
                Some(last) if last.rows + next.rows <= at_once => {
                    let below = dim(last.tokens.len())?;
                    last.rows += next.rows;
                    last.tokens.extend(next.tokens);
                    last.positions.extend(next.positions.iter().map(|p| p + below));
                    last.labels.extend(next.labels);
                }
                _ => stacks.push(next),
            }
        }
        Ok(stacks)
    }

    pub(super) fn batch(&self) -> Result<Batch> {
        Ok(Batch { sequences: dim(self.rows)?, time: dim(self.tokens.len() / self.rows.max(1))? })
    }
}

/// The order in which rows are trained on: a new one for each epoch, computed from the position alone.
pub(super) struct RowOrder {
    rows: usize,
    seed: u64,
    epoch: Option<u64>,
    order: Vec<usize>,
}

impl RowOrder {
    pub(super) fn new(rows: usize, seed: u64) -> Self {
        assert!(rows > 0, "an order of no rows");
        Self { rows, seed, epoch: None, order: Vec::new() }
    }

    /// Returns the row at a position counted from 0 over all epochs.
    pub(super) fn at(&mut self, position: u64) -> usize {
        let (epoch, place) = (position / self.rows as u64, (position % self.rows as u64) as usize);
        if self.epoch != Some(epoch) {
            self.order = (0..self.rows).collect();
            shuffle(&mut self.order, self.seed.wrapping_add(epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            self.epoch = Some(epoch);
        }
        self.order[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_each_row_once_and_a_position_alone_decides() {
        let mut order = RowOrder::new(7, 3);
        let epoch =
            |order: &mut RowOrder, e: u64| (e * 7..e * 7 + 7).map(|i| order.at(i)).collect::<Vec<_>>();
        let (first, second) = (epoch(&mut order, 0), epoch(&mut order, 1));
        assert_ne!(first, second);
        assert_ne!(first, (0..7).collect::<Vec<_>>(), "the first epoch is in an order of its own too");
        assert_ne!(epoch(&mut RowOrder::new(7, 4), 0), first, "another seed, another order");
        for mut rows in [first.clone(), second.clone()] {
            rows.sort_unstable();
            assert_eq!(rows, (0..7).collect::<Vec<_>>());
        }
        // A resumed run begins in the middle.
        assert_eq!(RowOrder::new(7, 3).at(9), second[2]);
        assert_eq!(epoch(&mut order, 0), first);
    }
}
