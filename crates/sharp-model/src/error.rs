//! What can go wrong with a checkpoint, a plan or a file, and where.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that names the file and, where there is one, the tensor and the layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open, read, map or write a file.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said. It is in the message and therefore not the error's source.
        cause: io::Error,
    },
    /// A file's content contradicts its format: cut short, offsets past the end, absurd sizes.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file is not the JSON it should be.
    #[error("{}: not the JSON expected here: {cause}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why. It is in the message and therefore not the error's source.
        cause: serde_json::Error,
    },
    /// A file, folder or entry that has to be there is not.
    #[error("{}: {what}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// Well formed, but something this crate does not do (an architecture, a data type, a RoPE form).
    #[error("{}: not supported: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported.
        what: String,
    },
    /// The checkpoint has no tensor of this name.
    #[error("{}: no tensor `{tensor}`", path.display())]
    NoTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor looked for.
        tensor: String,
    },
    /// A tensor that cannot be used as it is.
    #[error("{}: tensor `{tensor}`: {what}", path.display())]
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor of another shape than the configuration or the plan says.
    #[error("{}: tensor `{tensor}` has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// NaN or an infinity among a tensor's values (or a value that overflows the type it is written in).
    #[error("{}: tensor `{tensor}` holds {value} at index {index}", path.display())]
    NotFinite {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Flat index of the first such value.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A model configuration that cannot be: zero layers, heads that do not divide, absurd sizes.
    #[error("{}: `{field}`: {what}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key, as Hugging Face spells it.
        field: String,
        /// What is wrong with it.
        what: String,
    },
    /// A plan that cannot be carried out, or not on this model.
    #[error("plan{}: {what}", layer.map(|l| format!(", layer {l}")).unwrap_or_default())]
    Plan {
        /// The layer, where the fault is one layer's.
        layer: Option<usize>,
        /// What is wrong with it.
        what: String,
    },
    /// The tokenizer's files or a text refused by the tokenizer.
    #[error("{}: tokenizer: {what}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A block format refused its input.
    #[error(transparent)]
    Quant(#[from] sharp_quant::Error),
}

impl Error {
    /// For `map_err`: an I/O error at `path`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { path: path.as_ref().to_path_buf(), cause }
    }

    /// For `map_err`: a JSON error in the file `path`.
    pub fn json(path: impl AsRef<Path>) -> impl FnOnce(serde_json::Error) -> Self {
        move |cause| Self::Json { path: path.as_ref().to_path_buf(), cause }
    }

    /// A file whose content contradicts its format.
    pub fn malformed(path: impl AsRef<Path>, what: impl Display) -> Self {
        Self::Malformed { path: path.as_ref().to_path_buf(), what: what.to_string() }
    }

    /// Something that has to be there and is not.
    pub fn missing(path: impl AsRef<Path>, what: impl Display) -> Self {
        Self::Missing { path: path.as_ref().to_path_buf(), what: what.to_string() }
    }

    /// Something well formed that this crate does not do.
    pub fn unsupported(path: impl AsRef<Path>, what: impl Display) -> Self {
        Self::Unsupported { path: path.as_ref().to_path_buf(), what: what.to_string() }
    }

    /// No tensor of this name.
    pub fn no_tensor(path: impl AsRef<Path>, tensor: impl Into<String>) -> Self {
        Self::NoTensor { path: path.as_ref().to_path_buf(), tensor: tensor.into() }
    }

    /// A tensor that cannot be used as it is.
    pub fn tensor(path: impl AsRef<Path>, tensor: impl Into<String>, what: impl Display) -> Self {
        Self::Tensor { path: path.as_ref().to_path_buf(), tensor: tensor.into(), what: what.to_string() }
    }

    /// A tensor of the wrong shape.
    pub fn shape(
        path: impl AsRef<Path>,
        tensor: impl Into<String>,
        expected: &[usize],
        found: &[usize],
    ) -> Self {
        Self::Shape {
            path: path.as_ref().to_path_buf(),
            tensor: tensor.into(),
            expected: expected.to_vec(),
            found: found.to_vec(),
        }
    }

    /// A configuration value that cannot be.
    pub fn config(path: impl AsRef<Path>, field: impl Into<String>, what: impl Display) -> Self {
        Self::Config { path: path.as_ref().to_path_buf(), field: field.into(), what: what.to_string() }
    }

    /// A plan that cannot be carried out.
    pub fn plan(layer: Option<usize>, what: impl Display) -> Self {
        Self::Plan { layer, what: what.to_string() }
    }

    /// The same fault of a tensor, found in this file.
    pub(crate) fn in_file(self, file: &Path) -> Self {
        match self {
            Self::Tensor { tensor, what, .. } => Self::tensor(file, tensor, what),
            other => other,
        }
    }

    /// The same fault of a plan, found in this layer.
    pub(crate) fn in_layer(self, layer: usize) -> Self {
        match self {
            Self::Plan { what, .. } => Self::Plan { layer: Some(layer), what },
            other => other,
        }
    }

    /// The tokenizer's files or input at fault.
    pub fn tokenizer(path: impl AsRef<Path>, what: impl Display) -> Self {
        Self::Tokenizer { path: path.as_ref().to_path_buf(), what: what.to_string() }
    }
}
