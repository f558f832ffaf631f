//! A GGUF file seen as a Hugging Face checkpoint: names, configuration, row order.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};
use sharp_quant::DType;

use super::vocab::MORE_ENDS;
use super::{Gguf, tokenizer_config_json, tokenizer_json};
use crate::checkpoint::source::{TensorBytes, TensorInfo, TensorSource};
use crate::checkpoint::writer::pretty;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::family::{FAMILIES, Family, GGUF_FUSED, Presence, Scale};
use crate::origin::{CARD_FILE, Origin};
use crate::tensors::{Heads, tensors_of};
use crate::tokenizer::Tokenizer;

/// Rotary frequency factors: they become `rope_scaling`, not a tensor.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// A GGUF file under Hugging Face names, with q and k rows in Hugging Face's order.
///
/// Tensors keep their block format; only whole rows are moved, which never crosses a block.
#[derive(Debug)]
pub struct HfView {
    gguf: Arc<Gguf>,
    json: Map<String, Json>,
    config: ModelConfig,
    tensors: BTreeMap<String, Mapped>,
}

#[derive(Debug)]
struct Mapped {
    source: String,
    info: TensorInfo,
    /// Its rows within a fused tensor; none: all rows of the tensor.
    rows: Option<Range<usize>>,
    /// Number of heads whose rows have to be reordered.
    heads: Option<usize>,
    /// What is taken from every value: norms of `1 + weight` are stored as that sum.
    less: f32,
}

impl HfView {
    /// Maps the file's tensors and metadata; every tensor of the model must be there in its shape, and no
    /// other.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an architecture, RoPE form or tensor this crate has no Hugging Face name
    /// for; [`Error::NoTensor`] and [`Error::Shape`] for a tensor that is absent or of another shape;
    /// [`Error::Missing`], [`Error::Config`] or [`Error::Malformed`] for metadata that is absent or
    /// contradicts itself.
    pub fn new(gguf: Arc<Gguf>) -> Result<Self> {
        let architecture = gguf.architecture()?;
        let family = Family::by_gguf(architecture).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().filter_map(|f| f.gguf_architecture).collect();
            let what = format!("architecture `{architecture}` (known: {})", known.join(", "));
            Error::unsupported(gguf.path(), what)
        })?;
        let interleaved = family.gguf_interleaved_rope;
        let json = config(&gguf, architecture, family)?;
        let config = ModelConfig::from_map(gguf.path(), json.clone())?;
        let mut unused: BTreeSet<String> = gguf.tensors().into_iter().map(|t| t.name).collect();
        unused.remove(ROPE_FREQS);
        let mut tensors = BTreeMap::new();
        for (rule, layer, mut info) in tensors_of(&config, DType::F32) {
            let name = rule.gguf_of(layer);
            let (source, rows) = place(&gguf, &config, family, name, layer.unwrap_or_default());
            let found = gguf.info(&source).ok_or_else(|| Error::no_tensor(gguf.path(), source.as_str()))?;
            let mut shape = info.shape.clone();
            if let (Some((_, all)), Some(first)) = (&rows, shape.first_mut()) {
                *first = *all;
            }
            if found.shape != shape {
                return Err(Error::shape(gguf.path(), source, &shape, &found.shape));
            }
            let less = if info.name.ends_with("norm.weight") { family.norm_offset } else { 0.0 };
            if less != 0.0 && found.dtype != DType::F32 {
                let what = format!("type {}, expected F32", found.dtype.name());
                return Err(Error::tensor(gguf.path(), source.as_str(), what));
            }
            unused.remove(&source);
            info.dtype = found.dtype;
            let heads = match rule.heads {
                _ if !interleaved => None,
                Heads::None => None,
                Heads::Query => Some(config.num_attention_heads),
                Heads::Key => Some(config.num_key_value_heads),
            };
            let rows = rows.map(|(rows, _)| rows);
            tensors.insert(info.name.clone(), Mapped { source, info, rows, heads, less });
        }
        if let Some(name) = unused.first() {
            let what = format!("tensor `{name}` has no counterpart in a {} model", family.architecture);
            return Err(Error::unsupported(gguf.path(), what));
        }
        Ok(Self { gguf, json, config, tensors })
    }

    /// The `config.json` this file stands for, without `torch_dtype`.
    pub fn config_json(&self) -> &Map<String, Json> {
        &self.json
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The file behind this view.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The tokenizer, where the file has one.
    ///
    /// # Errors
    /// Those of [`tokenizer_json`] and [`Tokenizer::from_parts`].
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        if !self.has_tokenizer() {
            return Ok(None);
        }
        let json = tokenizer_json(&self.gguf)?.to_string();
        let settings = tokenizer_config_json(&self.gguf)?;
        Tokenizer::from_parts(self.gguf.path(), json.as_bytes(), settings, &self.config.eos_token_ids)
            .map(Some)
    }

    /// What goes beside the tensors in a Hugging Face directory, by name: `tokenizer.json`,
    /// `tokenizer_config.json` and a model card.
    ///
    /// # Errors
    /// Those of [`tokenizer_json`] and [`Tokenizer::from_parts`]: what was built must load, or the fault
    /// would show only later.
    pub fn companions(&self) -> Result<Vec<(&'static str, String)>> {
        let card = (CARD_FILE, self.origin()?.to_card("Imported from a GGUF file."));
        let tokenizer = tokenizer_json(&self.gguf)?.to_string();
        let settings = tokenizer_config_json(&self.gguf)?;
        Tokenizer::from_parts(self.gguf.path(), tokenizer.as_bytes(), settings.clone(), &[])?;
        Ok(vec![
            card,
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", pretty(&Json::Object(settings))),
        ])
    }

    fn has_tokenizer(&self) -> bool {
        self.gguf.get("tokenizer.ggml.model").is_some()
    }

    /// What the file says about where the model comes from.
    ///
    /// # Errors
    /// [`Error::Malformed`] if its name or licence is no string.
    pub(crate) fn origin(&self) -> Result<Origin> {
        Ok(Origin {
            name: self.gguf.string("general.name")?.map(str::to_owned),
            licence: self.gguf.string("general.license")?.map(str::to_owned),
        })
    }

    fn find(&self, name: &str) -> Result<&Mapped> {
        self.tensors.get(name).ok_or_else(|| Error::no_tensor(self.gguf.path(), name))
    }
}

impl TensorSource for HfView {
    fn path(&self) -> &Path {
        self.gguf.path()
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        self.tensors.values().map(|m| m.info.clone()).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|m| m.info.clone())
    }

    fn bytes(&self, name: &str) -> Result<TensorBytes> {
        let mapped = self.find(name)?;
        let mut bytes = self.gguf.bytes(&mapped.source)?;
        let count = mapped.info.shape.first().copied().unwrap_or(1);
        if let (Some(rows), Some(fused)) = (&mapped.rows, self.gguf.info(&mapped.source)) {
            let row = bytes.len() / fused.shape.first().copied().unwrap_or(1).max(1);
            let part = bytes.slice(rows.start * row..rows.end * row);
            bytes = part.ok_or_else(|| Error::no_tensor(self.gguf.path(), name))?;
        }
        if let Some(heads) = mapped.heads {
            bytes = TensorBytes::owned(halves_from_pairs(&bytes, count, heads));
        }
        if mapped.less != 0.0 {
            let (values, _) = bytes.as_chunks::<4>();
            let values = values.iter().map(|b| f32::from_le_bytes(*b) - mapped.less);
            bytes = TensorBytes::owned(values.flat_map(f32::to_le_bytes).collect());
        }
        Ok(bytes)
    }
}

/// Where the tensor `name` lies: by itself, or as some rows of a fused one, then with these and the number of
/// all rows.
fn place(
    gguf: &Gguf,
    config: &ModelConfig,
    family: &Family,
    name: String,
    layer: usize,
) -> (String, Option<(Range<usize>, usize)>) {
    // Only Phi-3 stores fused tensors; of another family a tensor of that name is itself.
    let fused = GGUF_FUSED.iter().filter(|_| family.read_as.is_some());
    for (fused, parts) in fused {
        let named = |pattern: &str| pattern.replace("{}", &layer.to_string());
        let Some(at) = parts.iter().position(|part| named(part) == name) else { continue };
        if gguf.info(&named(fused)).is_none() {
            continue;
        }
        let sizes = match parts.len() {
            3 => vec![config.query_size(), config.key_value_size(), config.key_value_size()],
            n => vec![config.intermediate_size; n],
        };
        let begin: usize = sizes.iter().take(at).sum();
        let end = begin + sizes.get(at).copied().unwrap_or(0);
        return (named(fused), Some((begin..end, sizes.iter().sum())));
    }
    (name, None)
}

/// Moves rows from interleaved rotary pairs to halves: within a head of `2n` rows, row `2j + s` goes to `s *
/// n + j`. `rows` is a multiple of `2 * heads`, and `bytes` has `rows` rows of equal length.
fn halves_from_pairs(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows;
    let half = rows / heads / 2;
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(row_bytes * 2 * half) {
        for s in 0..2 {
            for pair in head.chunks_exact(2 * row_bytes) {
                out.extend(pair.iter().skip(s * row_bytes).take(row_bytes));
            }
        }
    }
    out
}

/// The sizes of a model's attention.
struct AttentionSizes {
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
}

/// Reads an integer of the architecture's metadata that must be there.
fn required(gguf: &Gguf, arch: &str, key: &str) -> Result<u64> {
    let full = format!("{arch}.{key}");
    gguf.require(gguf.integer(&full)?, &full)
}

/// Reads the sizes of attention, and refuses models whose heads the engine does not compute.
fn attention_sizes(gguf: &Gguf, arch: &str) -> Result<AttentionSizes> {
    let integer = |key: &str| gguf.integer(&format!("{arch}.{key}"));
    let unsupported = |what: String| Error::unsupported(gguf.path(), what);
    if let Some(experts) = integer("expert_count")?.filter(|&n| n > 0) {
        return Err(unsupported(format!("a mixture of {experts} experts")));
    }
    let hidden = required(gguf, arch, "embedding_length")?;
    let heads = required(gguf, arch, "attention.head_count")?;
    if heads == 0 || hidden == 0 {
        return Err(Error::malformed(gguf.path(), format!("{heads} heads over a hidden size of {hidden}")));
    }
    let kv_heads = integer("attention.head_count_kv")?.unwrap_or(heads);
    let head_dim = match integer("attention.key_length")? {
        Some(n) => n,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let what = format!("a hidden size of {hidden} does not divide into {heads} heads");
            return Err(Error::malformed(gguf.path(), what));
        }
    };
    if let Some(v) = integer("attention.value_length")?.filter(|&v| v != head_dim) {
        return Err(unsupported(format!("keys of {head_dim} and values of {v}")));
    }
    if let Some(r) = integer("rope.dimension_count")?.filter(|&r| r != head_dim) {
        return Err(unsupported(format!("rotary embedding of {r} of {head_dim} dimensions")));
    }
    Ok(AttentionSizes { hidden, heads, kv_heads, head_dim })
}

/// Makes the `config.json` that a Hugging Face checkpoint of the model would have.
fn config(gguf: &Gguf, arch: &str, family: &Family) -> Result<Map<String, Json>> {
    let required = |key: &str| required(gguf, arch, key);
    let AttentionSizes { hidden, heads, kv_heads, head_dim } = attention_sizes(gguf, arch)?;
    let eps_key = format!("{arch}.attention.layer_norm_rms_epsilon");
    let eps = gguf.require(gguf.float(&eps_key)?, &eps_key)?;
    let theta = gguf.float(&format!("{arch}.rope.freq_base"))?.unwrap_or(10_000.0);

    let embed =
        gguf.info("token_embd.weight").ok_or_else(|| Error::no_tensor(gguf.path(), "token_embd.weight"))?;
    let vocab = embed.shape.first().copied().unwrap_or(0);

    let layers = required("block_count")?;
    // Once cut apart, fused tensors are another family's.
    let named = family.read_as.and_then(Family::by_architecture).unwrap_or(family);
    let mut c = Map::new();
    let mut put = |key: &str, value: Json| c.insert(key.to_owned(), value);
    put("architectures", json!([named.architecture]));
    put("model_type", json!(named.model_type));
    put("hidden_size", json!(hidden));
    put("intermediate_size", json!(required("feed_forward_length")?));
    put("num_hidden_layers", json!(layers));
    put("num_attention_heads", json!(heads));
    put("num_key_value_heads", json!(kv_heads));
    put("head_dim", json!(head_dim));
    put("hidden_act", json!(family.activation.names().first()));
    put("vocab_size", json!(vocab));
    put("max_position_embeddings", json!(required("context_length")?));
    put("rms_norm_eps", json!(eps));
    put("rope_theta", json!(theta));
    put("rope_scaling", rope_scaling(gguf, arch, head_dim, theta)?);
    put("tie_word_embeddings", json!(gguf.info("output.weight").is_none()));
    for (presence, tensor) in
        [(family.qkv_bias, "blk.0.attn_q.bias"), (family.mlp_bias, "blk.0.ffn_gate.bias")]
    {
        if let Presence::Key(key) = presence {
            put(key, json!(gguf.info(tensor).is_some()));
        }
    }
    for (ggml, key) in family.gguf_keys {
        let value = match gguf.get(&format!("{arch}.{ggml}")) {
            Some(value) if value.as_u64().is_some() => json!(value.as_u64()),
            _ => json!(gguf.float(&format!("{arch}.{ggml}"))?),
        };
        // What the file does not say is the family's default, but a window that it does not name is none.
        if !value.is_null() || *key == "sliding_window" {
            put(key, value);
        }
    }
    if let Scale::InverseRootOf(key, _) = family.attention_scale {
        let wide = family.gguf_wide_scores == Some(layers);
        put(key, json!(if wide { hidden / heads } else { head_dim }));
    }
    special_tokens(gguf, &mut c)?;
    c.insert("use_cache".to_owned(), json!(true));
    Ok(c)
}

/// Adds the ids of the tokens that begin, end and pad a text.
fn special_tokens(gguf: &Gguf, config: &mut Map<String, Json>) -> Result<()> {
    let mut put = |key: &str, value: Json| config.insert(key.to_owned(), value);
    if let Some(bos) = gguf.token_id("bos")? {
        put("bos_token_id", json!(bos));
    }
    // A chat model may end its turn, or a call of a tool, with another token than its text.
    let mut ends: Vec<u64> = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(gguf.token_id(name)?.filter(|id| !ends.contains(id)));
    }
    if let Some(more) = gguf.array(MORE_ENDS)?.and_then(|array| array.as_integers()) {
        for id in more.into_iter().filter_map(|id| u64::try_from(id).ok()) {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
    }
    match ends.as_slice() {
        [] => {}
        [one] => drop(put("eos_token_id", json!(one))),
        many => drop(put("eos_token_id", json!(many))),
    }
    if let Some(pad) = gguf.token_id("padding")? {
        put("pad_token_id", json!(pad));
    }
    Ok(())
}

fn rope_scaling(gguf: &Gguf, arch: &str, head_dim: u64, theta: f64) -> Result<Json> {
    let kind = gguf.string(&format!("{arch}.rope.scaling.type"))?.unwrap_or("none");
    let factor = match gguf.float(&format!("{arch}.rope.scaling.factor"))? {
        Some(f) => Some(f),
        None => gguf.float(&format!("{arch}.rope.scale_linear"))?.filter(|&f| f != 1.0),
    };
    let factors = match gguf.info(ROPE_FREQS) {
        Some(info) if info.dtype == DType::F32 => Some(gguf.f32(ROPE_FREQS)?),
        Some(info) => {
            return Err(Error::tensor(
                gguf.path(),
                ROPE_FREQS,
                format!("type {}, expected F32", info.dtype.name()),
            ));
        }
        None => None,
    };
    match (kind, factor, factors) {
        ("none", None, None) | ("none" | "linear", Some(1.0), None) | ("linear", None, None) => {
            Ok(Json::Null)
        }
        ("none" | "linear", Some(f), None) => Ok(json!({ "rope_type": "linear", "factor": f })),
        ("none", None, Some(factors)) => llama3_scaling(gguf, head_dim, theta, &factors),
        (kind, ..) => {
            Err(Error::unsupported(gguf.path(), format!("rotary scaling `{kind}` as this file has it")))
        }
    }
}

/// Recovers Llama 3's scaling from the per-frequency factors it was turned into. Every published Llama 3.x
/// uses low 1, high 4 and 8192 original positions; the factor is the largest entry. Anything these four
/// numbers do not reproduce is refused rather than approximated.
fn llama3_scaling(gguf: &Gguf, head_dim: u64, theta: f64, factors: &[f32]) -> Result<Json> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const ORIGINAL: f64 = 8192.0;
    let factor = f64::from(factors.iter().copied().fold(1.0f32, f32::max));
    let expected = (0..head_dim / 2).map(|i| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
        if wavelength < ORIGINAL / HIGH {
            1.0
        } else if wavelength > ORIGINAL / LOW {
            factor
        } else {
            let smooth = (ORIGINAL / wavelength - LOW) / (HIGH - LOW);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    });
    let same = factors.len() as u64 == head_dim / 2
        && expected.zip(factors).all(|(e, &f)| (e - f64::from(f)).abs() <= 1e-3 * e);
    if !same {
        let what = format!("`{ROPE_FREQS}` holds frequency factors that are not Llama 3's");
        return Err(Error::unsupported(gguf.path(), what));
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": ORIGINAL as u64,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_return_from_pairs_to_halves() {
        // Two heads of four rows, one byte a row. Halves order 0 1 | 2 3 is stored as pairs 0 2 1 3.
        let stored = [0, 2, 1, 3, 10, 12, 11, 13];
        assert_eq!(halves_from_pairs(&stored, 8, 2), [0, 1, 2, 3, 10, 11, 12, 13]);
    }
}
