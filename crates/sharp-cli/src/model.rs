//! The model that a command works on.

use std::path::{Path, PathBuf};

use anyhow::Result;
use sharp_data::Chat;
use sharp_infer::Model;
use sharp_model::tokenizer::Tokenizer;

/// The one model of a command, as `--model PATH` or without the flag.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelArg {
    /// The model: a Hugging Face directory (dense or compact) or a GGUF file; to run or inspect, a
    /// model.sharp file too.
    ///
    /// Of a GGUF file, Q4_0, Q8_0 and float matrices run with their own numbers; the other kinds of blocks
    /// are rounded to 8 bits each time it is opened. `sharp quantize` makes a file that opens at once.
    #[arg(long, value_name = "PATH", required_unless_present = "positional", conflicts_with = "positional")]
    model: Option<PathBuf>,
    /// The same as --model.
    #[arg(value_name = "MODEL")]
    positional: Option<PathBuf>,
}

impl ModelArg {
    /// Returns where the model is.
    pub(crate) fn path(&self) -> &Path {
        self.model.as_deref().or(self.positional.as_deref()).expect("one of the two is required")
    }

    /// Returns where the model is, to be replaced.
    pub(crate) fn path_mut(&mut self) -> &mut PathBuf {
        self.model.as_mut().or(self.positional.as_mut()).expect("one of the two is required")
    }
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
