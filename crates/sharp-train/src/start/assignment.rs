//! Linear assignment: an auction finds nearly the right prices (Bertsekas, Annals of Operations Research 14,
//! 1988), and shortest augmenting paths make the assignment optimal (Jonker and Volgenant, Computing 38,
//! 1987).
//!
//! Without the auction each path has to look at a large part of all columns. Written here because the crates
//! that solve it want integer costs, or have had no release for years and panic on bad input.
//!
//! A row is assigned to a column of least reduced cost, which is the cost less the column's price. An
//! assignment of all rows for which that holds is optimal, whatever the prices are.

use std::borrow::Cow;

/// No row or column.
const FREE: usize = usize::MAX;

/// How much the auction's first bids exceed what is needed, in mean differences between a row's two best
/// columns.
const FIRST_EXCESS: f64 = 100.0;

/// Rounds of the auction, and the factor by which the excess falls from one to the next.
const ROUNDS: i32 = 5;
const FALL: f64 = 8.0;

/// Bids for each row after which the auction ends early; it usually needs some thirty.
const MOST_BIDS: usize = 200;

/// Finds the cheapest assignment of rows to columns; the answer's `i`-th entry is the column of row `i`.
///
/// `cost` is `(n, n)`, row-major. Costs that are not finite count as very large.
pub(crate) fn assign(cost: &[f32], n: usize) -> Vec<usize> {
    let cost = finite(cost);
    solve(&cost, n, MOST_BIDS).col_of
}

/// Replaces costs that are not finite by one far above the others.
fn finite(cost: &[f32]) -> Cow<'_, [f32]> {
    if cost.iter().all(|c| c.is_finite()) {
        return Cow::Borrowed(cost);
    }
    let largest = cost.iter().filter(|c| c.is_finite()).fold(1.0f32, |m, c| m.max(c.abs()));
    let large = (largest * 1e6).min(f32::MAX);
    Cow::Owned(cost.iter().map(|&c| if c.is_finite() { c } else { large }).collect())
}

/// Assigns all rows, after an auction of up to `bids` bids for each row.
fn solve(cost: &[f32], n: usize, bids: usize) -> Assignment<'_> {
    assert_eq!(cost.len(), n * n, "a cost for each row and column");
    let free = || vec![FREE; n];
    let mut all = Assignment { cost, n, price: vec![0.0; n], row_of: free(), col_of: free() };
    all.price_columns();
    all.auction(bids.saturating_mul(n));
    all.keep_the_cheapest();
    all.augment();
    all
}

/// A partial assignment, and the prices that it was made with.
struct Assignment<'a> {
    cost: &'a [f32],
    n: usize,
    /// Of each column.
    price: Vec<f64>,
    /// The row that each column is assigned to, or [`FREE`].
    row_of: Vec<usize>,
    /// The column that each row is assigned to, or [`FREE`].
    col_of: Vec<usize>,
}

impl Assignment<'_> {
    /// Returns a row's costs.
    fn row(&self, row: usize) -> &[f32] {
        &self.cost[row * self.n..(row + 1) * self.n]
    }

    /// Prices each column at its least cost.
    fn price_columns(&mut self) {
        self.price.fill(f64::INFINITY);
        for row in 0..self.n {
            let costs = &self.cost[row * self.n..(row + 1) * self.n];
            for (price, &cost) in self.price.iter_mut().zip(costs) {
                *price = price.min(f64::from(cost));
            }
        }
    }

    /// Lets rows outbid each other until each has a column whose reduced cost exceeds the row's least by no
    /// more than the last round's excess, or until `bids` are made.
    fn auction(&mut self, mut bids: usize) {
        let leads = (0..self.n).map(|row| self.two_best(row)).map(|best| best.second - best.first);
        let mean = leads.sum::<f64>() / self.n as f64;
        let largest = self.cost.iter().fold(0.0f64, |m, &c| m.max(f64::from(c).abs()));
        // Without a difference, or with one that a sum with the costs would not show, there is nothing to
        // bid.
        if !(mean.is_finite() && mean > 1e-9 * largest) {
            return;
        }
        for round in 0..ROUNDS {
            let excess = mean * FIRST_EXCESS / FALL.powi(round);
            self.row_of.fill(FREE);
            self.col_of.fill(FREE);
            let mut waiting: Vec<usize> = (0..self.n).collect();
            while let Some(row) = waiting.pop() {
                if bids == 0 {
                    return;
                }
                bids -= 1;
                let TwoBest { col, first, second } = self.two_best(row);
                self.price[col] -= second - first + excess;
                self.col_of[row] = col;
                let outbid = std::mem::replace(&mut self.row_of[col], row);
                if outbid != FREE {
                    self.col_of[outbid] = FREE;
                    waiting.push(outbid);
                }
            }
        }
    }

    /// Finds a row's two columns of least reduced cost.
    fn two_best(&self, row: usize) -> TwoBest {
        let mut best = TwoBest { col: 0, first: f64::INFINITY, second: f64::INFINITY };
        for (col, (&cost, price)) in self.row(row).iter().zip(&self.price).enumerate() {
            let reduced = f64::from(cost) - price;
            if reduced < best.second {
                match reduced < best.first {
                    true => best = TwoBest { col, first: reduced, second: best.first },
                    false => best.second = reduced,
                }
            }
        }
        best
    }

    /// Lowers prices until no assigned row finds another column cheaper, where its own need not be lowered
    /// for another row; frees the rows where it must be.
    fn keep_the_cheapest(&mut self) {
        // What each row pays: its own column's reduced cost, or the least where it has none.
        let pays: Vec<f64> = (0..self.n)
            .map(|row| match self.col_of[row] {
                FREE => self.two_best(row).first,
                col => f64::from(self.row(row)[col]) - self.price[col],
            })
            .collect();
        for (row, pays) in pays.iter().enumerate() {
            let costs = &self.cost[row * self.n..(row + 1) * self.n];
            for (price, &cost) in self.price.iter_mut().zip(costs) {
                *price = price.min(f64::from(cost) - pays);
            }
        }
        for (row, pays) in pays.iter().enumerate() {
            let col = self.col_of[row];
            if col != FREE && f64::from(self.row(row)[col]) - pays > self.price[col] {
                (self.col_of[row], self.row_of[col]) = (FREE, FREE);
            }
        }
    }

    /// Assigns every free row along the shortest path, in reduced costs, to a free column (Dijkstra).
    fn augment(&mut self) {
        let n = self.n;
        // Distances and prices of the columns not yet reached; those reached are infinitely far and dear.
        let (mut distance, mut price) = (vec![0.0f64; n], self.price.clone());
        let mut before = vec![0usize; n];
        let mut reached: Vec<(usize, f64)> = Vec::new();
        for start in 0..n {
            if self.col_of[start] != FREE {
                continue;
            }
            for ((distance, &cost), price) in distance.iter_mut().zip(self.row(start)).zip(&self.price) {
                *distance = f64::from(cost) - price;
            }
            before.fill(start);
            reached.clear();
            let (end, length) = loop {
                let least = least(&distance);
                let col = distance.iter().position(|&d| d == least).expect("the least is among them");
                let row = self.row_of[col];
                if row == FREE {
                    break (col, least);
                }
                let costs = self.row(row);
                let base = least - (f64::from(costs[col]) - self.price[col]);
                reached.push((col, least));
                (distance[col], price[col]) = (f64::INFINITY, f64::NEG_INFINITY);
                let open = distance.iter_mut().zip(&mut before).zip(costs).zip(&price);
                for (((distance, before), &cost), price) in open {
                    let through = base + (f64::from(cost) - price);
                    let nearer = through < *distance;
                    *distance = if nearer { through } else { *distance };
                    *before = if nearer { row } else { *before };
                }
            };
            for &(col, distance) in &reached {
                self.price[col] += distance - length;
                price[col] = self.price[col];
            }
            self.turn_path(start, end, &before);
        }
    }

    /// Gives each row on the path from `start` the column after it, the last one being `end`.
    fn turn_path(&mut self, start: usize, end: usize, before: &[usize]) {
        let mut col = end;
        loop {
            let row = before[col];
            self.row_of[col] = row;
            let next = std::mem::replace(&mut self.col_of[row], col);
            if row == start {
                return;
            }
            col = next;
        }
    }
}

/// A row's column of least reduced cost, that cost, and the least of the others.
struct TwoBest {
    col: usize,
    first: f64,
    second: f64,
}

/// Returns the least of some numbers, in eight lanes that a compiler can keep in registers.
fn least(values: &[f64]) -> f64 {
    let mut lanes = [f64::INFINITY; 8];
    let eights = values.chunks_exact(8);
    let rest = eights.remainder();
    for eight in eights {
        for (lane, &value) in lanes.iter_mut().zip(eight) {
            *lane = if value < *lane { value } else { *lane };
        }
    }
    rest.iter().chain(&lanes).copied().fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cheapest(cost: &[f32], n: usize, row: usize, used: u32) -> f64 {
        if row == n {
            return 0.0;
        }
        (0..n)
            .filter(|c| used & (1 << c) == 0)
            .map(|c| f64::from(cost[row * n + c]) + cheapest(cost, n, row + 1, used | 1 << c))
            .fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn as_cheap_as_brute_force(n in 0usize..7, values in proptest::collection::vec(-9.0f32..9.0, 36)) {
            let cost = &values[..n * n];
            let found = assign(cost, n);
            let mut columns = found.clone();
            columns.sort_unstable();
            prop_assert_eq!(columns, (0..n).collect::<Vec<_>>());
            let total: f64 = found.iter().enumerate().map(|(r, &c)| f64::from(cost[r * n + c])).sum();
            prop_assert!((total - cheapest(cost, n, 0, 0)).abs() < 1e-4);
        }
    }

    proptest! {
        /// Prices prove it: no row has a column of less reduced cost than its own, however far the auction
        /// went, with costs of very different sizes and with ties.
        #[test]
        fn every_row_has_a_column_that_is_cheapest_at_the_final_prices(
            n in 1usize..40,
            bids in prop_oneof![Just(0), 1usize..20, Just(MOST_BIDS)],
            whole in any::<bool>(),
            values in proptest::collection::vec(-8.0f32..8.0, 1600),
        ) {
            let size = |v: f32| if whole { v.round() } else { v.signum() * v.abs().exp() };
            let cost: Vec<f32> = values[..n * n].iter().map(|&v| size(v)).collect();
            let found = solve(&cost, n, bids);
            for row in 0..n {
                let col = found.col_of[row];
                prop_assert_eq!(found.row_of[col], row);
                let least = found.two_best(row).first;
                prop_assert!(f64::from(cost[row * n + col]) - found.price[col] - least < 1e-8);
            }
        }
    }

    #[test]
    fn finds_a_hidden_permutation_and_survives_bad_costs() {
        let n = 200;
        let mut cost = vec![1.0f32; n * n];
        for row in 0..n {
            cost[row * n + (row * 37 + 5) % n] = -1.0;
        }
        let found = assign(&cost, n);
        assert!(found.iter().enumerate().all(|(r, &c)| c == (r * 37 + 5) % n));
        cost[3] = f32::NAN;
        cost[4] = f32::INFINITY;
        let mut columns = assign(&cost, n);
        columns.sort_unstable();
        assert_eq!(columns, (0..n).collect::<Vec<_>>());
    }
}
