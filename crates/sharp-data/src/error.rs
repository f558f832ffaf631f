//! What can go wrong with data, told so that a person can find the place.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// One line of a file is not what it should be.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1 (in the decompressed text of a `.gz`).
        line: u64,
        /// What was wrong with it.
        what: String,
    },
    /// One row of a Parquet file is not what it should be.
    #[error("{}: row {row}: {what}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, counted from 1.
        row: u64,
        /// What was wrong with it.
        what: String,
    },
    /// A file as a whole is not what it should be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        what: String,
    },
    /// A data specification cannot be understood.
    #[error("data specification {spec:?}: {what}")]
    Spec {
        /// The specification as given.
        spec: String,
        /// What was wrong with it.
        what: String,
    },
    /// A chat template does not compile, or refused the messages.
    #[error("chat template: {what}")]
    Template {
        /// The template engine's words, with the line.
        what: String,
    },
    /// The tokenizer refused a text.
    #[error("tokenizer: {what}")]
    Tokenizer {
        /// The tokenizer's words.
        what: String,
    },
    /// An argument of a call makes no sense.
    #[error("{what}")]
    Argument {
        /// Which one, and what was expected.
        what: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, cause: std::io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), cause }
    }
    pub(crate) fn line(path: &Path, line: u64, what: impl Into<String>) -> Self {
        Error::Line { path: path.to_path_buf(), line, what: what.into() }
    }
    #[cfg(feature = "parquet")]
    pub(crate) fn row(path: &Path, row: u64, what: impl Into<String>) -> Self {
        Error::Row { path: path.to_path_buf(), row, what: what.into() }
    }
    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Error::File { path: path.to_path_buf(), what: what.into() }
    }
    pub(crate) fn argument(what: impl Into<String>) -> Self {
        Error::Argument { what: what.into() }
    }
}
