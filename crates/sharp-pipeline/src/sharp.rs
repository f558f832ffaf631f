//! Command lines of `sharp` that are no stage: what a person or a measurement asks for by itself.

use std::path::Path;

use crate::stages::CommandLine;

/// Generates text from a packed model.
pub fn generate(model: &Path, prompt: &str) -> CommandLine {
    CommandLine::sharp("generate").flag("--model", model).flag("--prompt", prompt)
}

/// Packs a checkpoint at a precision.
pub fn quantize(model: &Path, recipe: &str, out: &Path) -> CommandLine {
    CommandLine::sharp("quantize").flag("--model", model).flag("--recipe", recipe).flag("--out", out)
}

/// Writes a checkpoint as GGUF: matrices of this ggml type, the embedding in 8 bits.
pub fn export_gguf(model: &Path, matrices: &str, out: &Path) -> CommandLine {
    CommandLine::sharp("export")
        .flag("--model", model)
        .flag("--gguf-dtype", matrices)
        .flag("--gguf-embedding", "Q8_0")
        .flag("--gguf", out)
}

/// What a synthetic model is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synthetic<'a> {
    /// A checkpoint in f32.
    Checkpoint,
    /// A packed file at a precision.
    Packed {
        /// The recipe.
        recipe: &'a str,
    },
    /// A packed file whose layers share MLPs in groups, repaired at a rank.
    Shared {
        /// Layers in a group.
        group: usize,
        /// Rank of the repair; `sharp`'s own without it.
        rank: Option<usize>,
    },
}

/// Makes a model of random weights in one of `sharp`'s preset shapes.
pub fn synth(preset: &str, kind: Synthetic<'_>, out: &Path) -> CommandLine {
    let line = CommandLine::sharp("synth").flag("--preset", preset);
    let line = match kind {
        Synthetic::Checkpoint => line,
        Synthetic::Packed { recipe } => line.flag("--recipe", recipe),
        Synthetic::Shared { group, rank } => line.value("--share", group).option("--rank", rank),
    };
    line.flag("--out", out)
}

/// How a packed file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// As `sharp` chooses.
    Default,
    /// Mapped.
    Map,
    /// Read onto large pages.
    Read,
}

/// One measurement of speed in a process of its own, printed as JSON.
#[derive(Debug, Clone, Copy)]
pub struct Measurement<'a> {
    /// The packed file.
    pub model: &'a Path,
    /// Number of threads.
    pub threads: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens decoded after it.
    pub decode_tokens: usize,
    /// How the file is opened.
    pub load: Load,
    /// Sequences decoded together in a second measurement.
    pub together: Option<usize>,
}

/// Measures once.
pub fn benchmark(measurement: Measurement<'_>) -> CommandLine {
    let line = CommandLine::sharp("benchmark")
        .arg("--single")
        .arg("--json")
        .value("--threads", measurement.threads)
        .value("--prompt-tokens", measurement.prompt_tokens)
        .value("--decode-tokens", measurement.decode_tokens)
        .option("--together", measurement.together);
    let line = match measurement.load {
        Load::Default => line,
        Load::Map => line.flag("--load", "map"),
        Load::Read => line.flag("--load", "read"),
    };
    line.flag("--model", measurement.model)
}
