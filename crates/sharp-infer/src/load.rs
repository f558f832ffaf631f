//! Building a model from a checkpoint or a packed file.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sharp_model::{
    ModelConfig, ModelSource, Projection, Scales, TensorBytes, TensorRef, Treatment,
    names::{self, Attention as Part},
    packed::{BlobFormat, PackedFile, PackedTensor},
};
use sharp_quant::{DType, Error as QuantError, PackedFormat, ScaleRule, Team};

use crate::error::{Error, Result};
use crate::linear::{DenseWeight, Linear, LinearParts, PackedWeight, Weight};
use crate::model::{Attention, Inner, Layer, Mlp, Model, Needs, Options};

/// Rows repacked at a time; a multiple of the layouts' groups of 16.
const ROWS: usize = 512;

/// Matrices by the address of their bytes, so that aliases become one.
#[derive(Default)]
struct TensorCache {
    known: HashMap<(usize, usize, usize), Weight>,
    /// Who packs block-quantised matrices; without, they become floats.
    packer: Option<Arc<Team>>,
}

impl TensorCache {
    fn of(&mut self, weight: Weight) -> Weight {
        let key = (weight.bytes().as_ptr() as usize, weight.rows(), weight.cols());
        self.known.entry(key).or_insert(weight).clone()
    }

    /// A checkpoint's matrix, as it lies there if it is of floats.
    fn dense(&mut self, tensor: &TensorRef) -> Result<Weight> {
        let (&[rows, cols], true, Some(team)) = (tensor.shape(), tensor.dtype().is_quantized(), &self.packer)
        else {
            return self.floats(tensor);
        };
        // Bytes that were made for this call may lie where earlier ones did.
        let key = tensor.bytes.is_mapped().then_some((tensor.bytes.as_ptr() as usize, rows, cols));
        if let Some(known) = key.and_then(|key| self.known.get(&key)) {
            return Ok(known.clone());
        }
        let (format, bytes) = match tensor.dtype() {
            DType::Q4_0 => (PackedFormat::Q4, sharp_quant::pack_q4_0(rows, cols, &tensor.bytes)),
            DType::Q8_0 => (PackedFormat::Q8, sharp_quant::pack_q8_0(rows, cols, &tensor.bytes)),
            _ => (PackedFormat::Q8, eight_bits(team, tensor, (rows, cols))),
        };
        let weight = bytes
            .and_then(|bytes| PackedWeight::new(format, rows, cols, TensorBytes::owned(bytes)))
            .map_err(Error::tensor(tensor.name()))?;
        let weight = Weight::Packed(Arc::new(weight));
        if let Some(key) = key {
            self.known.insert(key, weight.clone());
        }
        Ok(weight)
    }

    fn floats(&mut self, tensor: &TensorRef) -> Result<Weight> {
        let &[rows, cols] = tensor.shape() else {
            return Err(Error::Shape {
                tensor: tensor.name().to_owned(),
                expected: vec![0, 0],
                found: tensor.shape().to_vec(),
            });
        };
        let (dtype, bytes) = if tensor.dtype().is_quantized() {
            let values = tensor.f32()?;
            (DType::F32, TensorBytes::owned(values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        } else {
            (tensor.dtype(), tensor.bytes.clone())
        };
        let weight = DenseWeight::new(dtype, rows, cols, bytes).map_err(Error::tensor(tensor.name()))?;
        Ok(self.of(Weight::Dense(Arc::new(weight))))
    }

    /// A packed file's matrix.
    fn packed(&mut self, name: &str, tensor: PackedTensor, shape: (usize, usize)) -> Result<Weight> {
        let PackedTensor { format, rows, cols, bytes, .. } = tensor;
        expect(name, &[shape.0, shape.1], &[rows, cols])?;
        let weight = match format {
            BlobFormat::Packed(format) => {
                PackedWeight::new(format, rows, cols, bytes).map(|w| Weight::Packed(Arc::new(w)))
            }
            BlobFormat::F32 => {
                DenseWeight::new(DType::F32, rows, cols, bytes).map(|w| Weight::Dense(Arc::new(w)))
            }
            other => return Err(Error::argument(format!("{name} is stored as {}", other.name()))),
        };
        Ok(self.of(weight.map_err(Error::tensor(name))?))
    }
}

/// Blocks of another kind than the kernels' as Q8_0's numbers, a run of rows at a time.
fn eight_bits(team: &Team, tensor: &TensorRef, (rows, cols): (usize, usize)) -> Result<Vec<u8>, QuantError> {
    let mut out = vec![0; PackedFormat::Q8.nbytes(rows, cols)?];
    let mut values = vec![0.0; ROWS.min(rows) * cols];
    let piece = PackedFormat::Q8.nbytes(ROWS.min(rows), cols)?;
    let (block, bytes) = (tensor.dtype().block_len(), tensor.dtype().block_bytes());
    for (out, stored) in out.chunks_mut(piece).zip(tensor.bytes.chunks(ROWS * cols / block * bytes)) {
        let count = stored.len() / bytes * block;
        let values = &mut values[..count];
        sharp_quant::dequantize(tensor.dtype(), stored, values)?;
        let shape = (count / cols, cols);
        sharp_quant::pack_f32_parallel(
            team,
            PackedFormat::Q8,
            ScaleRule::default(),
            shape,
            values,
            None,
            out,
        )?;
    }
    Ok(out)
}

fn expect(tensor: &str, expected: &[usize], found: &[usize]) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Shape { tensor: tensor.to_owned(), expected: expected.to_vec(), found: found.to_vec() })
}

fn team(options: &Options) -> Result<Arc<Team>> {
    match &options.team {
        Some(team) => Ok(team.clone()),
        None => Ok(Arc::new(Team::new(options.threads)?)),
    }
}

fn kv(options: &Options, default: DType) -> Result<DType> {
    match options.kv_cache {
        None => Ok(default),
        Some(dtype @ (DType::F32 | DType::F16)) => Ok(dtype),
        Some(other) => Err(Error::argument(format!("a KV cache of {other}: F32 or F16"))),
    }
}

/// What a forward pass needs the configuration to be, beyond what reading it checks.
fn check(config: &ModelConfig) -> Result<()> {
    let kv = config.num_key_value_heads;
    if kv == 0 || !config.num_attention_heads.is_multiple_of(kv) || !config.head_dim.is_multiple_of(2) {
        return Err(Error::argument(format!(
            "{} query heads over {kv} key and value heads of {}",
            config.num_attention_heads, config.head_dim
        )));
    }
    Ok(())
}

/// Norm weights as they are multiplied by, `(len)`: read by `read`, the family's offset added.
struct NormReader<'a, F> {
    config: &'a ModelConfig,
    read: F,
}

impl<F: Fn(&str, usize) -> Result<Arc<[f32]>>> NormReader<'_, F> {
    fn norm(&self, name: &str, len: usize) -> Result<Arc<[f32]>> {
        let (weights, offset) = ((self.read)(name, len)?, self.config.family().norm_offset);
        Ok(if offset == 0.0 { weights } else { weights.iter().map(|w| w + offset).collect() })
    }

    fn some(&self, name: Option<String>) -> Result<Option<Arc<[f32]>>> {
        name.map(|name| self.norm(&name, self.config.hidden_size)).transpose()
    }

    /// Of query or key heads, `width` of them all together.
    fn heads(&self, name: String, width: usize) -> Result<Option<Arc<[f32]>>> {
        let config = self.config;
        let len = if config.family().qk_norm_whole { width } else { config.head_dim };
        config.qk_norm.then(|| self.norm(&name, len)).transpose()
    }

    /// The last one. What logits are divided by divides it, since the head is linear.
    fn last(&self) -> Result<Arc<[f32]>> {
        let weights = self.norm(names::FINAL_NORM, self.config.hidden_size)?;
        let divisor = self.config.scales.logits as f32;
        Ok(if divisor == 1.0 { weights } else { weights.iter().map(|w| w / divisor).collect() })
    }
}

impl Model {
    /// A model from a checkpoint: dense, compact, or an overlay. Weights stay where they are mapped, in F32, F16 or BF16, and are
    /// computed with in f32.
    ///
    /// # Errors
    /// [`Error::Model`] and [`Error::Shape`] for tensors missing or misshapen; [`Error::Quant`] if threads cannot be started.
    pub fn from_source(source: &ModelSource, options: &Options) -> Result<Self> {
        Self::from_checkpoint(source, options, TensorCache::default(), DType::F32)
    }

    /// As [`Model::from_source`], but block-quantised matrices (a GGUF file's) go into the kernels' layouts, copied into memory: Q4_0 and
    /// Q8_0 with their own numbers, every other kind rounded to 8 bits with a scale for every 32 columns. Activations are then
    /// rounded to 8 bits too, as with a packed file. `from_source` computes with such matrices' exact values, in f32, at four
    /// bytes each.
    ///
    /// # Errors
    /// Those of [`Model::from_source`]; [`Error::Argument`] for recovery parameters in floats over a block-quantised model.
    pub fn from_blocks(source: &ModelSource, options: &Options) -> Result<Self> {
        let team = team(options)?;
        let options = Options { team: Some(team.clone()), ..options.clone() };
        let blocks: BTreeSet<_> = source
            .stored_tensors()?
            .into_iter()
            .filter(|t| t.shape.len() == 2 && t.dtype.is_quantized())
            .map(|t| t.dtype)
            .collect();
        let rounded = blocks.iter().filter(|t| !matches!(t, DType::Q4_0 | DType::Q8_0));
        let rounded: Vec<_> = rounded.map(|t| t.name()).collect();
        if !rounded.is_empty() {
            let (file, kinds) = (source.path().display(), rounded.join(", "));
            tracing::info!(%file, kinds, "rounding to 8 bits what the kernels have no layout for");
        }
        let cache = if blocks.is_empty() { DType::F32 } else { DType::F16 };
        Self::from_checkpoint(
            source,
            &options,
            TensorCache { packer: Some(team), ..TensorCache::default() },
            cache,
        )
    }

    fn from_checkpoint(
        source: &ModelSource,
        options: &Options,
        mut tensors: TensorCache,
        cache: DType,
    ) -> Result<Self> {
        let config = source.config();
        check(config)?;
        let vector = |name: &str, len: usize| -> Result<Arc<[f32]>> {
            let tensor = source.tensor(name)?;
            expect(name, &[len], tensor.shape())?;
            Ok(tensor.f32()?.into())
        };
        let norms = NormReader { config, read: vector };
        let mut matrix = |tensor: TensorRef, shape: (usize, usize)| -> Result<Weight> {
            expect(tensor.name(), &[shape.0, shape.1], tensor.shape())?;
            tensors.dense(&tensor)
        };
        let (d, vocab) = (config.hidden_size, config.vocab_size);
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let mut attention = |part: Part, biased: bool| -> Result<Linear> {
                let shape = part.shape(config);
                let weight = matrix(source.tensor(&names::attention_weight(i, part))?, shape)?;
                let bias =
                    if biased { Some(vector(&names::attention_bias(i, part), shape.0)?) } else { None };
                Linear::new(shape, LinearParts { base: Some(weight), bias, ..Default::default() })
            };
            let qkv = config.attention_bias;
            let own = config.family().norms.of(i);
            let attention = Attention {
                norm: norms.some(own.attention)?,
                after: norms.some(own.after_attention)?,
                kind: config.layer_kind(i),
                query: attention(Part::Query, qkv)?,
                key: attention(Part::Key, qkv)?,
                value: attention(Part::Value, qkv)?,
                output: attention(Part::Output, config.attention_output_bias)?,
                q_norm: norms.heads(names::q_norm(i), config.query_size())?,
                k_norm: norms.heads(names::k_norm(i), config.key_value_size())?,
            };
            let mut projection = |p: Projection| -> Result<Linear> {
                let s = source.projection(i, p)?;
                let (rows, cols) = (s.out_features, s.in_features);
                let base = s.base.map(|t| matrix(t, (rows, cols))).transpose()?;
                let factors = match s.lora {
                    None => None,
                    Some(l) => Some((matrix(l.a, (l.rank, cols))?, matrix(l.b, (rows, l.rank))?)),
                };
                let values = |t: Option<TensorRef>| -> Result<Option<Arc<[f32]>>> {
                    Ok(t.map(|t| t.f32()).transpose()?.map(Into::into))
                };
                let (row_scale, col_scale, bias) =
                    (values(s.row_scale)?, values(s.col_scale)?, values(s.bias)?);
                Linear::new((rows, cols), LinearParts { base, factors, row_scale, col_scale, bias })
            };
            let mlp = Mlp::new(
                projection(Projection::Gate)?,
                projection(Projection::Up)?,
                projection(Projection::Down)?,
                config.family().activation,
            );
            layers.push(Layer {
                attention: Arc::new(attention),
                mlp_norm: norms.some(own.mlp)?,
                after_mlp: norms.some(own.after_mlp)?,
                mlp: Arc::new(mlp),
            });
        }
        Ok(Self::build(Inner {
            embedding: matrix(source.tensor(names::EMBED)?, (vocab, d))?,
            head: matrix(source.lm_head()?, (vocab, d))?,
            final_norm: norms.last()?,
            config: config.clone(),
            plan: source.plan().cloned(),
            layers,
            needs: Needs::default(),
            team: team(options)?,
            kv: kv(options, cache)?,
        }))
    }

    /// A model from an opened `model.sharp`. Matrices are used as they lie in the mapped file; a matrix that several layers share is
    /// one and the same.
    ///
    /// # Errors
    /// [`Error::Model`] and [`Error::Shape`] for tensors missing or misshapen; [`Error::Quant`] if threads cannot be started.
    pub fn from_packed(file: &PackedFile, options: &Options) -> Result<Self> {
        let config = file.config();
        check(config)?;
        let mut tensors = TensorCache::default();
        let vector = |name: &str, len: usize| -> Result<Arc<[f32]>> {
            let tensor = file.tensor(name)?;
            expect(name, &[1, len], &[tensor.rows, tensor.cols])?;
            Ok(tensor.f32()?.into())
        };
        let norms = NormReader { config, read: vector };
        let mut matrix = |name: &str, shape: (usize, usize)| -> Result<Weight> {
            tensors.packed(name, file.tensor(name)?, shape)
        };
        let (d, vocab) = (config.hidden_size, config.vocab_size);
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let mut attention = |part: Part, biased: bool| -> Result<Linear> {
                let shape = part.shape(config);
                let weight = matrix(&names::attention_weight(i, part), shape)?;
                let bias =
                    if biased { Some(vector(&names::attention_bias(i, part), shape.0)?) } else { None };
                Linear::new(shape, LinearParts { base: Some(weight), bias, ..Default::default() })
            };
            let qkv = config.attention_bias;
            let own = config.family().norms.of(i);
            let attention = Attention {
                norm: norms.some(own.attention)?,
                after: norms.some(own.after_attention)?,
                kind: config.layer_kind(i),
                query: attention(Part::Query, qkv)?,
                key: attention(Part::Key, qkv)?,
                value: attention(Part::Value, qkv)?,
                output: attention(Part::Output, config.attention_output_bias)?,
                q_norm: norms.heads(names::q_norm(i), config.query_size())?,
                k_norm: norms.heads(names::k_norm(i), config.key_value_size())?,
            };
            let treatment = file.plan().and_then(|p| p.treatment(i));
            let mut projection = |p: Projection| -> Result<Linear> {
                let (rows, cols) = treatment.map_or_else(|| p.shape(config), |t| t.shape(p, config));
                if treatment == Some(Treatment::Drop) {
                    return Ok(Linear::zero((rows, cols)));
                }
                let stored = treatment.is_none_or(|t| t.owner_of_weights(i).is_some());
                let base = if stored { Some(matrix(&names::mlp_weight(i, p), (rows, cols))?) } else { None };
                let rank = treatment.map_or(0, |t| t.ranks()[p]);
                let factors = if rank == 0 {
                    None
                } else {
                    Some((
                        matrix(&names::lora_a(i, p), (rank, cols))?,
                        matrix(&names::lora_b(i, p), (rows, rank))?,
                    ))
                };
                let some = |wanted: bool, name: String, len: usize| -> Result<Option<Arc<[f32]>>> {
                    if wanted { Ok(Some(vector(&name, len)?)) } else { Ok(None) }
                };
                let scales = treatment.map_or(Scales::None, |t| t.scales());
                let row_scale = some(scales.rows(), names::row_scale(i, p), rows)?;
                let col_scale = some(scales.columns(), names::col_scale(i, p), cols)?;
                let bias = some(config.mlp_bias, names::mlp_bias(i, p), rows)?;
                Linear::new((rows, cols), LinearParts { base, factors, row_scale, col_scale, bias })
            };
            let mlp = Mlp::new(
                projection(Projection::Gate)?,
                projection(Projection::Up)?,
                projection(Projection::Down)?,
                config.family().activation,
            );
            layers.push(Layer {
                attention: Arc::new(attention),
                mlp_norm: norms.some(own.mlp)?,
                after_mlp: norms.some(own.after_mlp)?,
                mlp: Arc::new(mlp),
            });
        }
        let head = if config.tie_word_embeddings && file.get(names::LM_HEAD).is_none() {
            names::EMBED
        } else {
            names::LM_HEAD
        };
        Ok(Self::build(Inner {
            embedding: matrix(names::EMBED, (vocab, d))?,
            head: matrix(head, (vocab, d))?,
            final_norm: norms.last()?,
            config: config.clone(),
            plan: file.plan().cloned(),
            layers,
            needs: Needs::default(),
            team: team(options)?,
            kv: kv(options, DType::F16)?,
        }))
    }
}
