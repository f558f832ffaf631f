//! From files and `--set` to a checked configuration.

use std::path::Path;

use super::checked::Config;
use super::keys::check_keys;
use super::layers::{assignments, lay_over, read_layers};
use crate::error::{Context as _, Error, Result};
use crate::workspace::Workspace;

impl Config {
    /// Reads a configuration file and those that it extends, lays `--set` values over it and checks the
    /// result.
    ///
    /// # Errors
    /// Where a file cannot be read, or a key or value cannot be used; the message names the key.
    pub fn load(workspace: &Workspace, file: &Path, overrides: &[String]) -> Result<Self> {
        let mut table = read_layers(workspace, file)?;
        lay_over(&mut table, assignments(overrides)?);
        Self::from_table(workspace, table).with_context(|| format!("in the configuration {}", file.display()))
    }

    /// Takes a configuration from its keys and checks it.
    ///
    /// # Errors
    /// Where a key or value cannot be used.
    pub fn from_table(workspace: &Workspace, table: toml::Table) -> Result<Self> {
        check_keys(&table)?;
        let config: Self = serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| {
            let key = error.path().to_string();
            Error::Setting { key, message: error.into_inner().to_string().trim_end().to_owned() }
        })?;
        config.check(workspace)?;
        Ok(config)
    }
}
