//! Text for measuring: the data options that several commands share, and what they give.

use std::path::Path;

use anyhow::{Context, Result, bail};
use sharp_data::{Chat, DataSpec, Document, PackOptions, TokenBlocks, pack};
use sharp_infer::Model;
use sharp_model::tokenizer::Tokenizer;
use sharp_schema::Side;

/// A data file and the part of it that is used.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DataArgs {
    /// Text to measure with: PATH, PATH#VIEW or PATH#VIEW:LIMIT (views: auto, text, completion, messages,
    /// passage).
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: DataSpec,
    #[command(flatten)]
    pub(crate) part: PartArgs,
}

/// The part of a data file that is used.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PartArgs {
    /// Which side of the split to use.
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) split: Side,
    /// The fraction of documents held out by the split.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.05)]
    pub(crate) held_out: f64,
    /// Seed of the split and of the order of documents.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// The documents of `spec` on the chosen side of the split.
///
/// # Errors
/// When the file cannot be read or that side is empty.
pub(crate) fn documents(
    spec: &DataSpec,
    side: Side,
    held_out: f64,
    seed: u64,
    chat: Option<&Chat>,
) -> Result<Vec<Document>> {
    let documents = sharp_data::side(sharp_data::read(spec, chat)?, side, held_out, seed)?;
    if documents.is_empty() {
        bail!("{}: no documents on the {side} side of the split; give more text", spec.path.display());
    }
    Ok(documents)
}

impl PartArgs {
    /// Sequences of `seq_len` tokens, about `tokens` in all, from this part of `spec`, as the model at
    /// `model` reads them.
    ///
    /// # Errors
    /// When the file or the model's tokenizer cannot be read or there is not enough text for one sequence.
    pub(crate) fn sequences(
        &self,
        spec: &DataSpec,
        model: &Path,
        seq_len: usize,
        tokens: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let tokenizer = Model::open_tokenizer(model)?;
        let chat = Chat::from_tokenizer(&tokenizer);
        let documents = documents(spec, self.split, self.held_out, self.seed, chat.as_ref())?;
        let blocks = blocks(&documents, &tokenizer, seq_len, tokens, self.seed)?;
        Ok(blocks.iter().map(|(tokens, _)| tokens.to_vec()).collect())
    }
}

/// Rows of `seq_len` tokens, about `tokens` in all, from the documents in the order of `seed`.
///
/// # Errors
/// When there is not enough text for one row.
pub(crate) fn blocks(
    documents: &[Document],
    tokenizer: &Tokenizer,
    seq_len: usize,
    tokens: usize,
    seed: u64,
) -> Result<TokenBlocks> {
    let options = PackOptions::of(tokenizer, seq_len)?.with_budget(Some(tokens)).shuffled(seed);
    let blocks = pack(documents, tokenizer, &options).context("packing the text")?;
    if blocks.rows() == 0 {
        bail!("the text has fewer than {seq_len} tokens; give more text or a shorter --seq-len");
    }
    Ok(blocks)
}
