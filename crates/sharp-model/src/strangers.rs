//! Tensors that a checkpoint stores and its model has not.
//!
//! They are refused: a model that leaves a bias or a layer out computes something else, without a word.

use std::collections::HashSet;

use crate::checkpoint::source::{TensorInfo, TensorSource};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::names;

/// Ends of names of tables that older versions of transformers saved, and that nothing computes with.
const TABLES: [&str; 4] =
    ["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", ".masked_bias"];

/// Refuses a checkpoint with a tensor that is none of `known`.
///
/// # Errors
/// [`Error::Unsupported`] naming the tensor and what to do; [`Error::Tensor`] for a tied head that is not the
/// embedding.
pub(crate) fn refuse(config: &ModelConfig, known: &[TensorInfo], stored: &dyn TensorSource) -> Result<()> {
    let known: HashSet<&str> = known.iter().map(|info| info.name.as_str()).collect();
    for name in stored.names() {
        if known.contains(name.as_str()) || TABLES.iter().any(|table| name.ends_with(table)) {
            continue;
        }
        if config.tie_word_embeddings && name == names::LM_HEAD {
            same_as_embedding(stored)?;
            continue;
        }
        let what =
            format!("tensor `{name}`, which a {} has not: {}", config.architecture(), advice(config, &name));
        return Err(Error::unsupported(stored.path(), what));
    }
    Ok(())
}

/// What to do about a tensor that is left over.
fn advice(config: &ModelConfig, name: &str) -> String {
    let layers = config.num_hidden_layers;
    let layer =
        name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    if layer.is_some_and(|layer| layer >= layers) {
        return format!("config.json says `num_hidden_layers` is {layers}; put the right number there");
    }
    if name.ends_with(".bias") {
        return "config.json announces no such bias (`attention_bias`, `mlp_bias`); set its key to true if the \
                model was trained with it"
            .to_owned();
    }
    "without it the model may compute something else; write the checkpoint again without it if it does not"
        .to_owned()
}

/// Checks that a head stored beside a tied embedding is the embedding once more, at places all over it.
fn same_as_embedding(stored: &dyn TensorSource) -> Result<()> {
    const PLACES: usize = 64;
    const BYTES: usize = 4096;
    let (head, embedding) = (stored.tensor(names::LM_HEAD)?, stored.tensor(names::EMBED)?);
    let (a, b): (&[u8], &[u8]) = (&head.bytes, &embedding.bytes);
    let last = a.len().saturating_sub(BYTES);
    let part = |bytes: &[u8], i: usize| {
        let start = last / (PLACES - 1) * i;
        bytes.get(start..(start + BYTES).min(bytes.len())).map(<[u8]>::to_vec)
    };
    let same = head.info.shape == embedding.info.shape
        && (head.info.dtype != embedding.info.dtype || (0..PLACES).all(|i| part(a, i) == part(b, i)));
    if same {
        return Ok(());
    }
    let what = format!(
        "differs from `{}`, though config.json ties them (`tie_word_embeddings`); set that to false if the head \
         is its own",
        names::EMBED
    );
    Err(Error::tensor(stored.path(), names::LM_HEAD, what))
}
