//! Linear assignment by shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987).
//!
//! Written here because the crates that solve it want integer costs, or have had no release for years and
//! panic on bad input; it is one loop.

/// The assignment of rows to columns that costs least: `cost` is `(n, n)` row-major, the answer's `i`-th
/// entry the column of row `i`. Costs that are not finite count as very large. Of a matrix of the wrong size
/// `None`.
pub(crate) fn assign(cost: &[f32], n: usize) -> Option<Vec<usize>> {
    if n.checked_mul(n)? != cost.len() {
        return None;
    }
    let large = cost.iter().filter(|c| c.is_finite()).fold(1.0f64, |m, c| m.max(f64::from(c.abs()))) * 1e6;
    let at = |row: usize, col: usize| -> f64 {
        cost.get(row * n + col).filter(|c| c.is_finite()).map_or(large, |&c| f64::from(c))
    };
    const FREE: usize = usize::MAX;
    let mut row_of = vec![FREE; n];
    let mut col_of = vec![FREE; n];
    // Column reduction: each column's cheapest row, taken where it is still free.
    let mut price = vec![0.0f64; n];
    for col in (0..n).rev() {
        let best = (0..n).min_by(|&a, &b| at(a, col).total_cmp(&at(b, col)))?;
        *price.get_mut(col)? = at(best, col);
        if *col_of.get(best)? == FREE {
            *col_of.get_mut(best)? = col;
            *row_of.get_mut(col)? = best;
        }
    }
    let mut distance = vec![0.0f64; n];
    let mut before = vec![0usize; n];
    let mut done = vec![false; n];
    for start in 0..n {
        if *col_of.get(start)? != FREE {
            continue;
        }
        // Dijkstra over columns, in reduced costs, from the free row to the nearest free column.
        for (col, d) in distance.iter_mut().enumerate() {
            *d = at(start, col) - price.get(col)?;
        }
        before.fill(start);
        done.fill(false);
        let (end, reach) = loop {
            let (col, d) = distance
                .iter()
                .zip(&done)
                .enumerate()
                .filter(|(_, (_, done))| !**done)
                .map(|(col, (d, _))| (col, *d))
                .min_by(|a, b| a.1.total_cmp(&b.1))?;
            *done.get_mut(col)? = true;
            let row = *row_of.get(col)?;
            if row == FREE {
                break (col, d);
            }
            let base = d - (at(row, col) - price.get(col)?);
            let costs = cost.get(row * n..(row + 1) * n)?;
            let open = distance.iter_mut().zip(&mut before).zip(&done).zip(&price).zip(costs);
            for ((((distance, before), done), price), &cost) in open {
                let cost = if cost.is_finite() { f64::from(cost) } else { large };
                let through = base + cost - price;
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
            let row = *before.get(col)?;
            *row_of.get_mut(col)? = row;
            let next = std::mem::replace(col_of.get_mut(row)?, col);
            if row == start {
                break;
            }
            col = next;
        }
    }
    Some(col_of)
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
            let found = assign(cost, n).unwrap();
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
        let found = assign(&cost, n).unwrap();
        assert!(found.iter().enumerate().all(|(r, &c)| c == (r * 37 + 5) % n));
        cost[3] = f32::NAN;
        cost[4] = f32::INFINITY;
        assert!(assign(&cost, n).is_some());
        assert!(assign(&cost, n + 1).is_none());
    }
}
