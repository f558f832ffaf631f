//! The model that a command works on.

use std::path::PathBuf;

/// A model to run, in whatever form it is stored.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArg {
    /// The model: a model.sharp file, a Hugging Face directory (dense or compact) or a GGUF file.
    ///
    /// Of a GGUF file, Q4_0, Q8_0 and float matrices run with their own numbers; the other kinds of blocks
    /// are rounded to 8 bits each time it is opened. `sharp quantize` makes a file that opens at once.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
}
