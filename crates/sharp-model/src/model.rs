//! A model as it is to be run: every tensor resolved to where it is stored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sharp_quant::DType;

use crate::checkpoint::compact;
use crate::checkpoint::fused;
use crate::checkpoint::hf::HfCheckpoint;
use crate::checkpoint::source::{TensorInfo, TensorRef, TensorSource};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, HfView};
use crate::layout::{ModelLayout, TensorSlot};
use crate::names;
use crate::plan::{LayerChange, Plan, Treatment};
use crate::projection::{PerProjection, Projection};
use crate::projection_source::ProjectionSource;
use crate::pruned;
use crate::recovery::Recovery;
use crate::stored::Stored;
use crate::strangers;
use crate::tokenizer::Tokenizer;

/// A model to run, export or measure: a dense checkpoint, a compact one, or a dense one with a plan and
/// recovery parameters laid over it. Cheap to clone; opening touches no weights.
#[derive(Clone)]
pub struct ModelSource {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    config: ModelConfig,
    plan: Option<Plan>,
    base: Arc<dyn TensorSource>,
    /// Recovery parameters and other trained tensors laid over the base, by name.
    over: BTreeMap<String, TensorRef>,
    /// Whether the base stores what the plan gives up (an overlay), or not (a compact checkpoint).
    overlaid: bool,
    /// The base again, where it is a GGUF file: tokenizer and origin are in it, not beside it.
    gguf: Option<Arc<HfView>>,
}

impl std::fmt::Debug for ModelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelSource")
            .field("path", &self.inner.path)
            .field("architecture", &self.inner.config.architecture())
            .field("changes", &self.inner.plan.as_ref().map_or(0, |p| p.changes.len()))
            .finish_non_exhaustive()
    }
}

impl ModelSource {
    /// Opens a checkpoint, a folder (dense or compact) or a GGUF file, and checks that every tensor of the
    /// model is there in its shape, and no other: none is left out of the computation without a word.
    ///
    /// # Errors
    /// As [`Stored::at`], and for a packed model [`Error::Unsupported`]; for a folder as
    /// [`ModelConfig::load`] and [`HfCheckpoint::open`], for a GGUF file as [`Gguf::open`] and
    /// [`HfView::new`]; [`Error::NoTensor`], [`Error::Shape`] and [`Error::Unsupported`] for a checkpoint
    /// that is not what its configuration says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let none = BTreeMap::new();
        match Stored::at(path)? {
            Stored::Folder(path) => {
                let (config, plan) = compact::load_with_plan(&path)?;
                let stored = HfCheckpoint::open(&path)?.under_plain_names(config.tie_word_embeddings);
                let base = fused::split(&config, stored)?;
                Self::build(Inner { path, config, plan, base, over: none, overlaid: false, gguf: None })
            }
            Stored::Gguf(path) => {
                let view = Arc::new(HfView::new(Arc::new(Gguf::open(&path)?))?);
                let (config, gguf) = (view.config().clone(), Some(view.clone()));
                Self::build(Inner { path, config, plan: None, base: view, over: none, overlaid: false, gguf })
            }
            Stored::Packed(path) => Err(Error::unsupported(
                path,
                "a packed model where a checkpoint is needed; give what it was made from: a Hugging Face directory or a GGUF file",
            )),
        }
    }

    /// A model whose tensors come from anywhere, under Hugging Face names. With a plan the source is taken to
    /// be compact: it must not hold the weights that the plan gives up.
    ///
    /// # Errors
    /// As [`ModelSource::open`].
    pub fn new(config: ModelConfig, plan: Option<Plan>, base: Arc<dyn TensorSource>) -> Result<Self> {
        let path = base.path().to_path_buf();
        Self::build(Inner { path, config, plan, base, over: BTreeMap::new(), overlaid: false, gguf: None })
    }

    /// Lays a plan and recovery parameters over a dense model; nothing of the base is copied.
    ///
    /// Without recovery parameters the plan kept is [`Plan::untrained`]; pruned layers keep their largest
    /// neurons as they are ([`crate::largest_neurons`]).
    ///
    /// # Errors
    /// [`Error::Plan`] if the base is itself compact, the plan does not fit the model or the recovery
    /// parameters do not fit the plan.
    pub fn overlay(base: &Self, plan: Plan, recovery: Option<&Recovery>) -> Result<Self> {
        if base.plan().is_some() {
            return Err(Error::plan(None, format!("{} is already compressed", base.path().display())));
        }
        plan.validate(base.config())?;
        let mut over = base.inner.over.clone();
        let plan = match recovery {
            None => {
                for change in &plan.changes {
                    if let Treatment::Prune { neurons } = change.treatment {
                        let whole = |p| base.projection(change.layer, p)?.effective_f32();
                        let weights = PerProjection::try_from_fn(whole)?;
                        let kept = pruned::keep_largest(change.layer, base.config(), &weights, neurons)?;
                        over.extend(kept.into_iter().map(|(_, t)| (t.name().to_owned(), t)));
                    }
                }
                plan.untrained()
            }
            Some(recovery) => {
                recovery.check(base.config(), &plan)?;
                over.extend(recovery.tensors()?.into_iter().map(|t| (t.name().to_owned(), t)));
                plan
            }
        };
        let inner = &base.inner;
        Self::build(Inner {
            path: inner.path.clone(),
            config: inner.config.clone(),
            plan: Some(plan),
            base: inner.base.clone(),
            over,
            overlaid: true,
            gguf: inner.gguf.clone(),
        })
    }

    fn build(inner: Inner) -> Result<Self> {
        if let Some(plan) = &inner.plan {
            plan.validate(&inner.config)?;
        }
        let source = Self { inner: Arc::new(inner) };
        source.check()?;
        Ok(source)
    }

    /// Every tensor there, in its shape; none stored that the plan gives up; and no other.
    fn check(&self) -> Result<()> {
        let path = self.path();
        let known = self.stored_tensors()?;
        for expected in &known {
            let found = self.info(&expected.name).ok_or_else(|| Error::no_tensor(path, &expected.name))?;
            if found.shape != expected.shape {
                return Err(Error::shape(path, &expected.name, &expected.shape, &found.shape));
            }
        }
        if self.inner.overlaid {
            return Ok(());
        }
        for change in self.changes().iter().filter(|c| !c.treatment.stores_weights()) {
            for projection in Projection::ALL {
                let name = names::mlp_weight(change.layer, projection);
                if self.info(&name).is_some() {
                    let what =
                        format!("is stored, though `sharp_config` gives layer {}'s MLP up", change.layer);
                    return Err(Error::tensor(path, name, what));
                }
            }
        }
        strangers::refuse(self.config(), &known, self.inner.base.as_ref())
    }

    /// The tensors this model is made of, each once, with the shapes they must have, in the order of the
    /// computation. Types are those stored (F32 where a tensor is missing).
    ///
    /// # Errors
    /// None at present; reserved for sources that must be read to know.
    pub fn stored_tensors(&self) -> Result<Vec<TensorInfo>> {
        let typed = |TensorSlot { name, shape, .. }: TensorSlot| {
            let dtype = self.info(&name).map_or(DType::F32, |i| i.dtype);
            TensorInfo { name, dtype, shape }
        };
        Ok(self.layout().stored().into_iter().map(typed).collect())
    }

    /// Which tensors the model has, under which names and of which shapes.
    pub fn layout(&self) -> ModelLayout<'_> {
        ModelLayout::new(&self.inner.config, self.inner.plan.as_ref())
    }

    /// The tokenizer that came with the checkpoint (of an overlay: with the base), `None` if there is none.
    ///
    /// # Errors
    /// Those of [`Tokenizer::load`].
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        match &self.inner.gguf {
            Some(view) => view.tokenizer(),
            None if self.path().join("tokenizer.json").is_file() => Tokenizer::load(self.path()).map(Some),
            None => Ok(None),
        }
    }

    /// The GGUF file that the tensors lie in.
    pub(crate) fn gguf(&self) -> Option<&HfView> {
        self.inner.gguf.as_deref()
    }

    /// The checkpoint folder or GGUF file (of an overlay: the base's).
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// The plan; `None` for a model whose layers all keep their MLPs.
    pub fn plan(&self) -> Option<&Plan> {
        self.inner.plan.as_ref()
    }

    /// What a layer has in place of its MLP; `None` for a layer that keeps its MLP.
    pub fn treatment(&self, layer: usize) -> Option<Treatment> {
        self.plan()?.treatment(layer)
    }

    /// The layers that change; none without a plan.
    pub fn changes(&self) -> &[LayerChange] {
        self.plan().map_or(&[], |p| &p.changes)
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        match self.inner.over.get(name) {
            Some(tensor) => Some(tensor.info.clone()),
            None => self.inner.base.info(name),
        }
    }

    fn find(&self, name: &str) -> Result<TensorRef> {
        match self.inner.over.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => self.inner.base.tensor(name),
        }
    }

    fn find_shaped(&self, name: &str, shape: &[usize]) -> Result<TensorRef> {
        let info = self.info(name).ok_or_else(|| Error::no_tensor(self.path(), name))?;
        if info.shape != shape {
            return Err(Error::shape(self.path(), name, shape, &info.shape));
        }
        self.find(name)
    }

    /// A tensor by name: embeddings, attention, norms, and MLP weights of layers that keep theirs.
    ///
    /// # Errors
    /// [`Error::NoTensor`]; [`Error::Plan`] for an MLP weight that the plan gives up, which
    /// [`ModelSource::projection`] resolves.
    pub fn tensor(&self, name: &str) -> Result<TensorRef> {
        self.tensor_info(name)?;
        self.find(name)
    }

    /// What [`ModelSource::tensor`] would return, without its bytes.
    ///
    /// # Errors
    /// Those of [`ModelSource::tensor`].
    pub fn tensor_info(&self, name: &str) -> Result<TensorInfo> {
        if let Some((layer, _)) = names::parse_mlp_weight(name)
            && self.treatment(layer).is_some_and(|t| !t.stores_weights())
        {
            return Err(Error::plan(Some(layer), format!("`{name}` is given up; ask for the projection")));
        }
        self.info(name).ok_or_else(|| Error::no_tensor(self.path(), name))
    }

    /// A tensor by the name under which it is stored: that of a [`TensorInfo`] from here.
    ///
    /// # Errors
    /// [`Error::NoTensor`].
    pub fn stored(&self, name: &str) -> Result<TensorRef> {
        self.find(name)
    }

    /// What a layer's projection is made of. Layers that share a weight get the same bytes (equal pointers).
    ///
    /// # Errors
    /// [`Error::NoTensor`], [`Error::Shape`]; [`Error::Plan`] for a layer the model has not.
    pub fn projection(&self, layer: usize, projection: Projection) -> Result<ProjectionSource> {
        let layers = self.config().num_hidden_layers;
        if layer >= layers {
            return Err(Error::plan(Some(layer), format!("layer {layer} of a model with {layers}")));
        }
        let find = |slot: TensorSlot| self.find_shaped(&slot.stored_as, &slot.shape);
        self.layout().projection(layer, projection).try_map(find)
    }

    /// MLP weights stored: those kept and the recovery parameters.
    pub fn mlp_parameters(&self) -> u64 {
        let config = self.config();
        match self.plan() {
            Some(plan) => plan.stored_mlp_parameters(config),
            None => config.num_hidden_layers as u64 * config.mlp_parameters_per_layer(),
        }
    }

    /// Bytes of all stored tensors, each once, in the types they are stored in.
    ///
    /// # Errors
    /// [`Error::Quant`] if a size overflows.
    pub fn stored_bytes(&self) -> Result<u64> {
        let mut total = 0;
        for info in self.stored_tensors()? {
            total += info.dtype.nbytes(info.elements()?)? as u64;
        }
        Ok(total)
    }
}
