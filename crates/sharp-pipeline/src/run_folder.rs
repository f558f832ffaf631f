//! One run: its configuration, its folder, and the lock that lets one process at a time work in it.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sharp_schema::run::CONFIG_FILE;

use crate::atomic::write_atomic;
use crate::config::Config;
use crate::error::{Context as _, Error, Result};
use crate::workspace::Workspace;

/// How long a folder's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

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
    pub(crate) fn lock(&self) -> Result<File> {
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

/// Takes a folder for this process and the programs it starts. The lock ends with the last of them, so a
/// program that outlived a killed driver is still seen.
///
/// # Errors
/// [`Error::Locked`] where another process has it; [`Error::Io`] where it cannot be made.
pub fn lock(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join(".lock");
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    if !locked_soon(&file) {
        let mut owner = String::new();
        file.read_to_string(&mut owner).ok();
        return Err(Error::Locked { folder: folder.to_path_buf(), owner: owner.trim().to_owned() });
    }
    let signed =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
    signed.with_context(|| format!("writing {}", path.display()))?;
    Ok(file)
}

/// Takes the lock, or gives up after a little while: the programs of a run that was just killed hold it until
/// the system has taken their memory back.
fn locked_soon(file: &File) -> bool {
    let begun = Instant::now();
    loop {
        if file.try_lock().is_ok() {
            return true;
        }
        if begun.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_at_a_time_works_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let run = || Run {
            workspace: Workspace::new(folder.path()).unwrap(),
            config: Config::default(),
            config_file: "x.toml".into(),
            folder: folder.path().join("run"),
            siblings: Vec::new(),
        };
        let first = run().lock().unwrap();
        let error = run().lock().unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        run().lock().unwrap();
    }
}
