//! Layers of a configuration: files that extend others, `--set` values, and the check that every key exists.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, old_keys};
use crate::error::{Context as _, Error, Result, bail};
use crate::workspace::Workspace;
use sharp_schema::suggest;

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

/// Every key there is, a section's as `section.key`.
pub(crate) fn keys() -> Vec<String> {
    let all = serde_json::to_value(Config::default()).expect("a configuration is plain data");
    let mut keys = Vec::new();
    for (key, value) in all.as_object().expect("a configuration is a table") {
        match value.as_object() {
            Some(section) => keys.extend(section.keys().map(|inner| format!("{key}.{inner}"))),
            None => keys.push(key.clone()),
        }
    }
    keys
}

/// The keys of a table, a section's as `section.key`.
pub(crate) fn dotted_keys(table: &Table) -> Vec<String> {
    let mut keys = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(section) => keys.extend(section.keys().map(|inner| format!("{key}.{inner}"))),
            _ => keys.push(key.clone()),
        }
    }
    keys
}

/// Refuses a key that no configuration has, with the nearest one; for keys of the flat files of before, all their new
/// names.
pub(crate) fn check_keys(table: &Table) -> Result<()> {
    old_keys::check(table)?;
    let keys = keys();
    let sections: Vec<&str> = keys.iter().filter_map(|key| Some(key.split_once('.')?.0)).collect();
    for (key, value) in table {
        if sections.contains(&key.as_str()) {
            let Value::Table(section) = value else {
                bail!("{key}: this is a section: [{key}] and then its keys, or {key}.KEY = VALUE")
            };
            let prefix = format!("{key}.");
            let known: Vec<&str> = keys.iter().filter_map(|known| known.strip_prefix(&prefix)).collect();
            if let Some(wrong) = section.keys().find(|inner| !known.contains(&inner.as_str())) {
                bail!("there is no key {wrong:?} in [{key}]{}", hint_in_section(wrong, key, &known, &keys));
            }
        } else if !keys.contains(key) {
            bail!("{}", unknown(key, value, &sections, &keys));
        }
    }
    Ok(())
}

/// Suggests a key for one that a section does not have: one of its own, or the same key of another section.
fn hint_in_section(wrong: &str, section: &str, known: &[&str], keys: &[String]) -> String {
    let elsewhere: Vec<&str> = keys.iter().filter(|key| leaf(key) == wrong).map(String::as_str).collect();
    match elsewhere.as_slice() {
        [] => suggest::hint(wrong, known),
        places => format!("; there is {}; [{section}] has: {}", places.join(" and "), known.join(", ")),
    }
}

/// The last part of a key.
fn leaf(key: &str) -> &str {
    key.rsplit_once('.').map_or(key, |(_, leaf)| leaf)
}

/// Says what may be meant by a key or section at the top that does not exist.
fn unknown(key: &str, value: &Value, sections: &[&str], keys: &[String]) -> String {
    if value.is_table() {
        let mut distinct = sections.to_vec();
        distinct.dedup();
        return format!("there is no section [{key}]{}", suggest::hint(key, &distinct));
    }
    let leaves: Vec<&str> = keys.iter().map(|key| leaf(key)).collect();
    let meant: Vec<&str> = match suggest::nearest(key, leaves.iter().copied()) {
        Some(near) => keys.iter().filter(|key| leaf(key) == near).map(String::as_str).collect(),
        None => Vec::new(),
    };
    match meant.as_slice() {
        [] => format!(
            "there is no key {key:?}{}",
            suggest::hint(key, &keys.iter().map(String::as_str).collect::<Vec<_>>())
        ),
        [one] => format!("there is no key {key:?}; did you mean {one:?}?"),
        several => format!("there is no key {key:?}; did you mean one of {}?", several.join(", ")),
    }
}
