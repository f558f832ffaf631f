//! The names of the stages.

use std::fmt;
use std::str::FromStr;

use sharp_schema::suggest;

use crate::error::{Error, Result};

/// A stage of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Bring the checkpoint into one form.
    Import,
    /// Measure how alike the layers are.
    Analyze,
    /// Choose what each layer of the compressed model runs with.
    Plan,
    /// Fit the parameters of each changed layer alone (SLW).
    Warmup,
    /// Train the parameters of all changed layers together (SFT).
    Finetune,
    /// Write the compressed checkpoint.
    Export,
    /// Write the files that the engine runs.
    Quantize,
    /// Measure perplexity and task accuracy.
    Evaluate,
    /// Measure speed and memory.
    Benchmark,
    /// Write the page for a person.
    Report,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 10] = [
        Self::Import,
        Self::Analyze,
        Self::Plan,
        Self::Warmup,
        Self::Finetune,
        Self::Export,
        Self::Quantize,
        Self::Evaluate,
        Self::Benchmark,
        Self::Report,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Analyze => "analyze",
            Self::Plan => "plan",
            Self::Warmup => "warmup",
            Self::Finetune => "finetune",
            Self::Export => "export",
            Self::Quantize => "quantize",
            Self::Evaluate => "evaluate",
            Self::Benchmark => "benchmark",
            Self::Report => "report",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|stage| stage.name() == name)
            .ok_or_else(|| Error::Invalid(suggest::unknown("stage", name, &Self::ALL.map(Self::name))))
    }
}
