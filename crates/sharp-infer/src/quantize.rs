//! Quantising a model into one `model.sharp` file, a tensor at a time.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sharp_model::{
    ModelLayout, ModelSource, TensorBytes, TensorInfo,
    packed::{BlobFormat, BlobId, PackedFile, PackedWriter},
};
use sharp_progress::{Progress, Silent, Task};
use sharp_quant::{PackedFormat, Team};

use crate::calibrate::Calibrator;
use crate::error::{Error, Result};
use crate::pack::{Packer, relative_error};
use crate::recipe::Recipe;

/// How one stored tensor was quantised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Its name; a shared matrix's is the reference layer's.
    pub name: String,
    /// `q4x16`, `q8x16`, `f16x16` or `f32`.
    pub format: String,
    /// Rows; a vector is one row.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Bytes in the file.
    pub bytes: u64,
    /// Layers that use it beyond the first.
    pub shared_by: usize,
    /// Root of the squared error over the squared weights; 0 for f32. Calibrated rounding makes it larger:
    /// it lessens the error of outputs instead.
    pub relative_error: f64,
}

/// The result of a quantisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantReport {
    /// The recipe.
    pub recipe: Recipe,
    /// Tokens whose activations the layers' matrices were rounded against; 0 where they were not.
    #[serde(default)]
    pub calibration_tokens: usize,
    /// Bytes of the weights in the file, each stored matrix once.
    pub weight_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes of the same weights as they were stored before.
    pub source_bytes: u64,
    /// Every stored tensor, in the order of the computation.
    pub tensors: Vec<TensorReport>,
}

/// The contents of a file, before anything is computed.
struct Layout {
    writer: PackedWriter,
    /// In the order of the blobs.
    parts: Vec<(TensorInfo, BlobFormat, TensorReport)>,
    /// Matrices that may be used again, by stored name.
    known: HashMap<String, BlobId>,
}

impl Layout {
    fn add(&mut self, name: String, tensor: TensorInfo, format: BlobFormat) -> Result<()> {
        if let Some(&blob) = self.known.get(&tensor.name) {
            self.writer.name(name, blob)?;
            self.parts[blob.index()].2.shared_by += 1;
            return Ok(());
        }
        let (rows, cols) = match (tensor.shape.as_slice(), format) {
            (&[rows, cols], _) => (rows, cols),
            (&[cols], BlobFormat::F32) => (1, cols),
            (shape, _) => {
                return Err(Error::Shape {
                    expected: vec![0, 0],
                    found: shape.to_vec(),
                    tensor: tensor.name,
                });
            }
        };
        let blob = self.writer.blob(format, rows, cols)?;
        self.writer.name(name, blob)?;
        self.known.insert(tensor.name.clone(), blob);
        let report = TensorReport {
            name: tensor.name.clone(),
            format: format.name().to_owned(),
            rows,
            cols,
            bytes: format.nbytes(rows, cols)? as u64,
            shared_by: 0,
            relative_error: 0.0,
        };
        self.parts.push((tensor, format, report));
        Ok(())
    }
}

/// Lays out the file: the tensors that the layers compute with, in the order of the computation.
fn layout(source: &ModelSource, recipe: &Recipe) -> Result<Layout> {
    let config = source.config();
    let json = match source.plan() {
        Some(plan) => config.to_json_with_plan(plan),
        None => config.to_json(),
    };
    let mut all = Layout { writer: PackedWriter::new(json), parts: Vec::new(), known: HashMap::new() };
    for slot in ModelLayout::new(config, source.plan()).in_order_of_use() {
        all.add(slot.name, source.tensor_info(&slot.stored_as)?, recipe.format_of(slot.role))?;
    }
    Ok(all)
}

/// Counts the bytes of weights that [`quantize`] would write, without computing anything.
///
/// # Errors
/// [`Error::Model`] for tensors that are missing.
pub fn quantized_bytes(source: &ModelSource, recipe: &Recipe) -> Result<u64> {
    Ok(layout(source, recipe)?.writer.blob_bytes())
}

/// Writes `source`, whatever its form, as one packed file. Shared matrices are stored once; a tensor at a
/// time is in memory. The tokenizer comes along where the source has one. The file appears whole or not at
/// all.
///
/// # Errors
/// [`Error::Model`] for missing tensors, values that are not finite (the tensor is named) and for a file that
/// cannot be written.
pub fn quantize(
    source: &ModelSource,
    recipe: &Recipe,
    out: &Path,
    team: &Team,
    progress: &dyn Progress,
) -> Result<QuantReport> {
    write(source, recipe, out, team, progress, Rounding::Plain)
}

/// Writes what [`quantize`] does, with the layers' 4- and 8-bit matrices rounded against their inputs.
///
/// The inputs are those that `sequences`, each a text from its beginning, give them. The order of computation
/// is GPTQ's (Frantar et al., 2022, arXiv 2210.17323), with the scales of blocks chosen on the way. Format
/// and size of the file are the same.
///
/// The inputs are those of the unrounded model. A matrix that several layers share is rounded for all of
/// them. Embedding, head and recovery factors are rounded plainly. Memory holds one layer, its activations
/// for all tokens, the second moments of one input (twice, in f64), and where layers share, those of the
/// shared matrices and the packed layers between.
///
/// # Errors
/// Those of [`quantize`] and [`Model::from_source`](crate::Model::from_source); [`Error::Argument`] if there
/// are no tokens, [`Error::Token`] for one outside the vocabulary, and [`Error::Tensor`] if a matrix's inputs
/// are not finite.
pub fn quantize_calibrated(
    source: &ModelSource,
    recipe: &Recipe,
    sequences: &[Vec<u32>],
    out: &Path,
    team: &Arc<Team>,
    progress: &dyn Progress,
) -> Result<QuantReport> {
    let mut calibrator = Calibrator::new(source, recipe, sequences, team)?;
    let task = progress.task("calibrated rounding", source.config().num_hidden_layers as u64, "layers");
    write(source, recipe, out, team, &Silent, Rounding::Calibrated(&mut calibrator, &*task))
}

/// Writes what [`quantize`] does in the formats of `base`, rounding only the matrices named in `anew`.
///
/// `base` is a packed file of the same model and plan; all other matrices are copied from it. This is for
/// recovery parameters that were trained to repair that file's rounding, so everything else must stay as it
/// was.
///
/// # Errors
/// Those of [`quantize`]; [`Error::Argument`] if `base` has other matrices than `source`.
pub fn quantize_onto(
    source: &ModelSource,
    base: &PackedFile,
    anew: &BTreeSet<String>,
    out: &Path,
    team: &Team,
    progress: &dyn Progress,
) -> Result<QuantReport> {
    let (recipe, calibration_tokens) = Recipe::of_file(base)?;
    write(source, &recipe, out, team, progress, Rounding::Onto { base, anew, calibration_tokens })
}

/// Where packed matrices come from.
enum Rounding<'a, 'b> {
    /// Each weight by itself.
    Plain,
    /// Against the inputs that a text gives the matrices.
    Calibrated(&'a mut Calibrator<'b>, &'a dyn Task),
    /// Taken from a packed file but for some.
    Onto { base: &'a PackedFile, anew: &'a BTreeSet<String>, calibration_tokens: usize },
}

/// Finds the bytes of a matrix of `base`, which must have this format and shape.
fn stored_matrix(
    base: &PackedFile,
    name: &str,
    format: PackedFormat,
    (rows, cols): (usize, usize),
) -> Result<TensorBytes> {
    match base.get(name) {
        Some(t) if t.format == BlobFormat::Packed(format) && (t.rows, t.cols) == (rows, cols) => Ok(t.bytes),
        _ => Err(Error::argument(format!(
            "{} has no {name} of {rows} x {cols} in {}: it is of another model, plan or recipe",
            base.path().display(),
            format.name()
        ))),
    }
}

fn write(
    source: &ModelSource,
    recipe: &Recipe,
    out: &Path,
    team: &Team,
    progress: &dyn Progress,
    mut rounding: Rounding<'_, '_>,
) -> Result<QuantReport> {
    let Layout { mut writer, mut parts, .. } = layout(source, recipe)?;
    if let Some(tokenizer) = source.tokenizer()? {
        writer.tokenizer(tokenizer.to_json()?, tokenizer.config().clone());
    }
    let calibration_tokens = match &rounding {
        Rounding::Plain => 0,
        Rounding::Calibrated(calibrator, _) => calibrator.tokens(),
        Rounding::Onto { calibration_tokens, .. } => *calibration_tokens,
    };
    writer.recipe(recipe.to_json(calibration_tokens)?);
    let weight_bytes = writer.blob_bytes();
    let packer = Packer { team, path: source.path(), rule: recipe.rule() };
    writer.write(out, progress, |blob, buffer| -> Result<()> {
        let (info, format, report) = &mut parts[blob.index()];
        let tensor = &source.stored(&info.name)?;
        let shape = (report.rows, report.cols);
        let BlobFormat::Packed(packed) = *format else {
            tensor.require_finite(packer.path)?;
            buffer.extend(tensor.f32()?.iter().flat_map(|v| v.to_le_bytes()));
            return Ok(());
        };
        let start = buffer.len();
        let made = match &mut rounding {
            Rounding::Calibrated(calibrator, task) => calibrator.take(tensor.name(), *task)?,
            Rounding::Onto { base, anew, .. } if !anew.contains(tensor.name()) => {
                Some(stored_matrix(base, tensor.name(), packed, shape)?.to_vec())
            }
            _ => None,
        };
        match made {
            Some(bytes) => buffer.extend_from_slice(&bytes),
            None => packer.pack(tensor, packed, shape, None, buffer)?,
        }
        report.relative_error = relative_error(tensor, packed, shape, &buffer[start..])?;
        Ok(())
    })?;
    let mut source_bytes = 0;
    for (tensor, ..) in &parts {
        source_bytes += tensor.dtype.nbytes(tensor.elements()?)? as u64;
    }
    let file_bytes = std::fs::metadata(out).map_err(sharp_model::Error::io(out))?.len();
    tracing::debug!(weight_bytes, file_bytes, recipe = recipe.name, calibration_tokens, "quantised");
    Ok(QuantReport {
        recipe: recipe.clone(),
        calibration_tokens,
        weight_bytes,
        file_bytes,
        source_bytes,
        tensors: parts.into_iter().map(|p| p.2).collect(),
    })
}
