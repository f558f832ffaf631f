//! What the strategies decide by: measured costs of running one layer with another layer's MLP.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The measured cost of layer `target` running with layer `reference`'s MLP.
///
/// Directed: the cost of the opposite direction is another number. Smaller is better; negative values (a loss
/// that fell by chance) are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// The layer that would give up its own MLP.
    pub target: usize,
    /// The layer whose MLP it would use.
    pub reference: usize,
    /// The cost, in the unit of [`LayerCosts::metric`].
    pub cost: f64,
}

/// Everything measured that a strategy may decide by.
///
/// Any metric will do as long as smaller is better and sums over layers mean something: the strategies treat
/// costs of different layers as additive. The model's own change of loss (delta NLL, in nats per token) comes
/// nearest to that; the relative L2 error of the bare replacement says little about what remains after
/// recovery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerCosts {
    /// How many layers the measured model has.
    pub num_layers: usize,
    /// What was measured, for the reasons in the plan, for example `delta_nll`.
    pub metric: String,
    /// The measured directed pairs, each at most once, in any order. Pairs that were not measured are not
    /// available to `greedy` and `optimal`.
    pub costs: Vec<Cost>,
    /// Per layer, the cost of doing without its own MLP *and* without a reference, `(num_layers)`, or empty
    /// where that was not measured. Decides which layers the baselines without sharing replace.
    pub importance: Vec<f64>,
}

impl LayerCosts {
    /// No measurements: enough for the patterns and for `explicit`.
    pub fn unmeasured(num_layers: usize) -> Self {
        Self { num_layers, metric: String::new(), costs: Vec::new(), importance: Vec::new() }
    }

    pub(crate) fn table(&self, window: Option<usize>) -> Result<Table> {
        let n = self.num_layers;
        let mut rows: Vec<Vec<(usize, f64)>> = vec![Vec::new(); n];
        for c in &self.costs {
            if c.target >= n || c.reference >= n || c.target == c.reference {
                return Err(Error::InvalidCosts(format!(
                    "layer {} with the MLP of layer {} in a model of {n} layers",
                    c.target, c.reference
                )));
            }
            if !c.cost.is_finite() {
                return Err(Error::InvalidCosts(format!(
                    "layer {} with the MLP of layer {} costs {}; costs must be finite",
                    c.target, c.reference, c.cost
                )));
            }
            if window.is_some_and(|w| c.target.abs_diff(c.reference) > w) {
                continue;
            }
            let row = rows.get_mut(c.target).ok_or_else(|| Error::InvalidCosts("target".into()))?;
            if row.iter().any(|&(r, _)| r == c.reference) {
                return Err(Error::InvalidCosts(format!(
                    "layer {} with the MLP of layer {} is listed twice",
                    c.target, c.reference
                )));
            }
            row.push((c.reference, c.cost));
        }
        for (target, row) in rows.iter_mut().enumerate() {
            // Cheapest first; at equal cost the nearer reference, and of two equally near ones the earlier.
            row.sort_by(|a, b| {
                a.1.total_cmp(&b.1).then(target.abs_diff(a.0).cmp(&target.abs_diff(b.0))).then(a.0.cmp(&b.0))
            });
        }
        if !self.importance.is_empty() && self.importance.len() != n {
            return Err(Error::InvalidCosts(format!(
                "importance of {} layers for a model of {n}",
                self.importance.len()
            )));
        }
        if let Some(bad) = self.importance.iter().position(|v| !v.is_finite()) {
            return Err(Error::InvalidCosts(format!("importance of layer {bad} is not finite")));
        }
        Ok(Table { metric: self.metric.clone(), rows, importance: self.importance.clone() })
    }
}

/// Checked costs, by target, cheapest reference first.
#[derive(Debug, Clone)]
pub struct Table {
    metric: String,
    rows: Vec<Vec<(usize, f64)>>,
    importance: Vec<f64>,
}

impl Table {
    /// The references measured for a target as `(reference, cost)`, cheapest first; empty for layers out of
    /// range.
    pub fn references(&self, target: usize) -> &[(usize, f64)] {
        self.rows.get(target).map(Vec::as_slice).unwrap_or_default()
    }

    /// The cost of one directed pair, where it was measured.
    pub fn cost(&self, target: usize, reference: usize) -> Option<f64> {
        self.references(target).iter().find(|(r, _)| *r == reference).map(|&(_, c)| c)
    }

    /// The cost of one layer's MLP falling away without a reference, where it was measured.
    pub fn importance(&self, layer: usize) -> Option<f64> {
        self.importance.get(layer).copied()
    }

    /// Whether any pair was measured.
    pub fn is_empty(&self) -> bool {
        self.rows.iter().all(Vec::is_empty)
    }

    /// The name of the metric, for reasons.
    pub fn metric(&self) -> &str {
        if self.metric.is_empty() { "cost" } else { &self.metric }
    }

    /// The measurement of one pair in words, for a reason: the cost and how it stands among the target's
    /// others.
    pub fn describe(&self, target: usize, reference: usize) -> String {
        let row = self.references(target);
        let Some(place) = row.iter().position(|&(r, _)| r == reference) else {
            return "replacement cost not measured".into();
        };
        let (_, cost) = row[place];
        let mut text = format!("{} {cost:.4}", self.metric());
        match (row.len(), place) {
            (1, _) => text.push_str(", the only reference measured"),
            (n, 0) => {
                let (r, c) = row[1];
                text.push_str(&format!(", least of {n} references (next: layer {r} at {c:.4})"));
            }
            (n, place) => {
                let (r, c) = row[0];
                text.push_str(&format!(
                    ", place {} of {n} references (least: layer {r} at {c:.4})",
                    place + 1
                ));
            }
        }
        text
    }
}
