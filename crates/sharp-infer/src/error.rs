//! What can go wrong when a model is loaded and run.

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that says what was wrong and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model's files are at fault; the source names path and tensor.
    #[error(transparent)]
    Model(#[from] sharp_model::Error),
    /// A kernel refused its input.
    #[error(transparent)]
    Quant(#[from] sharp_quant::Error),
    /// A kernel refused a model's tensor.
    #[error("tensor `{tensor}`: {source}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Why.
        source: sharp_quant::Error,
    },
    /// A tensor of another shape than the configuration says.
    #[error("tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A token that the model has no embedding for.
    #[error("token {token} at position {position}: the vocabulary has {vocab_size}")]
    Token {
        /// The token.
        token: u32,
        /// Its position in what was given.
        position: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// More positions than a session has room for.
    #[error("{wanted} positions, but the session has room for {capacity}")]
    Full {
        /// What the session was made for.
        capacity: usize,
        /// What was asked for.
        wanted: usize,
    },
    /// An argument that cannot be.
    #[error("{what}")]
    Argument {
        /// Which, and why.
        what: String,
    },
    /// A layer that the model does not have.
    #[error("layer {layer} of a model with {layers}")]
    Layer {
        /// The layer.
        layer: usize,
        /// Layers there are.
        layers: usize,
    },
    /// Numbers that are not finite came out of the model.
    #[error("the logits at position {position} are not finite")]
    NotFinite {
        /// Position in the sequence.
        position: usize,
    },
    /// A recipe that cannot be read.
    #[error("quantisation recipe: {what}")]
    Recipe {
        /// What is wrong with it.
        what: String,
    },
}

impl Error {
    pub(crate) fn argument(what: impl Into<String>) -> Self {
        Self::Argument { what: what.into() }
    }

    pub(crate) fn tensor(tensor: impl Into<String>) -> impl FnOnce(sharp_quant::Error) -> Self {
        move |source| Self::Tensor { tensor: tensor.into(), source }
    }
}
