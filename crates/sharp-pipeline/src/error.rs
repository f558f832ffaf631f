//! The errors of the pipeline, and the short ways to make them.

use std::path::PathBuf;
use std::process::ExitStatus;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a configuration, a study or a run cannot go on.
///
/// The text of a variant does not repeat its source: a program prints the chain, [`chain`] writes it in one
/// line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The person asked to stop; the next run goes on from what is there.
    #[error("stopped; the same command goes on from here")]
    Stopped,
    /// A value or a combination of values that cannot be used; the message names the key or the file.
    #[error("{0}")]
    Invalid(String),
    /// A key of a configuration that cannot have this value.
    #[error("{key}: {message}")]
    Setting {
        /// The key, a section's as `section.key`.
        key: String,
        /// What is wrong with the value.
        message: String,
    },
    /// A place in which another error arose: a configuration file, a cell of a study.
    #[error("{place}")]
    In {
        /// The place, in words.
        place: String,
        /// What is wrong there.
        source: Box<Error>,
    },
    /// A file or a program that the system refuses.
    #[error("{action}")]
    Io {
        /// What was tried, with the path.
        action: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A text that is not what it should be: TOML, JSON, a zip archive.
    #[error("{what}")]
    Format {
        /// What was read or written.
        what: String,
        /// The parser's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process works in the folder of the run.
    #[error(
        "another run works in {} (process {owner}, or a program that it started): wait for it or stop it. One run \
         at a time writes to a folder; --out makes a second one",
        folder.display()
    )]
    Locked {
        /// The folder of the run.
        folder: PathBuf,
        /// The process that holds the lock, as it wrote itself down.
        owner: String,
    },
    /// A program of a stage ended with an error, which it printed itself.
    #[error(
        "stage {stage} failed ({status}); its message is above. It ran:\n  {command}\nWhat is done is kept: the same \
         command goes on from here"
    )]
    StageFailed {
        /// Name of the stage.
        stage: String,
        /// How its program ended.
        status: ExitStatus,
        /// The command line, shortened.
        command: String,
    },
    /// A program of a stage ended well without a file that it has to write.
    #[error("stage {stage} ended well, but did not write {file}")]
    NotWritten {
        /// Name of the stage.
        stage: String,
        /// The missing file, relative to the run's folder.
        file: String,
    },
    /// The programs could not be built or found.
    #[error("the programs cannot be provided")]
    Programs {
        /// The caller's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Formats the error and all its sources in one line, from the outermost to the cause.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// Returns an [`Error::Invalid`] with this message.
macro_rules! bail {
    ($($message:tt)*) => {
        return Err($crate::Error::Invalid(format!($($message)*)))
    };
}
pub(crate) use bail;

/// Returns the error that this key cannot have its value.
macro_rules! refuse {
    ($key:expr, $($message:tt)*) => {
        return Err($crate::Error::Setting { key: $key.into(), message: format!($($message)*) })
    };
}
pub(crate) use refuse;

/// Says of a failure where it arose.
pub(crate) trait Context<T> {
    /// Wraps the error with what was tried.
    fn with_context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;

    /// Wraps the error with a fixed text.
    fn context(self, what: &str) -> Result<T>
    where
        Self: Sized,
    {
        self.with_context(|| what)
    }
}

impl<T, E: At> Context<T> for Result<T, E> {
    fn with_context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.at(what().into()))
    }
}

impl<T> Context<T> for Option<T> {
    fn with_context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.ok_or_else(|| Error::Invalid(what().into()))
    }
}

/// An error that becomes a variant of [`Error`] together with the place where it arose.
pub(crate) trait At {
    fn at(self, what: String) -> Error;
}

impl At for Error {
    fn at(self, place: String) -> Error {
        match self {
            // A stop is no failure of the place.
            Self::Stopped => Self::Stopped,
            other => Self::In { place, source: Box::new(other) },
        }
    }
}

impl At for std::io::Error {
    fn at(self, action: String) -> Error {
        Error::Io { action, source: self }
    }
}

macro_rules! formats {
    ($($error:ty),*) => {
        $(impl At for $error {
            fn at(self, what: String) -> Error {
                Error::Format { what, source: Box::new(self) }
            }
        })*
    };
}
formats!(toml::de::Error, toml::ser::Error, serde_json::Error, zip::result::ZipError);
