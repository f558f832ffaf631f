//! A model as a dense GGUF file that llama.cpp runs.

use std::path::Path;

use sharp_progress::Progress;
use sharp_quant::{DType, ScaleRule};

use super::convert::ROPE_FREQS;
use super::vocab::{describe_tokenizer, no_tokenizer};
use super::write::GgufWriter;
use crate::checkpoint::source::TensorInfo;
use crate::config::{ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::model::ModelSource;
use crate::names;
use crate::tensors::{self, Heads, TensorRule};
use crate::tokenizer::Tokenizer;

/// Values converted at a time, rounded up to whole rows.
const CHUNK: usize = 1 << 20;

/// Types of the tensors of a GGUF file. Vectors are always F32, and matrices whose rows are no whole blocks
/// F16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufOptions {
    /// Attention and MLP matrices.
    pub layers: DType,
    /// The embedding, and the output head.
    pub embedding: DType,
}

impl GgufOptions {
    /// One type for all matrices.
    pub fn uniform(dtype: DType) -> Self {
        Self { layers: dtype, embedding: dtype }
    }
}

/// Writes `source` as one dense GGUF file and returns its size: effective weights, query and key rows in the
/// order of the format, blocks quantised by ggml's plain rule, tokenizer and chat template in the metadata.
/// Without a tokenizer the file says that it has none.
///
/// # Errors
/// [`Error::Unsupported`] for a tokenizer the format cannot express and for a family that computes what Llama
/// does not (windows aside); [`Error::Quant`] for weights that are not finite; [`Error::Io`].
pub fn export_gguf(
    source: &ModelSource,
    tokenizer: Option<&Tokenizer>,
    path: &Path,
    options: GgufOptions,
    progress: &dyn Progress,
) -> Result<u64> {
    let wide = ModelConfig { intermediate_size: source.layout().widest_mlp(), ..source.config().clone() };
    let config = &wide;
    let features = config.non_llama_features(0);
    if !features.is_empty() {
        let what = format!("a GGUF file of a model with {}", features.join(", "));
        return Err(Error::unsupported(path, what));
    }
    // GGUF files of families without a name of their own call themselves `llama`, whose shape they have.
    let arch = config.family().gguf_architecture.unwrap_or("llama");
    let mut file = GgufWriter::new();
    describe(&mut file, source, config, arch, options);
    match tokenizer {
        Some(tokenizer) => describe_tokenizer(&mut file, path, tokenizer, config)?,
        None => no_tokenizer(&mut file),
    }
    let rules = tensors::tensors_of(config, DType::F32);
    let freqs = frequency_factors(config);
    if let Some(freqs) = &freqs {
        file.tensor(TensorInfo { name: ROPE_FREQS.into(), dtype: DType::F32, shape: vec![freqs.len()] });
    }
    for (rule, layer, info) in &rules {
        let name = rule.gguf_of(*layer);
        let dtype = dtype_of(&info.shape, if layer.is_some() { options.layers } else { options.embedding });
        file.tensor(TensorInfo { name, dtype, shape: info.shape.clone() });
    }
    let task = progress.task("writing the GGUF file", rules.len() as u64, "tensors");
    let mut next = rules.iter();
    file.write(path, |declared, out| {
        if declared.name == ROPE_FREQS {
            let values = freqs.iter().flatten();
            return values.map(|f| f.to_le_bytes()).try_for_each(|bytes| out(&bytes));
        }
        let Some((rule, _, info)) = next.next() else {
            return Err(Error::no_tensor(source.path(), declared.name.as_str()));
        };
        let mut bytes = Vec::new();
        rows(source, config, rule, info, &mut |values| {
            bytes.resize(declared.dtype.nbytes(values.len())?, 0);
            sharp_quant::quantize(declared.dtype, ScaleRule::Max, values, &mut bytes)?;
            out(&bytes)
        })?;
        task.advance(1);
        Ok(())
    })
}

fn dtype_of(shape: &[usize], wanted: DType) -> DType {
    match shape {
        [_, cols] if cols.is_multiple_of(wanted.block_len()) => wanted,
        [_, _] => DType::F16,
        _ => DType::F32,
    }
}

/// Calls `f` with the effective values of a tensor of a model with this configuration, whole rows at a time,
/// in the order a GGUF file has them.
fn rows(
    source: &ModelSource,
    config: &ModelConfig,
    rule: &TensorRule,
    info: &TensorInfo,
    f: &mut dyn FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    let cols = match info.shape.as_slice() {
        [_, cols] => *cols,
        _ => 1,
    };
    let step = CHUNK.next_multiple_of(cols.max(1));
    let width = config.intermediate_size;
    let changes = |layer| source.treatment(layer).is_some() || width != source.config().intermediate_size;
    if let Some((layer, projection)) = names::parse_mlp_weight(&info.name)
        && changes(layer)
    {
        let values = source.projection(layer, projection)?.padded_f32(config, width)?;
        return values.chunks(step).try_for_each(f);
    }
    let tensor = source.tensor(&info.name)?;
    let heads = match rule.heads {
        _ if !config.family().gguf_interleaved_rope => None,
        Heads::None => None,
        Heads::Query => Some(config.num_attention_heads),
        Heads::Key => Some(config.num_key_value_heads),
    };
    if let Some(heads) = heads {
        return f(&pairs_from_halves(&tensor.f32()?, cols, heads));
    }
    let total = tensor.elements();
    let mut chunk = vec![0.0; total.min(step)];
    let mut start = 0;
    while start < total {
        let len = (total - start).min(step);
        let part = &mut chunk[..len];
        tensor.read_f32(start, part)?;
        f(part)?;
        start += len;
    }
    Ok(())
}

/// Moves rows from rotary halves to interleaved pairs: within a head of `2n` rows, row `s * n + j` goes to
/// `2j + s`.
fn pairs_from_halves(values: &[f32], cols: usize, heads: usize) -> Vec<f32> {
    let head_len = values.len() / heads.max(1);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_len.max(1)) {
        let (low, high) = head.split_at(head_len / 2);
        for (low, high) in low.chunks_exact(cols).zip(high.chunks_exact(cols)) {
            out.extend(low);
            out.extend(high);
        }
    }
    out
}

/// What Llama 3's scaling divides each frequency by.
fn frequency_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { .. } = config.rope_scaling else { return None };
    let plain = |i: usize| config.rope_theta.powf(-2.0 * i as f64 / config.head_dim as f64);
    Some(config.inv_freq().iter().enumerate().map(|(i, f)| (plain(i) / f) as f32).collect())
}

fn describe(
    file: &mut GgufWriter,
    source: &ModelSource,
    config: &ModelConfig,
    arch: &str,
    options: GgufOptions,
) {
    let name = source.path().file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy());
    file.string("general.architecture", arch);
    file.string("general.type", "model");
    file.string("general.name", &name);
    file.u32("general.quantization_version", 2);
    let kinds = [
        (DType::F32, 0),
        (DType::F16, 1),
        (DType::Q4_0, 2),
        (DType::Q4_1, 3),
        (DType::Q8_0, 7),
        (DType::BF16, 32),
    ];
    if let Some((_, kind)) = kinds.into_iter().find(|(dtype, _)| *dtype == options.layers) {
        file.u32("general.file_type", kind);
    }
    // The configuration's sizes are checked to be below 2^31.
    for (key, value) in [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab_size),
    ] {
        file.u32(&format!("{arch}.{key}"), value as u32);
    }
    file.f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), config.rms_norm_eps as f32);
    file.f32(&format!("{arch}.rope.freq_base"), config.rope_theta as f32);
    if let RopeScaling::Linear { factor } = config.rope_scaling {
        file.string(&format!("{arch}.rope.scaling.type"), "linear");
        file.f32(&format!("{arch}.rope.scaling.factor"), factor as f32);
    }
}
