//! Command lines of the programs. Their flags are known here and in `sharp.rs`, nowhere else outside the
//! programs.

use std::ffi::OsString;

use crate::programs::Program;
use crate::run_folder::Run;

/// One command line of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// Which program.
    pub program: Program,
    /// Its arguments, the command first.
    pub arguments: Vec<OsString>,
}

impl CommandLine {
    /// Begins a command of `sharp`.
    pub(crate) fn sharp(command: &str) -> Self {
        Self { program: Program::Sharp, arguments: vec![command.into()] }
    }

    /// Begins a command of `sharp-train`.
    pub(crate) fn sharp_train(command: &str) -> Self {
        Self { program: Program::SharpTrain, arguments: vec![command.into()] }
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, value: impl Into<OsString>) -> Self {
        self.arguments.push(value.into());
        self
    }

    /// Adds a flag and its value.
    pub(crate) fn flag(self, name: &str, value: impl Into<OsString>) -> Self {
        self.arg(name).arg(value)
    }

    /// Adds a flag and what its value prints as.
    pub(crate) fn value(self, name: &str, value: impl ToString) -> Self {
        self.flag(name, value.to_string())
    }

    /// Adds a flag where it has a value.
    pub(crate) fn option(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.value(name, value),
            None => self,
        }
    }

    /// Adds more where a condition holds.
    pub(crate) fn when(self, condition: bool, more: impl FnOnce(Self) -> Self) -> Self {
        if condition { more(self) } else { self }
    }

    /// Adds `--threads` where the configuration has a number.
    pub(super) fn threads(self, run: &Run) -> Self {
        self.option("--threads", run.config.threads)
    }

    /// Formats the words as a person would type them, with the folders of the run and the workspace left out.
    pub fn shown(&self, run: &Run) -> Vec<String> {
        let run_folder = format!("{}/", run.folder.display());
        let root = format!("{}/", run.workspace.root().display());
        let shorten =
            |argument: &OsString| argument.to_string_lossy().replace(&run_folder, "").replace(&root, "");
        std::iter::once(self.program.name().to_owned()).chain(self.arguments.iter().map(shorten)).collect()
    }

    /// Formats [`CommandLine::shown`] as one line for a shell, quoted where it has to be.
    pub fn for_shell(&self, run: &Run) -> String {
        for_shell(self.shown(run).iter().map(String::as_str))
    }
}

/// Formats words as one line for a shell, quoted where they have to be.
pub fn for_shell<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    shlex::Quoter::new().allow_nul(true).join(words).expect("quoting fails only at a NUL, which is allowed")
}
