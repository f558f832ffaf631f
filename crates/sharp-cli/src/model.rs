//! The model that a command works on.

use std::path::{Path, PathBuf};

use anyhow::Result;
use sharp_data::Chat;
use sharp_infer::Model;
use sharp_model::tokenizer::Tokenizer;

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

/// Opens the tokenizer of the model at `path` to write text with: it also knows the end of a turn that only
/// the chat template names.
///
/// # Errors
/// Those of [`Model::open_tokenizer`].
pub(crate) fn open_tokenizer(path: &Path) -> Result<Tokenizer> {
    let mut tokenizer = Model::open_tokenizer(path)?;
    if let Some(end) = Chat::from_tokenizer(&tokenizer).and_then(|chat| chat.turn_end(&tokenizer)) {
        tokenizer.add_end(end);
    }
    Ok(tokenizer)
}
