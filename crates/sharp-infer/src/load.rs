//! Building a model from the tensors of a checkpoint or of a packed file.

use std::collections::BTreeSet;
use std::sync::Arc;

use sharp_model::{
    ModelConfig, ModelLayout, ModelSource, Part, Plan, Projection, Role, Rotary, TensorSlot, names,
    packed::PackedFile,
};
use sharp_quant::{DType, Team};

use crate::error::{Error, Result};
use crate::linear::{Linear, LinearParts, Weight};
use crate::model::{Attention, Inner, Layer, Mlp, Model, Needs, Options};
use crate::tensor_cache::TensorCache;

/// Where the tensors of a model are read from. What there must be, the model's layout says.
trait ModelTensors {
    /// Reads a vector as f32.
    ///
    /// # Errors
    /// [`Error::Model`] if it is missing, [`Error::Shape`] if it has another shape.
    fn vector(&self, slot: &TensorSlot) -> Result<Arc<[f32]>>;

    /// Finds a matrix; the same for every slot that it is stored for.
    ///
    /// # Errors
    /// Those of [`ModelTensors::vector`].
    fn matrix(&mut self, slot: &TensorSlot) -> Result<Weight>;
}

/// The tensors of a checkpoint, under the names they are stored as.
struct CheckpointTensors<'a> {
    source: &'a ModelSource,
    cache: TensorCache,
}

impl ModelTensors for CheckpointTensors<'_> {
    fn vector(&self, slot: &TensorSlot) -> Result<Arc<[f32]>> {
        let tensor = self.source.stored(&slot.stored_as)?;
        expect(tensor.name(), &slot.shape, tensor.shape())?;
        Ok(tensor.f32()?.into())
    }

    fn matrix(&mut self, slot: &TensorSlot) -> Result<Weight> {
        let tensor = self.source.stored(&slot.stored_as)?;
        expect(tensor.name(), &slot.shape, tensor.shape())?;
        self.cache.checkpoint(&tensor, (slot.shape[0], slot.shape[1]))
    }
}

/// The tensors of a packed file, under the names of the layers that use them.
struct PackedTensors<'a> {
    file: &'a PackedFile,
    cache: TensorCache,
}

impl ModelTensors for PackedTensors<'_> {
    fn vector(&self, slot: &TensorSlot) -> Result<Arc<[f32]>> {
        let tensor = self.file.tensor(&slot.name)?;
        expect(&slot.name, &[1, slot.shape[0]], &[tensor.rows, tensor.cols])?;
        Ok(tensor.f32()?.into())
    }

    fn matrix(&mut self, slot: &TensorSlot) -> Result<Weight> {
        let tensor = self.file.tensor(&slot.name)?;
        expect(&slot.name, &slot.shape, &[tensor.rows, tensor.cols])?;
        self.cache.packed(&slot.name, tensor)
    }
}

fn expect(tensor: &str, expected: &[usize], found: &[usize]) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Shape { tensor: tensor.to_owned(), expected: expected.to_vec(), found: found.to_vec() })
}

/// Puts a model together from its tensors.
struct Builder<'a, T> {
    config: &'a ModelConfig,
    plan: Option<&'a Plan>,
    layout: ModelLayout<'a>,
    tensors: T,
}

impl<'a, T: ModelTensors> Builder<'a, T> {
    /// Begins a model of this configuration.
    ///
    /// # Errors
    /// [`Error::Argument`] for heads that a forward pass cannot have and for a RoPE without a base, which
    /// reading a configuration does not check.
    fn new(config: &'a ModelConfig, plan: Option<&'a Plan>, tensors: T) -> Result<Self> {
        let kv = config.num_key_value_heads;
        if kv == 0 || !config.num_attention_heads.is_multiple_of(kv) || !config.head_dim.is_multiple_of(2) {
            return Err(Error::argument(format!(
                "{} query heads over {kv} key and value heads of {}",
                config.num_attention_heads, config.head_dim
            )));
        }
        let local = (0..config.num_hidden_layers).any(|l| config.layer_kind(l).rotary == Rotary::Local);
        if local && config.local_rope_theta.is_none() {
            return Err(Error::argument("layers with a RoPE of their own, and no base for it"));
        }
        Ok(Self { config, plan, layout: ModelLayout::new(config, plan), tensors })
    }

    /// Reads the vector of a role, if the model has it.
    fn vector(&self, role: Role, layer: Option<usize>) -> Result<Option<Arc<[f32]>>> {
        self.layout.tensor(role, layer).map(|slot| self.tensors.vector(&slot)).transpose()
    }

    /// Reads a matrix that every model has.
    fn matrix(&mut self, role: Role, layer: Option<usize>) -> Result<Weight> {
        let slot = self.layout.tensor(role, layer).expect("the table has this matrix for every model");
        self.tensors.matrix(&slot)
    }

    /// Reads a norm's weights as they are multiplied by, the family's offset added; `None` where there is no
    /// norm.
    fn norm(&self, role: Role, layer: Option<usize>) -> Result<Option<Arc<[f32]>>> {
        let offset = self.config.family().norm_offset;
        let shifted = |weights: Arc<[f32]>| -> Arc<[f32]> {
            if offset == 0.0 { weights } else { weights.iter().map(|w| w + offset).collect() }
        };
        Ok(self.vector(role, layer)?.map(shifted))
    }

    /// Reads the last norm. What logits are divided by divides it, since the head is linear.
    fn final_norm(&self) -> Result<Arc<[f32]>> {
        let weights = self.norm(Role::FinalNorm, None)?.expect("the table has the last norm for every model");
        let divisor = self.config.scales.logits as f32;
        Ok(if divisor == 1.0 { weights } else { weights.iter().map(|w| w / divisor).collect() })
    }

    fn attention_map(&mut self, layer: usize, map: names::Attention) -> Result<Linear> {
        let base = Some(self.matrix(Role::Attention(map, Part::Weight), Some(layer))?);
        let bias = self.vector(Role::Attention(map, Part::Bias), Some(layer))?;
        Linear::new(map.shape(self.config), LinearParts { base, bias, ..Default::default() })
    }

    fn attention(&mut self, layer: usize) -> Result<Attention> {
        Ok(Attention {
            norm: self.norm(Role::AttentionNorm, Some(layer))?,
            after: self.norm(Role::AttentionOutputNorm, Some(layer))?,
            kind: self.config.layer_kind(layer),
            query: self.attention_map(layer, names::Attention::Query)?,
            key: self.attention_map(layer, names::Attention::Key)?,
            value: self.attention_map(layer, names::Attention::Value)?,
            output: self.attention_map(layer, names::Attention::Output)?,
            q_norm: self.norm(Role::QueryNorm, Some(layer))?,
            k_norm: self.norm(Role::KeyNorm, Some(layer))?,
        })
    }

    /// Reads a layer's projection, and that of its own neurons where they are beside another layer's MLP.
    fn projection(&mut self, layer: usize, projection: Projection) -> Result<(Linear, Option<Linear>)> {
        let s = self.layout.projection(layer, projection);
        let neurons = match &s.neurons {
            None => None,
            Some(slot) => {
                let base = Some(self.tensors.matrix(slot)?);
                let shape = (slot.shape[0], slot.shape[1]);
                Some(Linear::new(shape, LinearParts { base, ..Default::default() })?)
            }
        };
        let shape =
            s.base.as_ref().map_or((s.out_features, s.in_features), |base| (base.shape[0], base.shape[1]));
        let base = s.base.map(|slot| self.tensors.matrix(&slot)).transpose()?;
        let factors = match &s.lora {
            None => None,
            Some(lora) => Some((self.tensors.matrix(&lora.a)?, self.tensors.matrix(&lora.b)?)),
        };
        let vector = |slot: Option<TensorSlot>| slot.map(|slot| self.tensors.vector(&slot)).transpose();
        let (row_scale, col_scale, bias) = (vector(s.row_scale)?, vector(s.col_scale)?, vector(s.bias)?);
        let parts = LinearParts { base, factors, row_scale, col_scale, bias };
        Ok((Linear::new(shape, parts)?, neurons))
    }

    fn mlp(&mut self, layer: usize) -> Result<Mlp> {
        let (gate, own_gate) = self.projection(layer, Projection::Gate)?;
        let (up, own_up) = self.projection(layer, Projection::Up)?;
        let (down, own_down) = self.projection(layer, Projection::Down)?;
        let activation = self.config.family().activation;
        let mlp = Mlp::new(gate, up, down, activation);
        Ok(match (own_gate, own_up, own_down) {
            (Some(gate), Some(up), Some(down)) => mlp.beside(Mlp::new(gate, up, down, activation)),
            _ => mlp,
        })
    }

    fn layer(&mut self, layer: usize) -> Result<Layer> {
        let mlp = self.mlp(layer)?;
        Ok(Layer {
            attention: Arc::new(self.attention(layer)?),
            mlp_norm: self.norm(Role::MlpNorm, Some(layer))?,
            after_mlp: self.norm(Role::MlpOutputNorm, Some(layer))?,
            mlp: Arc::new(mlp),
        })
    }

    /// Reads everything. `kv` is how sessions keep keys and values unless the options say otherwise.
    fn build(mut self, options: &Options, kv: DType) -> Result<Model> {
        let layers = (0..self.config.num_hidden_layers).map(|i| self.layer(i)).collect::<Result<_>>()?;
        let head = self.layout.head().expect("a model without a head of its own has an embedding");
        Ok(Model::build(Inner {
            embedding: self.matrix(Role::Embedding, None)?,
            head: self.tensors.matrix(&head)?,
            final_norm: self.final_norm()?,
            config: self.config.clone(),
            plan: self.plan.cloned(),
            layers,
            needs: Needs::default(),
            team: team(options)?,
            kv: kv_dtype(options, kv)?,
        }))
    }
}

fn team(options: &Options) -> Result<Arc<Team>> {
    match &options.team {
        Some(team) => Ok(team.clone()),
        None => Ok(Arc::new(Team::new(options.threads)?)),
    }
}

fn kv_dtype(options: &Options, default: DType) -> Result<DType> {
    match options.kv_cache {
        None => Ok(default),
        Some(dtype @ (DType::F32 | DType::F16)) => Ok(dtype),
        Some(other) => Err(Error::argument(format!("a KV cache of {other}: F32 or F16"))),
    }
}

impl Model {
    /// Builds a model from a checkpoint: dense, compact, or an overlay.
    ///
    /// Weights stay where they are mapped, in F32, F16 or BF16, and are computed with in f32.
    ///
    /// # Errors
    /// [`Error::Model`] and [`Error::Shape`] for tensors missing or misshapen; [`Error::Quant`] if threads
    /// cannot be started.
    pub fn from_source(source: &ModelSource, options: &Options) -> Result<Self> {
        Self::from_checkpoint(source, options, TensorCache::default(), DType::F32)
    }

    /// Builds a model as [`Model::from_source`] does, but with block-quantised matrices in the kernels'
    /// layouts.
    ///
    /// Such matrices (a GGUF file's) are copied into memory: Q4_0 and Q8_0 with their own numbers, every
    /// other kind rounded to 8 bits with a scale for every 32 columns. Activations are then rounded to 8 bits
    /// too, as with a packed file. `from_source` computes with such matrices' exact values, in f32, at four
    /// bytes each.
    ///
    /// # Errors
    /// Those of [`Model::from_source`]; [`Error::Argument`] for recovery parameters in floats over a
    /// block-quantised model.
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
        let kv = if blocks.is_empty() { DType::F32 } else { DType::F16 };
        Self::from_checkpoint(source, &options, TensorCache::packing(team), kv)
    }

    fn from_checkpoint(
        source: &ModelSource,
        options: &Options,
        cache: TensorCache,
        kv: DType,
    ) -> Result<Self> {
        let tensors = CheckpointTensors { source, cache };
        Builder::new(source.config(), source.plan(), tensors)?.build(options, kv)
    }

    /// Builds a model from an opened `model.sharp`.
    ///
    /// Matrices are used as they lie in the mapped file; a matrix that several layers share is one and the
    /// same.
    ///
    /// # Errors
    /// Those of [`Model::from_source`]; [`Error::Argument`] for a file with a head beside an embedding that
    /// it is tied to.
    pub fn from_packed(file: &PackedFile, options: &Options) -> Result<Self> {
        if file.config().tie_word_embeddings && file.get(names::LM_HEAD).is_some() {
            return Err(Error::argument(format!(
                "{}: {} is stored, though the configuration ties the head to the embedding",
                file.path().display(),
                names::LM_HEAD
            )));
        }
        let tensors = PackedTensors { file, cache: TensorCache::default() };
        Builder::new(file.config(), file.plan(), tensors)?.build(options, DType::F16)
    }
}
