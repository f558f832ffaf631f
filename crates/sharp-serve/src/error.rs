//! What can keep a server from starting or running.

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a server cannot start or run. What goes wrong with one request is told to its client instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine refused the model or ran out of room for a batch.
    #[error(transparent)]
    Infer(#[from] sharp_infer::Error),
    /// The tokenizer cannot write what the server needs.
    #[error(transparent)]
    Model(#[from] sharp_model::Error),
    /// The model's chat template cannot be read.
    #[error(transparent)]
    Data(#[from] sharp_data::Error),
    /// An option that cannot be.
    #[error("{option} is {value}; it has to be {rule}")]
    Option {
        /// The option.
        option: &'static str,
        /// What it was.
        value: String,
        /// What it has to be.
        rule: String,
    },
    /// A thread or a socket that the system did not give.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        cause: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |cause| Error::Io { what, cause }
    }
}
