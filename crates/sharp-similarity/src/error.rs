//! What can go wrong while layers are compared.

/// Why an analysis failed, or a report could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option makes no sense.
    #[error("invalid {what}: {value}; {expected}")]
    InvalidOption {
        /// Which option.
        what: &'static str,
        /// The value as given.
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// There is no text to analyse.
    #[error("no calibration text: {0}")]
    NoText(String),
    /// The activations of a layer are not finite: the model is damaged, or overflows.
    #[error("layer {layer}: {what} holds values that are not finite")]
    NotFinite {
        /// The layer.
        layer: usize,
        /// Which activations.
        what: &'static str,
    },
    /// No metric has this name.
    #[error("{message}")]
    UnknownMetric {
        /// The name, and the nearest known one or all of them.
        message: String,
    },
    /// The metric asked for was not measured.
    #[error("the report holds no {metric}; analyse again with it")]
    NotMeasured {
        /// The metric.
        metric: &'static str,
    },
    /// The report contradicts itself.
    #[error("similarity report: {what}")]
    Report {
        /// What is wrong.
        what: String,
    },
    /// The report is no JSON, or not of this form.
    #[error("similarity report: {0}")]
    Json(#[from] serde_json::Error),
    /// The checkpoint could not be read.
    #[error(transparent)]
    Model(#[from] sharp_model::Error),
    /// The forward pass failed.
    #[error(transparent)]
    Infer(#[from] sharp_infer::Error),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
