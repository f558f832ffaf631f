//! Refuses Parquet files where the feature `parquet` is off.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

pub(crate) enum Rows {}

impl Rows {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let what =
            "is a Parquet file, which this program was built without; build it with the feature \"parquet\"";
        Err(Error::file(path, what))
    }

    pub(crate) fn path(&self) -> &Path {
        match *self {}
    }

    pub(crate) fn error(&self, _: impl Into<String>) -> Error {
        match *self {}
    }

    pub(crate) fn have(&self, _: &[&str]) -> bool {
        match *self {}
    }

    pub(crate) fn columns(&self) -> String {
        match *self {}
    }

    pub(crate) fn next_row(&mut self) -> Result<Option<Value>> {
        match *self {}
    }
}
