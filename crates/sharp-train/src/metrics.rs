//! Reads and writes `metrics.jsonl`: one JSON object a line.

use std::fs;
use std::path::Path;

use sharp_model::write_atomic;
use sharp_schema::metrics::{FinetuneLine, Line, ResultLine, WarmupLine, read_finetune, read_warmup};

use crate::error::{Error, Result};

/// The file's name.
pub(crate) const FILE: &str = sharp_schema::run::METRICS_FILE;

/// Reads the fine-tuning's lines; none if there is no file.
pub(crate) fn finetune_lines(path: &Path) -> Result<Vec<FinetuneLine>> {
    Ok(read_finetune(&text(path)?))
}

/// Writes the fine-tuning's lines, and its result's once there is one, in place of what is in the file.
pub(crate) fn write_finetune(path: &Path, lines: &[FinetuneLine], result: Option<ResultLine>) -> Result<()> {
    let lines = lines.iter().cloned().map(Line::Finetune);
    write(path, lines.chain(result.map(Line::Result)).collect())
}

/// Replaces the lines of one layer of the warm-up.
pub(crate) fn replace_layer(path: &Path, layer: usize, lines: Vec<WarmupLine>) -> Result<()> {
    let mut all = read_warmup(&text(path)?);
    all.retain(|line| line.layer != layer);
    all.extend(lines);
    write(path, all.into_iter().map(Line::Warmup).collect())
}

/// Makes an empty file if there is none.
pub(crate) fn touch(path: &Path) -> Result<()> {
    if path.exists() { Ok(()) } else { write(path, Vec::new()) }
}

fn text(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        result => result.map_err(Error::io(path)),
    }
}

fn write(path: &Path, lines: Vec<Line>) -> Result<()> {
    Ok(write_atomic(path, |w| {
        for line in &lines {
            serde_json::to_writer(&mut *w, line)?;
            writeln!(w)?;
        }
        Ok(())
    })?)
}
