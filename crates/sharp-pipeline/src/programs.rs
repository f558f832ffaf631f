//! The two programs that the stages start, and how a caller says where they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, Error, Result, bail};

/// A program of this project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// `sharp`: everything but training.
    Sharp,
    /// `sharp-train`: training, which needs libtorch.
    SharpTrain,
}

impl Program {
    /// Returns the file name of the program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sharp => "sharp",
            Self::SharpTrain => "sharp-train",
        }
    }
}

/// Says where programs are; may build them first.
pub trait Programs {
    /// Makes these programs ready to be started.
    ///
    /// # Errors
    /// Where one of them cannot be built or found.
    fn provide(&self, wanted: &[Program]) -> Result<ProgramPaths>;
}

/// Paths of programs that are ready to be started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramPaths(BTreeMap<Program, PathBuf>);

impl ProgramPaths {
    /// Looks for the programs in a folder.
    ///
    /// # Errors
    /// Where one of them is not there.
    pub fn in_folder(folder: &Path, wanted: &[Program]) -> Result<Self> {
        let mut found = BTreeMap::new();
        for &program in wanted {
            let path = folder.join(program.name());
            if !path.is_file() {
                bail!("{} is not there", path.display());
            }
            found.insert(program, path);
        }
        Ok(Self(found))
    }

    /// Returns the path of a program.
    ///
    /// # Errors
    /// Where it was not asked for.
    pub fn path(&self, program: Program) -> Result<&Path> {
        self.0
            .get(&program)
            .map(PathBuf::as_path)
            .with_context(|| format!("{} is not provided", program.name()))
    }
}

impl FromIterator<(Program, PathBuf)> for ProgramPaths {
    fn from_iter<I: IntoIterator<Item = (Program, PathBuf)>>(paths: I) -> Self {
        Self(paths.into_iter().collect())
    }
}

/// Programs that lie built in one folder, for example beside the running program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFolder(pub PathBuf);

impl Programs for InFolder {
    fn provide(&self, wanted: &[Program]) -> Result<ProgramPaths> {
        ProgramPaths::in_folder(&self.0, wanted)
    }
}

impl Error {
    /// Wraps a caller's own error about its programs.
    pub fn programs(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Programs { source: source.into() }
    }
}
