//! metrics.jsonl: one JSON object a line, with a `stage`.

use std::fs;
use std::path::Path;

use serde_json::Value;
use sharp_model::write_atomic;

use crate::error::{Error, Result};

/// The file's name.
pub(crate) const FILE: &str = "metrics.jsonl";

/// The lines there are; none if there is no file. A line cut off by a kill is left out.
pub(crate) fn read(path: &Path) -> Result<Vec<Value>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io(path)(e)),
    }
}

/// Replaces the file's content.
pub(crate) fn write(path: &Path, lines: &[Value]) -> Result<()> {
    Ok(write_atomic(path, |w| {
        for line in lines {
            writeln!(w, "{line}")?;
        }
        Ok(())
    })?)
}

/// Makes an empty file if there is none.
pub(crate) fn touch(path: &Path) -> Result<()> {
    if path.exists() { Ok(()) } else { write(path, &[]) }
}

/// Replaces the lines of one layer.
pub(crate) fn replace_layer(path: &Path, layer: usize, lines: &[Value]) -> Result<()> {
    let mut all = read(path)?;
    all.retain(|line| line.get("layer").and_then(Value::as_u64) != Some(layer as u64));
    all.extend_from_slice(lines);
    write(path, &all)
}

/// Leaves out lines of later steps: what a killed run did after its last checkpoint.
pub(crate) fn up_to_step(lines: Vec<Value>, step: u64) -> Vec<Value> {
    lines
        .into_iter()
        .filter(|line| line.get("step").and_then(Value::as_u64).is_some_and(|s| s <= step))
        .collect()
}
