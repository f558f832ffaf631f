//! Recovery parameters: the trained tensors of a plan's layers, and the files that hold them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sharp_quant::DType;

use crate::checkpoint::hf::HfCheckpoint;
use crate::checkpoint::source::{TensorInfo, TensorRef, TensorSource};
use crate::checkpoint::writer::SafetensorsWriter;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::names;
use crate::plan::{LayerChange, Plan};
use crate::projection::{PerProjection, Projection};
use crate::tensors::{self, Role};

/// File with every layer's recovery parameters.
pub const RECOVERY_FILE: &str = "recovery.safetensors";

/// Recovery of one projection: effective weight `diag(row_scale) W_ref diag(col_scale) + B A`, and the
/// layer's own neurons beside it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProjectionRecovery {
    /// `r`; 0 where there are only scales.
    pub rank: usize,
    /// `A (r, in)`, row-major.
    pub a: Vec<f32>,
    /// `B (out, r)`, row-major.
    pub b: Vec<f32>,
    /// `(out)`.
    pub row_scale: Option<Vec<f32>>,
    /// `(in)`.
    pub col_scale: Option<Vec<f32>>,
    /// Neurons of the layer's own: `(k, d)` for gate and up, `(d, k)` for down.
    pub neurons: Option<StoredTensor>,
}

/// Recovery of one layer's MLP.
pub type LayerRecovery = PerProjection<Option<ProjectionRecovery>>;

/// A trained MLP weight: a whole one, or what a layer keeps of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    /// Row-major shape `(out, in)`, as [`crate::Treatment::own_shape`] says for changed layers.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Vec<f32>,
}

/// Everything that training has made for a plan.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recovery {
    /// Low-rank matrices, scales and neurons beside a reference, by layer.
    pub layers: BTreeMap<usize, LayerRecovery>,
    /// MLP weights that take the place of the original's, by layer: whole ones, and what pruned MLPs keep.
    pub mlps: BTreeMap<usize, PerProjection<Option<StoredTensor>>>,
    /// Norms that take the place of the original's, `(width)`, by tensor name.
    pub norms: BTreeMap<String, Vec<f32>>,
}

impl Recovery {
    /// File name of one layer's recovery parameters, `layer-11.safetensors`.
    pub fn layer_file(layer: usize) -> String {
        format!("layer-{layer:02}.safetensors")
    }

    /// Loads a safetensors file, or a folder with `recovery.safetensors` or with `layer-NN.safetensors`
    /// files.
    ///
    /// # Errors
    /// [`Error::Missing`] for a folder without either, [`Error::Malformed`] for one with both or for a
    /// damaged file, [`Error::Tensor`] for names that mean nothing here, factors that do not fit each other
    /// or a layer in two files, [`Error::NotFinite`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let files = if path.is_dir() { files_in(path)? } else { vec![path.to_path_buf()] };
        let mut all = Self::default();
        for file in files {
            all.read_file(&file)?;
        }
        for (layer, recovery) in &all.layers {
            for projection in Projection::ALL {
                if let Some(p) = &recovery[projection] {
                    check_factors(path, *layer, projection, p)?;
                }
            }
        }
        Ok(all)
    }

    fn read_file(&mut self, file: &Path) -> Result<()> {
        let source = HfCheckpoint::open(file)?;
        for info in source.tensors() {
            let tensor = source.tensor(&info.name)?;
            tensor.require_finite(file)?;
            self.insert(file, &tensor)?;
        }
        Ok(())
    }

    /// Adds a trained tensor of the model, a norm or an MLP weight, under its name.
    ///
    /// # Errors
    /// [`Error::Tensor`] for the name of any other tensor, for a norm that is no vector and for one given
    /// twice.
    pub fn insert_trained(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Result<()> {
        let here = Path::new("recovery parameters");
        let new_one = if let Some((layer, projection)) = names::parse_mlp_weight(name) {
            let place = &mut self.mlps.entry(layer).or_default()[projection];
            place.replace(StoredTensor { shape: shape.to_vec(), values }).is_none()
        } else if !name.starts_with("model.") || !name.ends_with("norm.weight") {
            let what = "neither a recovery parameter nor a norm or MLP weight of the model";
            return Err(Error::tensor(here, name, what));
        } else if shape.len() != 1 {
            return Err(Error::tensor(here, name, format!("shape {shape:?}, but a norm is a vector")));
        } else {
            self.norms.insert(name.to_owned(), values).is_none()
        };
        if new_one { Ok(()) } else { Err(Error::tensor(here, name, "given twice")) }
    }

    /// Returns the norms and MLP weights as `(shape, values)`, by tensor name.
    pub fn trained(&self) -> BTreeMap<String, (Vec<usize>, &[f32])> {
        let mut all = BTreeMap::new();
        for (&layer, weights) in &self.mlps {
            for (projection, weight) in weights.iter() {
                if let Some(StoredTensor { shape, values }) = weight {
                    all.insert(names::mlp_weight(layer, projection), (shape.clone(), &values[..]));
                }
            }
        }
        all.extend(self.norms.iter().map(|(name, values)| (name.clone(), (vec![values.len()], &values[..]))));
        all
    }

    fn insert(&mut self, file: &Path, tensor: &TensorRef) -> Result<()> {
        let name = tensor.name();
        let twice = || Error::tensor(file, name, "given twice");
        let parsed = names::parse_mlp(name);
        let Some((layer, projection, part)) = parsed.filter(|(_, _, part)| is_recovery(part)) else {
            return self.insert_trained(name, tensor.shape(), tensor.f32()?).map_err(|e| e.in_file(file));
        };
        let dims = tensor.shape();
        let slot = self.layers.entry(layer).or_default()[projection].get_or_insert_default();
        let wrong =
            || Error::tensor(file, name, format!("shape {dims:?} has the wrong number of dimensions"));
        match (part, dims) {
            ("lora_A.weight", &[rank, _]) | ("lora_B.weight", &[_, rank]) => {
                if slot.rank != 0 && slot.rank != rank {
                    let what = format!("shape {dims:?}, though the other factor has rank {}", slot.rank);
                    return Err(Error::tensor(file, name, what));
                }
                slot.rank = rank;
                let place = if part == "lora_A.weight" { &mut slot.a } else { &mut slot.b };
                if !place.is_empty() {
                    return Err(twice());
                }
                *place = tensor.f32()?;
            }
            ("row_scale" | "col_scale", &[_]) => {
                let place = if part == "row_scale" { &mut slot.row_scale } else { &mut slot.col_scale };
                if place.replace(tensor.f32()?).is_some() {
                    return Err(twice());
                }
            }
            ("neurons.weight", &[_, _]) => {
                let neurons = StoredTensor { shape: dims.to_vec(), values: tensor.f32()? };
                if slot.neurons.replace(neurons).is_some() {
                    return Err(twice());
                }
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Checks against model and plan: every changed layer that has recovery parameters has all of them, in
    /// the ranks and shapes the plan says, and no other layer has any.
    ///
    /// # Errors
    /// [`Error::Plan`] naming the layer, [`Error::Shape`] naming the tensor.
    pub fn check(&self, config: &ModelConfig, plan: &Plan) -> Result<()> {
        for &layer in self.layers.keys() {
            if plan.is_unchanged(layer) {
                let what = format!("recovery parameters for layer {layer}, which the plan leaves alone");
                return Err(Error::plan(None, what));
            }
        }
        for change in &plan.changes {
            for projection in Projection::ALL {
                self.check_projection(config, change, projection)?;
            }
        }
        self.check_trained(config, plan)
    }

    fn check_trained(&self, config: &ModelConfig, plan: &Plan) -> Result<()> {
        let here = Path::new("recovery parameters");
        let dense = tensors::tensors_of(config, DType::F32);
        for (name, (shape, _)) in self.trained() {
            let Some((rule, layer, info)) = dense.iter().find(|(_, _, info)| info.name == name) else {
                return Err(Error::tensor(here, name, "the model has no such tensor to replace"));
            };
            let treatment = layer.and_then(|l| plan.treatment(l));
            let expected = match (rule.role, treatment) {
                (Role::Mlp(..), Some(treatment)) if !treatment.stores_weights() => {
                    let what = "the plan gives this weight up; train its reference's instead";
                    return Err(Error::tensor(here, name, what));
                }
                (Role::Mlp(projection, _), Some(treatment)) => {
                    let (out, input) = treatment.own_shape(projection, config);
                    vec![out, input]
                }
                _ => info.shape.clone(),
            };
            if shape != expected {
                return Err(Error::shape(here, name, &expected, &shape));
            }
        }
        Ok(())
    }

    fn check_projection(
        &self,
        config: &ModelConfig,
        change: &LayerChange,
        projection: Projection,
    ) -> Result<()> {
        let LayerChange { layer, treatment, .. } = change;
        let layer = *layer;
        let fault = |what: String| Error::plan(Some(layer), format!("{}: {what}", projection.name()));
        let found = self.layers.get(&layer).and_then(|l| l[projection].as_ref());
        let (rank, scales) = (treatment.ranks()[projection], treatment.scales(projection));
        let (rows, cols, beside) = (scales.rows(), scales.columns(), treatment.has_neurons_beside());
        let kept = self.mlps.get(&layer).and_then(|weights| weights[projection].as_ref());
        if treatment.stores_weights() && kept.is_none() {
            return Err(fault("nothing says which of its neurons stay".into()));
        }
        let Some(found) = found else {
            return match rank > 0 || rows || cols || beside {
                true => Err(fault("no recovery parameters for it".into())),
                false => Ok(()),
            };
        };
        if found.rank != rank {
            return Err(fault(format!("recovery parameters of rank {}, the plan says {rank}", found.rank)));
        }
        let (out, input) = projection.shape(config);
        let want = |what: &str, len: Option<usize>, expected: Option<usize>| match (len, expected) {
            (a, b) if a == b => Ok(()),
            (Some(len), Some(expected)) => {
                Err(fault(format!("{what} has {len} values, expected {expected}")))
            }
            (Some(_), None) => Err(fault(format!("has {what}, which form `{}` has not", treatment.form()))),
            (None, _) => Err(fault(format!("has no {what}, which form `{}` needs", treatment.form()))),
        };
        want("lora_A", Some(found.a.len()), Some(rank * input))?;
        want("lora_B", Some(found.b.len()), Some(out * rank))?;
        want("row_scale", found.row_scale.as_ref().map(Vec::len), rows.then_some(out))?;
        want("col_scale", found.col_scale.as_ref().map(Vec::len), cols.then_some(input))?;
        let (own_out, own_input) = treatment.own_shape(projection, config);
        match &found.neurons {
            Some(_) if !beside => want("neurons", Some(0), None),
            None if beside => want("neurons", None, Some(0)),
            Some(neurons) if neurons.shape != [own_out, own_input] => {
                let (here, name) = (Path::new("recovery parameters"), names::neurons(layer, projection));
                Err(Error::shape(here, name, &[own_out, own_input], &neurons.shape))
            }
            _ => Ok(()),
        }
    }

    /// All tensors, named and shaped as in files, in the order of layers.
    ///
    /// # Errors
    /// [`Error::Tensor`] if factors do not fit each other.
    pub fn tensors(&self) -> Result<Vec<TensorRef>> {
        let parts = self.parts()?;
        parts.into_iter().map(|(name, shape, values)| TensorRef::from_f32(name, &shape, values)).collect()
    }

    /// The same as (name, shape, values), nothing copied.
    fn parts(&self) -> Result<Vec<Part<'_>>> {
        let mut all = Vec::new();
        for (&layer, recovery) in &self.layers {
            all.extend(layer_parts(layer, recovery)?);
        }
        all.extend(self.trained().into_iter().map(|(name, (shape, values))| (name, shape, values)));
        Ok(all)
    }

    /// Writes everything to one file, which appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Tensor`] if factors do not fit each other, [`Error::NotFinite`] for a value that is no
    /// number, [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let parts = self.parts()?;
        let info = |(name, shape, _): &Part<'_>| TensorInfo {
            name: name.clone(),
            dtype: DType::F32,
            shape: shape.clone(),
        };
        let infos: Vec<TensorInfo> = parts.iter().map(info).collect();
        SafetensorsWriter::write_file(path.as_ref(), &infos, |writer| {
            parts.iter().try_for_each(|(name, _, values)| writer.append_f32(name, values))
        })
    }
}

fn is_recovery(part: &str) -> bool {
    matches!(part, "lora_A.weight" | "lora_B.weight" | "row_scale" | "col_scale" | "neurons.weight")
}

fn check_factors(path: &Path, layer: usize, projection: Projection, p: &ProjectionRecovery) -> Result<()> {
    let fits = if p.rank == 0 {
        p.a.is_empty() && p.b.is_empty()
    } else {
        !p.a.is_empty()
            && !p.b.is_empty()
            && p.a.len().is_multiple_of(p.rank)
            && p.b.len().is_multiple_of(p.rank)
    };
    match fits {
        true => Ok(()),
        false => {
            let what = format!("rank {}, lora_A of {} and lora_B of {} values", p.rank, p.a.len(), p.b.len());
            Err(Error::tensor(path, names::lora_a(layer, projection), what))
        }
    }
}

/// A tensor of a recovery file: its name, shape and values.
type Part<'a> = (String, Vec<usize>, &'a [f32]);

fn layer_parts(layer: usize, recovery: &LayerRecovery) -> Result<Vec<Part<'_>>> {
    let mut all: Vec<Part<'_>> = Vec::new();
    for projection in Projection::ALL {
        let Some(p) = &recovery[projection] else { continue };
        check_factors(Path::new("(memory)"), layer, projection, p)?;
        if p.rank > 0 {
            let (a, b) = (names::lora_a(layer, projection), names::lora_b(layer, projection));
            all.push((a, vec![p.rank, p.a.len() / p.rank], &p.a));
            all.push((b, vec![p.b.len() / p.rank, p.rank], &p.b));
        }
        if let Some(StoredTensor { shape, values }) = &p.neurons {
            all.push((names::neurons(layer, projection), shape.clone(), values));
        }
        if let Some(scale) = &p.row_scale {
            all.push((names::row_scale(layer, projection), vec![scale.len()], scale));
        }
        if let Some(scale) = &p.col_scale {
            all.push((names::col_scale(layer, projection), vec![scale.len()], scale));
        }
    }
    Ok(all)
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let whole = folder.join(RECOVERY_FILE);
    let mut layers = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let name = entry.file_name();
        let number =
            name.to_str().and_then(|n| n.strip_prefix("layer-")).and_then(|n| n.strip_suffix(".safetensors"));
        if number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
            layers.push(entry.path());
        }
    }
    layers.sort();
    match (whole.exists(), layers.is_empty()) {
        (true, true) => Ok(vec![whole]),
        (false, false) => Ok(layers),
        (true, false) => {
            let what = format!("has {RECOVERY_FILE} and layer files; name the one that is meant");
            Err(Error::malformed(folder, what))
        }
        (false, true) => {
            Err(Error::missing(folder, format!("neither {RECOVERY_FILE} nor layer-NN.safetensors")))
        }
    }
}
