//! The part of a configuration that decides the outputs of a step.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Keys and values, a section's key as `section.key`. They go into the fingerprint of the step.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Settings(BTreeMap<String, Value>);

impl Settings {
    /// Adds every key of a section.
    pub(super) fn section(mut self, name: &str, section: &impl Serialize) -> Self {
        let section = serde_json::to_value(section).expect("a section is plain data");
        let Value::Object(keys) = section else { unreachable!("a section is a table") };
        self.0.extend(keys.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
        self
    }

    /// Adds one key, or gives it another value.
    pub(crate) fn key(mut self, key: &str, value: &impl Serialize) -> Self {
        let value = serde_json::to_value(value).expect("a value is plain data");
        self.0.insert(key.to_owned(), value);
        self
    }

    /// Takes keys out that do not decide the outputs.
    pub(super) fn without(mut self, keys: &[&str]) -> Self {
        for key in keys {
            let taken = self.0.remove(*key);
            assert!(taken.is_some(), "there is no setting {key}");
        }
        self
    }

    /// Keys and values, as a manifest has them.
    pub(crate) fn values(&self) -> &BTreeMap<String, Value> {
        &self.0
    }
}
