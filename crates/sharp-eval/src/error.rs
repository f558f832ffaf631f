//! What can go wrong in an evaluation.

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model could not be run.
    #[error(transparent)]
    Infer(#[from] sharp_infer::Error),
    /// A model or a result file could not be read or written.
    #[error(transparent)]
    Model(#[from] sharp_model::Error),
    /// Data could not be read or tokenised.
    #[error(transparent)]
    Data(#[from] sharp_data::Error),
    /// A model gave numbers that are not finite.
    #[error("model {model}: the logits of {what} are not finite")]
    NotFinite {
        /// The model, as its place in the list, from 0.
        model: usize,
        /// Where: a token's position in a text, or a question.
        what: String,
    },
    /// Models that cannot be compared.
    #[error("model {model} has a vocabulary of {found}, the first has {expected}")]
    Vocabulary {
        /// The model, as its place in the list, from 0.
        model: usize,
        /// Tokens of the first model.
        expected: usize,
        /// Tokens of this one.
        found: usize,
    },
    /// A file of results that does not say what it should.
    #[error("{what}")]
    Results {
        /// What is wrong with it.
        what: String,
    },
    /// An argument that cannot be.
    #[error("{what}")]
    Argument {
        /// Which one, and what was expected.
        what: String,
    },
}

impl Error {
    pub(crate) fn argument(what: impl Into<String>) -> Self {
        Error::Argument { what: what.into() }
    }
}
