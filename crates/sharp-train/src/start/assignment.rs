//! Linear assignment by shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987).
//!
//! Written here because the crates that solve it want integer costs, or have had no release for years and
//! panic on bad input; it is one loop.

/// Finds the cheapest assignment of rows to columns; the answer's `i`-th entry is the column of row `i`.
///
/// `cost` is `(n, n)`, row-major. Costs that are not finite count as very large.
pub(crate) fn assign(cost: &[f32], n: usize) -> Vec<usize> {
    assert_eq!(cost.len(), n * n, "a cost for each row and column");
    let large = cost.iter().filter(|c| c.is_finite()).fold(1.0f64, |m, c| m.max(f64::from(c.abs()))) * 1e6;
    let finite = |cost: f32| if cost.is_finite() { f64::from(cost) } else { large };
    let at = |row: usize, col: usize| finite(cost[row * n + col]);
    const FREE: usize = usize::MAX;
    let mut row_of = vec![FREE; n];
    let mut col_of = vec![FREE; n];
    // Column reduction: each column's cheapest row, taken where it is still free.
    let mut price = vec![0.0f64; n];
    for col in (0..n).rev() {
        let best = (0..n).min_by(|&a, &b| at(a, col).total_cmp(&at(b, col))).expect("there are rows");
        price[col] = at(best, col);
        if col_of[best] == FREE {
            col_of[best] = col;
            row_of[col] = best;
        }
    }
    let mut distance = vec![0.0f64; n];
    let mut before = vec![0usize; n];
    let mut done = vec![false; n];
    for start in 0..n {
        if col_of[start] != FREE {
            continue;
        }
        // Dijkstra over columns, in reduced costs, from the free row to the nearest free column.
        for (col, d) in distance.iter_mut().enumerate() {
            *d = at(start, col) - price[col];
        }
        before.fill(start);
        done.fill(false);
        let (end, reach) = loop {
            let open = (0..n).filter(|&col| !done[col]);
            let col = open
                .min_by(|&a, &b| distance[a].total_cmp(&distance[b]))
                .expect("a free row leaves a free column");
            done[col] = true;
            let row = row_of[col];
            if row == FREE {
                break (col, distance[col]);
            }
            let base = distance[col] - (at(row, col) - price[col]);
            let costs = &cost[row * n..(row + 1) * n];
            let open = distance.iter_mut().zip(&mut before).zip(&done).zip(&price).zip(costs);
            for ((((distance, before), done), price), &cost) in open {
                let through = base + finite(cost) - price;
                if !done && through < *distance {
                    (*distance, *before) = (through, row);
                }
            }
        };
        for ((price, distance), done) in price.iter_mut().zip(&distance).zip(&done) {
            if *done {
                *price += distance - reach;
            }
        }
        let mut col = end;
        loop {
            let row = before[col];
            row_of[col] = row;
            let next = std::mem::replace(&mut col_of[row], col);
            if row == start {
                break;
            }
            col = next;
        }
    }
    col_of
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
