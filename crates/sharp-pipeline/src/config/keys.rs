//! The keys that there are, and what may be meant by one that does not exist.

use sharp_schema::suggest;
use toml::{Table, Value};

use super::checked::Config;
use super::old_keys;
use crate::error::{Result, bail};

/// Lists every key there is, a section's as `section.key`.
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

/// Lists the keys of a table, a section's as `section.key`.
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

/// Refuses a key that no configuration has, with the nearest one; for keys of the flat files of before, all
/// their new names.
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

/// Returns the last part of a key.
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
