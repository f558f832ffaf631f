//! Numbers and series of numbers in the lines of a `metrics.jsonl`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::collect::Record;

pub(super) const STEP: &[&str] = &["step"];
pub(super) const LOSS: &[&str] = &["loss", "train_loss"];
pub(super) const HELD_OUT_ERROR: &[&str] =
    &["held_out_error", "held_out", "held_out_loss", "held_out_relative_error"];
pub(super) const HELD_OUT_PERPLEXITY: &[&str] = &["held_out_perplexity", "perplexity"];
pub(super) const HELD_OUT_LOSS: &[&str] = &["held_out_loss", "held_out"];

/// The first of these keys that holds a finite number.
pub(super) fn number(record: &Record, keys: &[&str]) -> Option<f64> {
    keys.iter().find_map(|key| record.get(*key).and_then(Value::as_f64).filter(|v| v.is_finite()))
}

/// Points `(x, y)` of the records that hold both, by series: `by` names the number that tells series apart.
pub(super) fn series(
    records: &[Record],
    by: Option<&str>,
    x: &[&str],
    y: &[&str],
) -> BTreeMap<u64, Vec<(f64, f64)>> {
    let mut found: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for record in records {
        let key = match by {
            Some(by) => record.get(by).and_then(Value::as_u64),
            None => Some(0),
        };
        if let (Some(key), Some(x), Some(y)) = (key, number(record, x), number(record, y)) {
            let points = found.entry(key).or_default();
            // A resumed run repeats the steps after its last saved state: the later line counts.
            while points.last().is_some_and(|&(last, _)| last >= x) {
                points.pop();
            }
            points.push((x, y));
        }
    }
    found
}
