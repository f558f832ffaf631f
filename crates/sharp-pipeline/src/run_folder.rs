//! One run: its configuration and its folder.

use std::path::{Path, PathBuf};

use sharp_schema::run::CONFIG_FILE;

use crate::atomic::write_atomic;
use crate::config::Config;
use crate::error::{Context as _, Result};
use crate::lock::{Lock, lock};
use crate::workspace::Workspace;

/// A run: what is to be done, and where.
#[derive(Debug)]
pub struct Run {
    /// Where relative paths of the configuration start.
    pub workspace: Workspace,
    /// The checked configuration.
    pub config: Config,
    /// The configuration file, as the person named it.
    pub config_file: PathBuf,
    /// `runs/<name>`, or where the person said.
    pub folder: PathBuf,
    /// Other runs: a step that stands in one of them with the same fingerprint is taken over instead of made
    /// again.
    pub siblings: Vec<PathBuf>,
}

impl Run {
    /// Reads the configuration and decides the folder: `out`, or the configuration's name in `runs/`.
    ///
    /// # Errors
    /// Where the configuration cannot be read or used.
    pub fn resolve(
        workspace: &Workspace,
        config_file: &Path,
        overrides: &[String],
        out: Option<&Path>,
    ) -> Result<Self> {
        let file = workspace.find(config_file);
        let config = Config::load(workspace, &file, overrides)?;
        let folder = match out {
            Some(path) => {
                std::path::absolute(path).with_context(|| format!("the folder {}", path.display()))?
            }
            None => {
                let name = file.file_stem().context("the configuration file has no name")?;
                workspace.runs().join(name)
            }
        };
        Ok(Self {
            workspace: workspace.clone(),
            config,
            config_file: config_file.to_path_buf(),
            folder,
            siblings: Vec::new(),
        })
    }

    /// Returns the path of a folder or file in this run.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.folder.join(inside)
    }

    /// Takes the folder for this process and the programs it starts.
    pub(crate) fn lock(&self) -> Result<Lock> {
        lock(&self.folder)
    }

    /// Writes `config.toml` as resolved, with everything that was left out or overridden.
    pub(crate) fn write_config(&self) -> Result<()> {
        let body = toml::to_string(&self.config).context("the configuration as TOML")?;
        let text = format!(
            "# As resolved from {}, with every default and --set.\n{body}",
            self.config_file.display()
        );
        write_atomic(&self.folder.join(CONFIG_FILE), text.as_bytes())
    }
}
