//! Writing a resolved model: compact (shared weights once), dense (a plain checkpoint for any other tool), or
//! a PEFT adapter.

mod card;
mod peft;

use std::path::Path;

use serde_json::json;
use sharp_progress::Progress;
use sharp_quant::DType;

use crate::checkpoint::source::TensorInfo;
use crate::checkpoint::writer::{DEFAULT_SHARD_BYTES, SafetensorsWriter, WriteSummary};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::ModelSource;
use crate::names;
use crate::origin::CARD_FILE;
use crate::plan::Treatment;
use crate::tensors;

pub use card::CardNotes;
pub use peft::export_peft;

/// The code that runs a compact checkpoint in transformers; it lies beside the weights, and `auto_map` names
/// it.
const MODELING: &str = include_str!("../python/modeling_sharp.py");

/// Files of a checkpoint folder that are copied as they are, where they exist.
const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
];

/// How to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// Type of the weights: F32, F16 or BF16. Row and column scales stay in float32.
    pub dtype: DType,
    /// Bytes a file holds at most.
    pub max_shard_bytes: u64,
    /// What the model card says besides the plan.
    pub card: CardNotes,
}

impl ExportOptions {
    /// This type, in shards of [`DEFAULT_SHARD_BYTES`].
    pub fn new(dtype: DType) -> Self {
        Self { dtype, max_shard_bytes: DEFAULT_SHARD_BYTES, card: CardNotes::default() }
    }
}

/// What an export holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSummary {
    /// Files, bytes and tensors.
    pub written: WriteSummary,
    /// MLP weights, recovery parameters included.
    pub mlp_parameters: u64,
}

/// Writes a compact checkpoint: each shared MLP once, under its reference layer's names; target layers have
/// only their recovery parameters; `config.json` carries the plan as `sharp_config`. Beside it lie the code
/// with which transformers runs it (`trust_remote_code=True`), tokenizer files and a model card. A model
/// without a plan is written as the plain checkpoint it is.
///
/// # Errors
/// [`Error::Unsupported`] for another type than F32, F16, BF16; [`Error::NotFinite`]; [`Error::Io`].
pub fn export_compact(
    source: &ModelSource,
    out: impl AsRef<Path>,
    options: &ExportOptions,
    progress: &dyn Progress,
) -> Result<ExportSummary> {
    let mut config = match source.plan() {
        Some(plan) => source.config().to_json_with_plan(plan),
        None => source.config().to_json(),
    };
    set_dtype(&mut config, options.dtype);
    let mut tensors = source.stored_tensors()?;
    for tensor in &mut tensors {
        tensor.dtype = if is_scale(&tensor.name) { DType::F32 } else { options.dtype };
    }
    let mut writer = begin(source, out.as_ref(), options, &tensors, COMPANIONS)?;
    if source.plan().is_some() {
        config.insert("auto_map".into(), source.config().family().auto_map());
        writer.add_file("modeling_sharp.py", MODELING.as_bytes())?;
        let card = card::write(source, card::Kind::Compact, &options.card)?;
        writer.add_file(CARD_FILE, card.as_bytes())?;
    }
    let task = progress.task("writing the compact checkpoint", tensors.len() as u64, "tensors");
    for tensor in &tensors {
        writer.copy(&tensor.name, &source.tensor(&tensor.name)?)?;
        task.advance(1);
    }
    Ok(ExportSummary { written: writer.finish(&config)?, mlp_parameters: source.mlp_parameters() })
}

/// Writes a dense checkpoint: every layer with its effective MLP weights, a plain model of its family that
/// any tool loads. It is as large as the original, or larger. An MLP that the plan drops becomes one whose
/// down projection is zero, and a pruned one gets neurons of zeros in the place of those it lost. Where
/// layers have neurons beside a reference's MLP, all MLPs become as wide as the widest, with neurons of
/// zeros.
///
/// # Errors
/// As [`export_compact`].
pub fn export_dense(
    source: &ModelSource,
    out: impl AsRef<Path>,
    options: &ExportOptions,
    progress: &dyn Progress,
) -> Result<ExportSummary> {
    write_dense(source, out.as_ref(), options, progress, true)
}

/// A dense checkpoint with effective weights, or with what they are without the low-rank factors.
fn write_dense(
    source: &ModelSource,
    out: &Path,
    options: &ExportOptions,
    progress: &dyn Progress,
    factors: bool,
) -> Result<ExportSummary> {
    let dense = ModelConfig { intermediate_size: source.layout().widest_mlp(), ..source.config().clone() };
    let mut config = dense.to_json();
    set_dtype(&mut config, options.dtype);
    let rules = tensors::tensors_of(&dense, options.dtype);
    let tensors: Vec<TensorInfo> = rules.iter().map(|(_, _, info)| info.clone()).collect();
    let mut writer = begin(source, out, options, &tensors, COMPANIONS)?;
    if factors && source.plan().is_some() {
        let card = card::write(source, card::Kind::Dense, &options.card)?;
        writer.add_file(CARD_FILE, card.as_bytes())?;
    }
    let wider = dense.intermediate_size != source.config().intermediate_size;
    let task = progress.task("writing the dense checkpoint", tensors.len() as u64, "tensors");
    for (_, layer, info) in &rules {
        let treatment = layer.and_then(|l| source.treatment(l));
        match (names::parse_mlp(&info.name), treatment) {
            // A dropped MLP has no biases either.
            (Some((_, _, "bias")), Some(Treatment::Drop)) => {
                writer.append_f32(&info.name, &vec![0.0; info.elements()?])?;
            }
            (Some((layer, projection, "weight")), treatment) if wider || treatment.is_some() => {
                let mut part = source.projection(layer, projection)?;
                part.lora = part.lora.filter(|_| factors);
                writer.append_f32(&info.name, &part.padded_f32(&dense, dense.intermediate_size)?)?;
            }
            _ => writer.copy(&info.name, &source.tensor(&info.name)?)?,
        }
        task.advance(1);
    }
    let mlp_parameters = dense.num_hidden_layers as u64 * dense.mlp_parameters_per_layer();
    Ok(ExportSummary { written: writer.finish(&config)?, mlp_parameters })
}

fn begin(
    source: &ModelSource,
    out: &Path,
    options: &ExportOptions,
    tensors: &[TensorInfo],
    companions: &[&str],
) -> Result<SafetensorsWriter> {
    if !matches!(options.dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::unsupported(
            out,
            format!("a checkpoint in {}; F32, F16, BF16", options.dtype.name()),
        ));
    }
    // Written over itself, a mapped checkpoint would be read while it is replaced.
    if let (Ok(a), Ok(b)) = (source.path().canonicalize(), out.canonicalize())
        && a == b
    {
        return Err(Error::malformed(out, "an export cannot replace the checkpoint it is made from"));
    }
    let mut writer = SafetensorsWriter::create(out, tensors, options.max_shard_bytes)?;
    if let Some(gguf) = source.gguf() {
        for (name, text) in gguf.companions()? {
            if companions.contains(&name) {
                writer.add_file(name, text.as_bytes())?;
            }
        }
        return Ok(writer);
    }
    for name in companions {
        let file = source.path().join(name);
        if file.is_file() {
            writer.copy_file(name, &file)?;
        }
    }
    Ok(writer)
}

fn set_dtype(config: &mut serde_json::Map<String, serde_json::Value>, dtype: DType) {
    let name = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    // transformers 5 writes `dtype` and reads both.
    config.remove("dtype");
    config.insert("torch_dtype".into(), json!(name));
}

fn is_scale(name: &str) -> bool {
    names::parse_mlp(name).is_some_and(|(_, _, part)| matches!(part, "row_scale" | "col_scale"))
}
