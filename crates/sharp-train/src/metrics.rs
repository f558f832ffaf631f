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

/// Hashes the fine-tuning's lines but for the times in them.
pub(crate) fn finetune_digest(lines: &[FinetuneLine]) -> String {
    digest(lines.iter().cloned().map(Line::Finetune))
}

/// Hashes the lines of one layer of the warm-up but for the times in them.
pub(crate) fn layer_digest(path: &Path, layer: usize) -> Result<String> {
    let lines = read_warmup(&text(path)?).into_iter().filter(|line| line.layer == layer);
    Ok(digest(lines.map(Line::Warmup)))
}

fn digest(lines: impl Iterator<Item = Line>) -> String {
    let mut hash = blake3::Hasher::new();
    for line in lines {
        let mut value = serde_json::to_value(line).expect("a line of metrics is numbers and names");
        if let Some(keys) = value.as_object_mut() {
            keys.retain(|key, _| key != "seconds" && key != "tokens_per_second");
        }
        hash.update(value.to_string().as_bytes());
        hash.update(b"\n");
    }
    hash.finalize().to_hex().to_string()
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

/// Reads the file; a damaged line is left out by whoever reads lines, so bytes that are no text may pass.
fn text(path: &Path) -> Result<String> {
    match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        result => Ok(String::from_utf8_lossy(&result.map_err(Error::io(path))?).into_owned()),
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
