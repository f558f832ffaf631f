//! Strategies that search over measured costs: `greedy` and `optimal`.
//!
//! Both minimise the sum of the targets' costs, every target using its cheapest reference that keeps its own
//! MLP.

use sharp_model::Treatment;
use sharp_schema::StrategyName;

use crate::costs::Table;
use crate::problem::{Choice, Problem, Strategy};
use crate::{Error, Result};

/// The widest distance between target and reference that [`Optimal`] handles: its table has `4^window` states
/// per layer and number of targets.
pub const MAX_OPTIMAL_WINDOW: usize = 6;

/// The largest table [`Optimal`] builds, in bytes.
const MAX_ENTRIES: usize = 1 << 28;

/// Step by step, the layer whose loss of its own MLP adds least to the total cost. Layers that used that MLP
/// move to their next best reference, and the step pays for it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Greedy;

/// The set of targets of least total cost, exactly, by a dynamic programme over the layers.
///
/// A layer's cost is settled once it is known which layers within the window of it keep their MLP. So the
/// layers are taken in order, the state is which of the last `2 window` layers keep theirs, and deciding on
/// layer `i + window` settles layer `i`. Because all targets save the same number of parameters, a budget of
/// stored parameters is a number of targets, and no knapsack is needed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Optimal;

/// The cheapest reference of `target` among layers for which `stored` holds.
fn cheapest(table: &Table, target: usize, stored: impl Fn(usize) -> bool) -> Option<(usize, f64)> {
    table.references(target).iter().find(|(r, _)| stored(*r)).copied()
}

fn check_measured(problem: &Problem<'_>, strategy: &str) -> Result<()> {
    if problem.table().is_empty() {
        return Err(Error::MissingCosts { strategy: strategy.into(), needed: "measured replacement costs" });
    }
    Ok(())
}

/// Chooses the layers that are missed least: the best set where the layers do not depend on each other, for
/// both strategies.
fn missed_least(problem: &Problem<'_>, strategy: &str, treatment: Treatment) -> Result<Vec<Choice>> {
    let asked = problem.require_targets(strategy)?;
    let mut order = Vec::new();
    for layer in problem.range().filter(|&l| problem.may_be_target(l)) {
        let cost = problem.table().importance(layer).ok_or_else(|| Error::MissingCosts {
            strategy: strategy.into(),
            needed: "the cost of each layer's MLP falling away",
        })?;
        order.push((cost, layer));
    }
    if asked > order.len() {
        return Err(problem.unreachable(
            strategy,
            order.len(),
            asked,
            "keep fewer layers or lower the budget",
        ));
    }
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
    let candidates = order.len();
    let metric = problem.table().metric();
    Ok(order
        .into_iter()
        .take(asked)
        .enumerate()
        .map(|(place, (cost, layer))| Choice {
            layer,
            treatment,
            reason: format!("without its MLP {metric} {cost:.4}, place {} of {candidates} layers", place + 1),
        })
        .collect())
}

fn finish(problem: &Problem<'_>, targets: &[usize], why: impl Fn(usize) -> String) -> Result<Vec<Choice>> {
    targets
        .iter()
        .enumerate()
        .map(|(i, &target)| {
            let (reference, _) =
                cheapest(problem.table(), target, |r| !targets.contains(&r)).ok_or_else(|| {
                    Error::InvalidDecision { layer: target, problem: "is left without a reference".into() }
                })?;
            let reason = format!("{}; {}", why(i), problem.table().describe(target, reference));
            Ok(Choice { layer: target, treatment: problem.treatment(reference)?, reason })
        })
        .collect()
}

impl Strategy for Greedy {
    fn name(&self) -> &str {
        StrategyName::Greedy.name()
    }

    fn choose(&self, problem: &Problem<'_>) -> Result<Vec<Choice>> {
        if let Some(treatment) = problem.treatment_alone()? {
            return missed_least(problem, self.name(), treatment);
        }
        let asked = problem.require_targets(self.name())?;
        check_measured(problem, self.name())?;
        let table = problem.table();
        let mut targets: Vec<usize> = Vec::new();
        let mut steps: Vec<f64> = Vec::new();
        let total = |targets: &[usize]| -> Option<f64> {
            targets
                .iter()
                .map(|&t| cheapest(table, t, |r| !targets.contains(&r)).map(|(_, c)| c))
                .try_fold(0.0, |sum, cost| cost.map(|c| sum + c))
        };
        let mut before = 0.0;
        while targets.len() < asked {
            let mut best: Option<(f64, usize)> = None;
            for layer in problem.range() {
                if !problem.may_be_target(layer) || targets.contains(&layer) {
                    continue;
                }
                targets.push(layer);
                if let Some(cost) = total(&targets)
                    // At equal cost the later layer.
                    && best.is_none_or(|(least, _)| cost <= least)
                {
                    best = Some((cost, layer));
                }
                targets.pop();
            }
            let Some((cost, layer)) = best else {
                let advice = "use `optimal`, measure a wider window, keep fewer layers or lower the budget";
                return Err(problem.unreachable(self.name(), targets.len(), asked, advice));
            };
            targets.push(layer);
            steps.push(cost - before);
            before = cost;
        }
        let metric = table.metric();
        finish(problem, &targets, |step| {
            let added = steps[step];
            format!("step {} of {asked}, which added least ({metric} {added:+.4} in all)", step + 1)
        })
    }
}

impl Strategy for Optimal {
    fn name(&self) -> &str {
        StrategyName::Optimal.name()
    }

    fn choose(&self, problem: &Problem<'_>) -> Result<Vec<Choice>> {
        if let Some(treatment) = problem.treatment_alone()? {
            return missed_least(problem, self.name(), treatment);
        }
        let asked = problem.require_targets(self.name())?;
        if asked == 0 {
            return Ok(Vec::new());
        }
        check_measured(problem, self.name())?;
        let window = (0..problem.layers())
            .flat_map(|t| problem.table().references(t).iter().map(move |&(r, _)| t.abs_diff(r)))
            .max()
            .unwrap_or(0);
        if window > MAX_OPTIMAL_WINDOW {
            return Err(Error::InvalidOption {
                what: "window",
                value: window.to_string(),
                expected: format!(
                    "at most {MAX_OPTIMAL_WINDOW} for `optimal`; give a window or use `greedy`"
                ),
            });
        }
        let programme = Programme::new(problem, window, asked);
        let entries = programme.entries();
        if entries > MAX_ENTRIES {
            return Err(Error::InvalidOption {
                what: "window",
                value: window.to_string(),
                expected: "a narrower one: the table of `optimal` would be too large for so many layers"
                    .into(),
            });
        }
        let (most, found) = programme.solve();
        let Some((targets, sum)) = found else {
            let advice = "measure a wider window, keep fewer layers or lower the budget";
            return Err(problem.unreachable(self.name(), most, asked, advice));
        };
        let metric = problem.table().metric();
        finish(problem, &targets, |_| {
            format!("in the cheapest set of {asked} targets ({metric} {sum:.4} in all)")
        })
    }
}

/// The table of the dynamic programme. A state is a bit set: bit `k` says that the layer `k + 1` before the
/// one now being decided keeps its MLP; layers before the first and after the last are never stored.
struct Programme<'a> {
    problem: &'a Problem<'a>,
    window: usize,
    asked: usize,
    states: usize,
}

impl<'a> Programme<'a> {
    fn new(problem: &'a Problem<'a>, window: usize, asked: usize) -> Self {
        Self { problem, window, asked: asked.min(problem.layers()), states: 1 << (2 * window) }
    }

    fn entries(&self) -> usize {
        (self.problem.layers() + self.window).saturating_mul(self.asked + 1).saturating_mul(self.states)
    }

    /// The cost of the layer that deciding on layer `at` settles, given the statuses of the `2 window + 1`
    /// layers around it as bits (bit 0 = layer `at`): nothing if it is stored, `None` if it has no reference.
    fn settled(&self, at: usize, bits: usize) -> Option<f64> {
        let Some(layer) = at.checked_sub(self.window) else { return Some(0.0) };
        if bits >> self.window & 1 == 1 {
            return Some(0.0);
        }
        cheapest(self.problem.table(), layer, |r| {
            // at >= r always holds within the window.
            at.checked_sub(r).is_some_and(|back| bits >> back & 1 == 1)
        })
        .map(|(_, cost)| cost)
    }

    /// The greatest number of targets that can be reached (at most the number asked for), and the best set of
    /// the size asked for with its total cost.
    fn solve(&self) -> (usize, Option<(Vec<usize>, f64)>) {
        let layers = self.problem.layers();
        let steps = layers + self.window;
        let row = (self.asked + 1) * self.states;
        let mask = self.states - 1;
        let mut cost = vec![f64::INFINITY; row];
        cost[0] = 0.0;
        // Per step, the bit that fell out of the state, to walk back.
        let mut fallen: Vec<Vec<bool>> = Vec::with_capacity(steps);
        for at in 0..steps {
            let mut next = vec![f64::INFINITY; row];
            let mut out = vec![false; row];
            let real = at < layers;
            for state in 0..self.states {
                for stored in [true, false] {
                    if (!real && stored) || (real && !stored && !self.problem.may_be_target(at)) {
                        continue;
                    }
                    let bits = state << 1 | usize::from(stored);
                    let Some(added) = self.settled(at, bits) else { continue };
                    let more = usize::from(real && !stored);
                    for count in 0..=self.asked - more {
                        let sum = cost[count * self.states + state] + added;
                        let slot = (count + more) * self.states + (bits & mask);
                        if sum < next[slot] {
                            next[slot] = sum;
                            out[slot] = bits & self.states != 0;
                        }
                    }
                }
            }
            cost = next;
            fallen.push(out);
        }
        let ends = |count: usize| {
            let row = &cost[count * self.states..(count + 1) * self.states];
            row.iter().copied().enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, c)| c.is_finite())
        };
        let most = (0..=self.asked).rev().find(|&count| ends(count).is_some()).unwrap_or(0);
        let Some((mut state, total)) = ends(self.asked) else { return (most, None) };
        let mut count = self.asked;
        let mut targets = Vec::with_capacity(self.asked);
        for at in (0..steps).rev() {
            let out = fallen[at][count * self.states + state];
            // With no window the state has no bits, but then there are no costs either and nothing was
            // reached.
            let stored = state & 1 == 1;
            state = state >> 1 | usize::from(out) << (2 * self.window).saturating_sub(1);
            if at < layers && !stored {
                targets.push(at);
                count = count.saturating_sub(1);
            }
        }
        targets.reverse();
        (most, Some((targets, total)))
    }
}
