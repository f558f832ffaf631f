//! What can go wrong, each kind naming where.

use std::io;
use std::path::{Path, PathBuf};

fn gib(bytes: &u64) -> f64 {
    *bytes as f64 / (1u64 << 30) as f64
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused an operation: a shape, memory, or a device.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A checkpoint, plan or recovery file.
    #[error(transparent)]
    Model(#[from] sharp_model::Error),
    /// Training data.
    #[error(transparent)]
    Data(#[from] sharp_data::Error),
    /// Rounding of weights.
    #[error(transparent)]
    Quant(#[from] sharp_quant::Error),
    /// A file that could not be read or written.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A file of this crate's own whose content does not fit.
    #[error("{path}: {what}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor of the wrong shape.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor.
        what: String,
        /// The shape it must have.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A setting or a combination of settings that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The machine is too small for what is to be trained.
    #[error(
        "fine-tuning takes {:.1} GiB of memory and there are {:.1}: train less (stored MLPs can stay as they are; a larger saving or \
         smaller ranks leave less to train), use fewer threads, fine-tune on a larger machine, or stop after the warm-up",
        gib(.needed), gib(.there)
    )]
    Memory {
        /// Bytes it takes.
        needed: u64,
        /// Bytes there are.
        there: u64,
    },
    /// Training left the finite numbers.
    #[error("{what} is {value} at step {step}: lower the learning rate or look at the data")]
    NotFinite {
        /// What was being trained.
        what: String,
        /// The step, counted from 1.
        step: u64,
        /// The value that was found.
        value: f64,
    },
    /// A worker thread ended before its work did.
    #[error("a worker thread stopped while {0}")]
    Worker(String),
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error of a file operation, for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |cause| Self::Io { path, cause }
    }

    /// Makes an error of a file whose content does not fit.
    pub fn state(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::State { path: path.as_ref().to_path_buf(), what: what.into() }
    }

    /// Makes an error of a setting that makes no sense.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid(what.into())
    }
}
