//! Layers of a configuration: files that extend others, and values of `--set`.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::keys::check_keys;
use crate::error::{Context as _, Error, Result, bail};
use crate::workspace::Workspace;

/// The key of a file that names the file it extends.
const EXTENDS: &str = "extends";

/// Reads a configuration file laid over those that it extends.
///
/// # Errors
/// Where a file is missing or not TOML, where it extends itself, and where one of its keys does not exist.
pub(crate) fn read_layers(workspace: &Workspace, file: &Path) -> Result<Table> {
    if !file.exists() {
        let shipped = workspace.listed("configs").join(", ");
        bail!("there is no configuration {} (there are: {shipped})", file.display());
    }
    read_extended(file, &mut Vec::new())
}

/// Reads a file that the files in `above` extend, one after another.
fn read_extended(file: &Path, above: &mut Vec<PathBuf>) -> Result<Table> {
    let reading = || format!("reading the configuration {}", file.display());
    let resolved = std::fs::canonicalize(file).with_context(reading)?;
    if above.contains(&resolved) {
        bail!("{} extends itself", file.display());
    }
    above.push(resolved);
    let text = std::fs::read_to_string(file).with_context(reading)?;
    let place = || format!("in the configuration {}", file.display());
    let mut table = text.parse::<Table>().context("this is not TOML").with_context(place)?;
    let base = match table.remove(EXTENDS) {
        None => None,
        Some(Value::String(base)) => Some(base),
        Some(other) => {
            let message = format!("{other} is not the path of a file, from this file on");
            return Err(Error::Setting { key: EXTENDS.into(), message }).with_context(place);
        }
    };
    check_keys(&table).with_context(place)?;
    let Some(base) = base else { return Ok(table) };
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut merged = read_extended(&folder.join(base), above).context(EXTENDS).with_context(place)?;
    lay_over(&mut merged, table);
    Ok(merged)
}

/// Lays a table over another: sections are joined key by key, every other value replaces the one below.
pub(crate) fn lay_over(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(section)), Value::Table(more)) => lay_over(section, more),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

/// Reads the values of `--set section.key=value`.
///
/// # Errors
/// Where one is not an assignment, or its key does not exist.
pub(crate) fn assignments(overrides: &[String]) -> Result<Table> {
    let mut table = Table::new();
    for assignment in overrides {
        let Some((key, value)) = assignment.split_once('=') else {
            bail!("--set {assignment}: expected key=value, for example --set plan.remove=0.4")
        };
        let one = key.trim().rsplit('.').fold(value_of(value.trim()), |value, part| {
            Value::Table(Table::from_iter([(part.to_owned(), value)]))
        });
        if let Value::Table(one) = one {
            check_keys(&one).with_context(|| format!("--set {assignment}"))?;
            lay_over(&mut table, one);
        }
    }
    Ok(table)
}

/// Reads a value typed on the command line: TOML where it is TOML, otherwise the text itself, so that
/// `--set plan.strategy=pairs` needs no quotes.
fn value_of(text: &str) -> Value {
    let wrapped = format!("value = {text}");
    wrapped
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}
