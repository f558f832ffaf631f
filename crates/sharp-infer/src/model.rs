//! A model ready to run.

use std::collections::{HashMap, HashSet, hash_map::Entry};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sharp_model::{
    Activation, LayerKind, ModelConfig, ModelSource, Plan, Stored, packed::PackedFile, tokenizer::Tokenizer,
};
use sharp_quant::{Activations, DType, Team};

use crate::error::{Error, Result};
use crate::linear::{Linear, Weight};

/// How a model is to be run.
#[derive(Clone, Default)]
pub struct Options {
    /// Threads, the calling one included; 0: as many as there are physical cores.
    pub threads: usize,
    /// A team of threads to share with other models; `threads` is then not looked at.
    pub team: Option<Arc<Team>>,
    /// How sessions keep keys and values, F32 or F16; by default F16 where weights are packed and F32 where
    /// they are not.
    pub kv_cache: Option<DType>,
    /// How [`Model::open`] brings a packed file into memory.
    pub load: Load,
}

/// How a packed file comes into memory.
///
/// Read at the memory's full speed, weights on the 4 KiB pages of a mapped file take a quarter longer than on
/// large pages, which only memory of one's own can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Load {
    /// Read where the system has large pages and the file fits half of the memory available; else mapped.
    #[default]
    Auto,
    /// Mapped: opening costs nothing, and processes share one copy.
    Map,
    /// Read into memory of this process, on large pages where the system has them.
    Read,
}

impl Load {
    fn reads(self, path: &Path) -> bool {
        match self {
            Self::Map => false,
            Self::Read => true,
            Self::Auto => {
                let file = std::fs::metadata(path).map_or(u64::MAX, |meta| meta.len());
                has_large_pages() && sharp_host::available_memory().is_some_and(|memory| file <= memory / 2)
            }
        }
    }
}

/// Whether the system gives large pages to who asks for them; known of Linux alone.
fn has_large_pages() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|setting| setting.contains("[always]") || setting.contains("[madvise]"))
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("threads", &self.threads)
            .field("team", &self.team.as_ref().map(|t| t.threads()))
            .field("kv_cache", &self.kv_cache)
            .field("load", &self.load)
            .finish()
    }
}

/// Attention of one layer.
#[derive(Debug)]
pub struct Attention {
    /// On its input (d).
    pub(crate) norm: Option<Arc<[f32]>>,
    /// On its output (d).
    pub(crate) after: Option<Arc<[f32]>>,
    /// How queries and keys are turned, and how far queries see.
    pub(crate) kind: LayerKind,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    /// (head_dim), or (heads * head_dim) where all heads are normed together.
    pub(crate) q_norm: Option<Arc<[f32]>>,
    /// (head_dim), or (kv_heads * head_dim).
    pub(crate) k_norm: Option<Arc<[f32]>>,
}

impl Attention {
    /// Query, key, value and output projections.
    pub fn projections(&self) -> [&Linear; 4] {
        [&self.query, &self.key, &self.value, &self.output]
    }
}

/// One MLP: `down(activation(gate x) * up x)`, and what neurons of the layer's own add to it.
#[derive(Debug)]
pub struct Mlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
    /// Whether its output is zero whatever the input (a dropped layer).
    pub(crate) zero: bool,
    /// Whether the packed kernels run it in two regions.
    pub(crate) fused: bool,
    /// Neurons of the layer's own, where the MLP is another layer's: their output is added.
    pub(crate) own: Option<Box<Mlp>>,
}

impl Mlp {
    pub(crate) fn new(gate: Linear, up: Linear, down: Linear, activation: Activation) -> Self {
        let none = |l: &Linear| l.is_zero() && l.bias.is_none();
        let zero = none(&down) || (down.bias.is_none() && (none(&gate) || none(&up)));
        let fused = activation == Activation::Silu
            && gate.is_packed()
            && up.is_packed()
            && down.is_packed()
            && gate.bias.is_none()
            && up.bias.is_none();
        Self { gate, up, down, activation, zero, fused, own: None }
    }

    /// Puts neurons of the layer's own beside it.
    pub(crate) fn beside(self, own: Mlp) -> Self {
        Self { own: Some(Box::new(own)), ..self }
    }

    /// The projections as the packed kernels take them, if these run it in two regions.
    pub(crate) fn fused_kernels(&self) -> Option<[sharp_quant::Linear<'_>; 3]> {
        self.fused.then(|| self.projections().map(|linear| linear.packed().expect("a fused MLP is packed")))
    }

    /// Gate, up and down projections, without those of neurons beside it.
    pub fn projections(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// All projections, those of neurons beside it included.
    pub(crate) fn all_projections(&self) -> impl Iterator<Item = &Linear> {
        let own = self.own.iter().flat_map(|own| own.projections());
        self.projections().into_iter().chain(own)
    }

    /// Whether its output is zero whatever the input (a dropped layer).
    pub fn is_zero(&self) -> bool {
        self.zero
    }
}

/// One transformer layer. Parts are shared by the models laid over one another.
#[derive(Debug, Clone)]
pub struct Layer {
    pub(crate) attention: Arc<Attention>,
    /// Before the MLP (d): the layer's own even where the MLP is another layer's.
    pub(crate) mlp_norm: Option<Arc<[f32]>>,
    /// On the MLP's output (d).
    pub(crate) after_mlp: Option<Arc<[f32]>>,
    pub(crate) mlp: Arc<Mlp>,
}

impl Layer {
    /// Its attention.
    pub fn attention(&self) -> &Arc<Attention> {
        &self.attention
    }

    /// Its MLP.
    pub fn mlp(&self) -> &Arc<Mlp> {
        &self.mlp
    }

    /// Weight of the norm before the MLP (d), in the families that have one there.
    pub fn mlp_norm(&self) -> Option<&[f32]> {
        self.mlp_norm.as_deref()
    }
}

/// What a model's matrices ask of a workspace.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needs {
    pub(crate) packed: bool,
    pub(crate) dense: bool,
    /// Largest rank of recovery factors.
    pub(crate) rank: usize,
    pub(crate) col_scale: bool,
    /// Whether packed matrices multiply floats.
    pub(crate) floats: bool,
    pub(crate) unfused_mlp: bool,
    /// Whether layers have neurons of their own beside another layer's MLP.
    pub(crate) own_neurons: bool,
}

impl Needs {
    /// Counts a matrix in.
    fn add(&mut self, weight: &Weight) {
        match weight {
            Weight::Dense(_) => self.dense = true,
            Weight::Packed(weight) => {
                self.packed = true;
                self.floats |= weight.is_half();
            }
        }
    }
}

/// Bytes of weights, each stored matrix counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WeightBytes {
    /// All matrices, norms and scales together.
    pub total: u64,
    /// Of MLPs and their recovery parameters.
    pub mlp: u64,
    /// Of embedding and output head.
    pub embedding: u64,
    /// What decoding one token reads: everything but the embedding (one row of it), shared matrices counted
    /// once.
    pub per_token: u64,
    /// What decoding one token reads without caches: shared matrices counted every time they are used.
    pub per_token_unshared: u64,
}

pub(crate) struct Inner {
    pub(crate) config: ModelConfig,
    pub(crate) plan: Option<Plan>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) embedding: Weight,
    pub(crate) head: Weight,
    /// (d): divided by what logits are divided by.
    pub(crate) final_norm: Arc<[f32]>,
    pub(crate) needs: Needs,
    pub(crate) team: Arc<Team>,
    pub(crate) kv: DType,
}

/// A model ready to run. Cheap to clone; weights are shared with every clone and every model laid over the
/// same base.
#[derive(Clone)]
pub struct Model {
    pub(crate) inner: Arc<Inner>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("architecture", &self.config().architecture())
            .field("layers", &self.layers().len())
            .field("head", &self.inner.head.format_name())
            .field("team", &self.inner.team)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Opens a `model.sharp` file, a checkpoint folder (dense or compact) or a GGUF file.
    ///
    /// A packed file and a checkpoint's floats are used as stored; a GGUF file's blocks as
    /// [`Model::from_blocks`] says.
    ///
    /// # Errors
    /// Those of [`Stored::at`], [`Model::from_packed`], [`Model::from_source`] and [`Model::from_blocks`].
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        match Stored::at(path)? {
            Stored::Packed(path) => {
                let read = options.load.reads(&path);
                let file = if read { PackedFile::read(path)? } else { PackedFile::open(path)? };
                Self::from_packed(&file, options)
            }
            Stored::Folder(path) => Self::from_source(&ModelSource::open(path)?, options),
            Stored::Gguf(path) => Self::from_blocks(&ModelSource::open(path)?, options),
        }
    }

    /// Opens the tokenizer beside or inside the model at `path`.
    ///
    /// # Errors
    /// [`Error::Model`] if there is none or it cannot be read.
    pub fn open_tokenizer(path: impl AsRef<Path>) -> Result<Tokenizer> {
        Ok(Tokenizer::load(path)?)
    }

    pub(crate) fn build(mut inner: Inner) -> Self {
        let mut needs = Needs::default();
        for layer in &inner.layers {
            for linear in layer.attention.projections().into_iter().chain(layer.mlp.all_projections()) {
                linear.weights().for_each(|w| needs.add(&w));
                needs.rank = needs.rank.max(linear.rank());
                needs.col_scale |= linear.col_scale.is_some();
                needs.floats |= linear.col_scale.is_some();
            }
            needs.unfused_mlp |= !layer.mlp.fused || layer.mlp.own.as_ref().is_some_and(|own| !own.fused);
            needs.own_neurons |= layer.mlp.own.is_some();
        }
        needs.add(&inner.head);
        inner.needs = needs;
        Self { inner: Arc::new(inner) }
    }

    /// Returns the model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// Returns the plan that the layers follow; `None` if all keep their MLPs.
    pub fn plan(&self) -> Option<&Plan> {
        self.inner.plan.as_ref()
    }

    /// Returns the layers.
    pub fn layers(&self) -> &[Layer] {
        &self.inner.layers
    }

    /// Returns the embedding (vocab, d).
    pub fn embedding(&self) -> &Weight {
        &self.inner.embedding
    }

    /// Returns the output head (vocab, d): the embedding itself where they are tied.
    pub fn head(&self) -> &Weight {
        &self.inner.head
    }

    /// Returns the threads that the model runs on.
    pub fn team(&self) -> &Arc<Team> {
        &self.inner.team
    }

    /// Returns how sessions of this model keep keys and values.
    pub fn kv_dtype(&self) -> DType {
        self.inner.kv
    }

    pub(crate) fn layer(&self, layer: usize) -> Result<&Layer> {
        let layers = self.inner.layers.len();
        self.inner.layers.get(layer).ok_or(Error::Layer { layer, layers })
    }

    /// The same model with every layer `i` running the MLP of layer `map(i)` as it is (its own norm before
    /// it): direct sharing, for measuring. Nothing is copied.
    ///
    /// # Errors
    /// [`Error::Layer`] if `map` gives a layer that does not exist.
    pub fn with_mlp_map(&self, map: impl Fn(usize) -> usize) -> Result<Self> {
        let mut layers = self.inner.layers.clone();
        for (i, layer) in layers.iter_mut().enumerate() {
            layer.mlp = self.layer(map(i))?.mlp.clone();
        }
        Ok(self.with_layers(layers))
    }

    /// Returns the model without the MLPs of the `dropped` layers, whose output is then zero.
    ///
    /// # Errors
    /// [`Error::Layer`] if one does not exist.
    pub fn without_mlps(&self, dropped: &[usize]) -> Result<Self> {
        let mut layers = self.inner.layers.clone();
        let count = layers.len();
        let (d, f) = (self.config().hidden_size, self.config().intermediate_size);
        let activation = self.config().family().activation;
        let (gate, up, down) = (Linear::zero((f, d)), Linear::zero((f, d)), Linear::zero((d, f)));
        let mlp = Arc::new(Mlp::new(gate, up, down, activation));
        for &i in dropped {
            layers.get_mut(i).ok_or(Error::Layer { layer: i, layers: count })?.mlp = mlp.clone();
        }
        Ok(self.with_layers(layers))
    }

    fn with_layers(&self, layers: Vec<Layer>) -> Self {
        let i = &self.inner;
        Self::build(Inner {
            config: i.config.clone(),
            plan: None,
            layers,
            embedding: i.embedding.clone(),
            head: i.head.clone(),
            final_norm: i.final_norm.clone(),
            needs: Needs::default(),
            team: i.team.clone(),
            kv: i.kv,
        })
    }

    /// Counts the bytes of the weights and of what one token reads.
    pub fn weight_bytes(&self) -> WeightBytes {
        let mut seen = HashSet::new();
        let mut all = WeightBytes::default();
        // Counted when first seen; by address, which aliases share.
        let mut first = |w: &Weight| {
            let bytes = w.bytes();
            if seen.insert(bytes.as_ptr() as usize) { bytes.len() as u64 } else { 0 }
        };
        let vector = |v: &Option<Arc<[f32]>>| v.as_ref().map_or(0, |v| 4 * v.len() as u64);
        let head = &self.inner.head;
        let head_bytes = first(head);
        all.embedding = head_bytes + first(&self.inner.embedding);
        all.per_token = head_bytes;
        all.per_token_unshared = head_bytes;
        let mut rest = 4 * self.inner.final_norm.len() as u64;
        for layer in &self.inner.layers {
            rest += vector(&layer.attention.norm) + vector(&layer.attention.after);
            rest += vector(&layer.mlp_norm) + vector(&layer.after_mlp);
            rest += vector(&layer.attention.q_norm) + vector(&layer.attention.k_norm);
            for (linear, mlp) in (layer.attention.projections().into_iter().map(|l| (l, false)))
                .chain(layer.mlp.all_projections().map(|l| (l, true)))
            {
                let small = vector(&linear.row_scale) + vector(&linear.col_scale) + vector(&linear.bias);
                let mut new = small;
                let mut used = small;
                for w in linear.weights() {
                    new += first(&w);
                    used += w.bytes().len() as u64;
                }
                if mlp {
                    all.mlp += new;
                }
                all.per_token += new;
                all.per_token_unshared += used;
            }
        }
        all.per_token += rest;
        all.per_token_unshared += rest;
        all.total = all.per_token + all.embedding - head_bytes;
        all
    }

    /// Multiplies every matrix that decoding a token uses with some activations, in order, `tokens` times
    /// over, and does nothing else: the limit of decoding over these bytes by these kernels. None where a
    /// matrix is not packed.
    ///
    /// # Errors
    /// Those of [`sharp_quant::bare_loop`].
    pub fn bare_loop(&self, tokens: usize) -> Result<Option<Duration>> {
        let layers = self.inner.layers.iter().flat_map(|layer| {
            layer
                .attention
                .projections()
                .into_iter()
                .chain(layer.mlp.all_projections())
                .flat_map(Linear::weights)
        });
        let mut weights = Vec::new();
        for weight in layers.chain([self.inner.head.clone()]) {
            let Weight::Packed(weight) = weight else { return Ok(None) };
            weights.push(weight);
        }
        let mut inputs = HashMap::new();
        for cols in weights.iter().map(|w| w.cols()) {
            if let Entry::Vacant(entry) = inputs.entry(cols) {
                let values: Vec<f32> = (0..cols).map(|i| (i as f32).sin()).collect();
                entry.insert(Activations::new(1, cols)?).quantize(&values, 1, cols)?;
            }
        }
        let products: Vec<_> = weights.iter().map(|w| (w.view(), &inputs[&w.cols()])).collect();
        let begun = Instant::now();
        for _ in 0..tokens {
            std::hint::black_box(sharp_quant::bare_loop(&self.inner.team, &products)?);
        }
        Ok(Some(begun.elapsed()))
    }
}
