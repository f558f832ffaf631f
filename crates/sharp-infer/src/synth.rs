//! Models of any shape with random weights, for tests, benchmarks and examples.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use sharp_model::{
    DType, ExportOptions, ModelConfig, ModelLayout, ModelSource, Plan, TensorBytes, TensorInfo, TensorSlot,
    TensorSource, export_compact,
};
use sharp_progress::Progress;

use crate::error::Result;

/// Tensors of fewer values than this are made by one thread.
const SMALL: usize = 1 << 16;

/// A model whose weights are computed from a seed and a tensor's name whenever they are asked for: the same
/// for the same seed on every machine, and none in memory before.
pub struct Synthetic {
    path: PathBuf,
    seed: u64,
    tensors: BTreeMap<String, TensorInfo>,
    /// Tensors made so far, if they are kept.
    kept: Option<Mutex<BTreeMap<String, TensorBytes>>>,
}

impl Synthetic {
    /// Makes a model of this shape and plan whose tensors are computed anew whenever they are asked for.
    ///
    /// For writing models larger than memory.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if plan and shape do not fit.
    pub fn source(config: &ModelConfig, plan: Option<&Plan>, seed: u64) -> Result<ModelSource> {
        Self::build(config, plan, seed, None)
    }

    /// Makes a model of this shape and plan that keeps every tensor once it has been computed.
    ///
    /// For running the model from memory, where layers that share an MLP must find one and the same.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if plan and shape do not fit.
    pub fn in_memory(config: &ModelConfig, plan: Option<&Plan>, seed: u64) -> Result<ModelSource> {
        Self::build(config, plan, seed, Some(Mutex::default()))
    }

    fn build(
        config: &ModelConfig,
        plan: Option<&Plan>,
        seed: u64,
        kept: Option<Mutex<BTreeMap<String, TensorBytes>>>,
    ) -> Result<ModelSource> {
        if let Some(plan) = plan {
            plan.validate(config)?;
        }
        let info = |TensorSlot { name, shape, .. }: TensorSlot| {
            (name.clone(), TensorInfo { name, dtype: DType::F32, shape })
        };
        let tensors = ModelLayout::new(config, plan).stored().into_iter().map(info).collect();
        let source = Self { path: PathBuf::from("(synthetic)"), seed, tensors, kept };
        Ok(ModelSource::new(config.clone(), plan.cloned(), Arc::new(source))?)
    }

    /// Writes such a model as a checkpoint folder in F32 (compact, where there is a plan), with
    /// [`synth_tokenizer`]'s tokenizer if the vocabulary has room for it.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if plan and shape do not fit or the folder cannot be written.
    pub fn write(
        config: &ModelConfig,
        plan: Option<&Plan>,
        seed: u64,
        folder: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut config = config.clone();
        let tokenizer = synth_tokenizer(config.vocab_size);
        if tokenizer.is_some() && config.eos_token_ids.is_empty() {
            config.eos_token_ids = vec![0];
        }
        let source = Self::source(&config, plan, seed)?;
        export_compact(&source, folder, &ExportOptions::new(DType::F32), progress)?;
        if let Some((json, settings)) = tokenizer {
            let settings = Value::Object(settings).to_string();
            for (name, text) in [("tokenizer.json", json), ("tokenizer_config.json", settings)] {
                sharp_model::write_atomic(&folder.join(name), |out| out.write_all(text.as_bytes()))?;
            }
        }
        Ok(())
    }

    fn make(&self, info: &TensorInfo) -> sharp_model::Result<TensorBytes> {
        let count = info.elements()?;
        // FNV-1a: the name decides the stream, so that no tensor depends on another.
        let hash = info
            .name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        let (centre, spread) = match info.shape.as_slice() {
            // Uniform in +-sqrt(3 / in): products keep their inputs' size. The factors' product is small
            // beside the weight.
            [_, cols] if info.name.contains("lora_") => (0.0, 0.5 * (3.0 / *cols as f32).sqrt()),
            [_, cols] => (0.0, (3.0 / *cols as f32).sqrt()),
            _ if info.name.ends_with("bias") => (0.0, 0.1),
            _ => (1.0, 0.2),
        };
        let mut bytes = vec![0; 4 * count];
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(16);
        let part = count.div_ceil(threads).max(SMALL);
        std::thread::scope(|scope| {
            for (i, bytes) in bytes.chunks_mut(4 * part).enumerate() {
                let mut fill = move || {
                    let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ hash);
                    // One word a value, so that a part begins where the one before ended, however many there
                    // are.
                    rng.set_word_pos((i * part) as u128);
                    for value in bytes.as_chunks_mut::<4>().0 {
                        let unit = (rng.random::<u32>() >> 8) as f32 / 8_388_608.0 - 1.0;
                        *value = (centre + spread * unit).to_le_bytes();
                    }
                };
                if part < count {
                    scope.spawn(fill);
                } else {
                    fill();
                }
            }
        });
        Ok(TensorBytes::owned(bytes))
    }
}

impl TensorSource for Synthetic {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        self.tensors.values().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).cloned()
    }

    fn bytes(&self, name: &str) -> sharp_model::Result<TensorBytes> {
        let info = self.tensors.get(name).ok_or_else(|| sharp_model::Error::no_tensor(&self.path, name))?;
        let Some(kept) = &self.kept else { return self.make(info) };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = kept.get(name) {
            return Ok(bytes.clone());
        }
        let bytes = self.make(info)?;
        kept.insert(name.to_owned(), bytes.clone());
        Ok(bytes)
    }
}

/// A byte-level tokenizer without merges: `tokenizer.json`, and the content of `tokenizer_config.json`. Token
/// 0 ends a text, tokens 1 to 256 are the bytes; `None` for a vocabulary smaller than 257.
pub fn synth_tokenizer(vocab_size: usize) -> Option<(String, Map<String, Value>)> {
    const END: &str = "<|endoftext|>";
    if vocab_size < 257 {
        return None;
    }
    // Byte-level tokenizers write bytes as printable characters: those that are printable as themselves, the
    // rest from U+0100 on in order.
    let mut vocab = Map::new();
    vocab.insert(END.to_owned(), json!(0));
    let mut next = 0x100u32;
    for byte in 0u32..256 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let shown = if printable {
            byte
        } else {
            next += 1;
            next - 1
        };
        vocab.insert(char::from_u32(shown).map(String::from).unwrap_or_default(), json!(byte + 1));
    }
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": 0, "content": END, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    });
    let mut settings = Map::new();
    settings.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    settings.insert("eos_token".into(), json!(END));
    Some((tokenizer.to_string(), settings))
}
