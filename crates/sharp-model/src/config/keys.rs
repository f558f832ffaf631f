//! Reads the keys of a JSON object with their checks.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The longest context believed, in tokens; past it a file is damaged or hostile.
pub(crate) const MAX_POSITIONS: usize = 1 << 31;

/// Keys of a JSON object such as `config.json`, read with checks.
pub(crate) struct Keys<'a> {
    pub(crate) path: &'a Path,
    pub(crate) raw: &'a Map<String, Value>,
}

impl Keys<'_> {
    pub(crate) fn fault(&self, field: &str, what: impl std::fmt::Display) -> Error {
        Error::config(self.path, field, what)
    }

    /// A key's value; JSON's null counts as absent, as it does in transformers.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.raw.get(field).filter(|v| !v.is_null())
    }

    pub(crate) fn optional_size(&self, field: &str, most: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok());
        match n {
            Some(n) if n >= 1 && n <= most => Ok(Some(n)),
            _ => Err(self.fault(field, format!("{value} is not a whole number from 1 to {most}"))),
        }
    }

    pub(crate) fn size(&self, field: &str, most: usize) -> Result<usize> {
        self.optional_size(field, most)?.ok_or_else(|| self.fault(field, "missing"))
    }

    pub(crate) fn positive(&self, field: &str, default: Option<f64>) -> Result<f64> {
        match self.get(field) {
            None => default.ok_or_else(|| self.fault(field, "missing")),
            Some(value) => match value.as_f64() {
                Some(x) if x > 0.0 && x.is_finite() => Ok(x),
                _ => Err(self.fault(field, format!("{value} is not a positive number"))),
            },
        }
    }

    pub(crate) fn bool(&self, field: &str) -> Result<Option<bool>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(value) => Err(self.fault(field, format!("{value} is not true or false"))),
        }
    }

    /// One token id, a list of them, or none.
    pub(crate) fn tokens(&self, field: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| {
            let id = value.as_u64().and_then(|n| u32::try_from(n).ok());
            id.ok_or_else(|| self.fault(field, format!("{value} is not a token id")))
        };
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(all)) => all.iter().map(one).collect(),
            // Some files write -1 for "none".
            Some(value) if value.as_i64() == Some(-1) => Ok(Vec::new()),
            Some(value) => Ok(vec![one(value)?]),
        }
    }
}
