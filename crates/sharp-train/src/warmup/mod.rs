//! Single Layer Warmup: each target alone is fitted to what the original's MLP does on the original's own activations.
//!
//! The original is walked through once, layer after layer, with the residual stream of all calibration tokens held (in
//! memory, or in files where it would be large); only one layer's weights are loaded at a time. At a target its MLP's
//! inputs and outputs are there, the target is fitted, its file is written, and the walk goes on.

mod fit;
mod rows;
mod walk;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sharp_data::TokenBlocks;
use sharp_model::{ModelSource, Plan, Recovery};
use sharp_progress::Progress;

use crate::device::Compute;
use crate::error::{Error, Result};
use crate::forms::form;
use crate::metrics;
use crate::pool::Pool;
use crate::start::Start;

/// How each token's squared error counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// All alike (the paper's L2): a few tokens with massive activations decide.
    None,
    /// Divided by the squared size of the token's residual stream after the layer, which is what the next norm divides
    /// by: the error as the layers above see it.
    #[default]
    Residual,
    /// Divided by the squared size of the token's own MLP output (and a tenth of the median, so that tiny outputs do not
    /// decide either).
    Output,
}

impl std::str::FromStr for Weighting {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::None),
            "residual" => Ok(Self::Residual),
            "output" => Ok(Self::Output),
            _ => Err(Error::invalid(format!("weighting `{text}`: use none, residual or output"))),
        }
    }
}

/// How to warm up.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WarmupOptions {
    /// Where the parameters begin.
    pub start: Start,
    /// AdamW steps a layer at most; 0 leaves the start as it is.
    pub steps: u64,
    /// Tokens in a step.
    pub batch_tokens: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Decoupled weight decay of the factors.
    pub weight_decay: f64,
    /// How tokens count.
    pub weighting: Weighting,
    /// Steps between measurements of the held-out error.
    pub eval_every: u64,
    /// Measurements without a new best after which a layer is done.
    pub patience: u64,
    /// Seed of the start and of the batches.
    pub seed: u64,
    /// Bytes of activations above which they go to files beside the output instead of memory.
    pub memory_bytes: u64,
}

impl Default for WarmupOptions {
    fn default() -> Self {
        Self {
            start: Start::Zero,
            steps: 400,
            batch_tokens: 1024,
            lr: 1e-3,
            weight_decay: 0.0,
            weighting: Weighting::default(),
            eval_every: 25,
            patience: 6,
            seed: 0,
            memory_bytes: 1 << 30,
        }
    }
}

/// What a layer's warm-up came to. Errors are on held-out tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerSummary {
    /// The target.
    pub layer: usize,
    /// Whose MLP it uses.
    pub reference: Option<usize>,
    /// Relative squared error of direct sharing, if there is a reference. 1 is what removing the MLP would give.
    pub direct_error: Option<f64>,
    /// The start's.
    pub start_error: f64,
    /// The best found, which is what was kept.
    pub error: f64,
    /// Mean over tokens of the relative squared error of each (at most 1e3 a token): massive activations count no more
    /// than others.
    pub token_error: f64,
    /// The error in the weighting that was trained.
    pub weighted_error: f64,
    /// Steps taken.
    pub steps: u64,
    /// Seconds of the start and of the training.
    pub seconds: f64,
}

/// What the warm-up came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WarmupSummary {
    /// The layers fitted by this call, in the order of the model.
    pub layers: Vec<LayerSummary>,
    /// Targets whose files were there already.
    pub skipped: Vec<usize>,
}

/// Warms up every target of `plan` on the activations of `train`, measured on `held_out`; writes
/// `out/layer-NN.safetensors` for each as soon as it is done, and `out/metrics.jsonl`. Layers whose files are there are
/// not done again.
///
/// # Errors
/// [`Error::Invalid`] for settings that make no sense or data without rows, [`Error::NotFinite`] if training diverges,
/// [`Error::Model`] and [`Error::Io`] from files.
#[allow(clippy::too_many_arguments)]
pub fn warmup(
    source: &ModelSource,
    plan: &Plan,
    train: &TokenBlocks,
    held_out: &TokenBlocks,
    out: &Path,
    compute: &Compute,
    options: &WarmupOptions,
    progress: &dyn Progress,
) -> Result<WarmupSummary> {
    plan.validate(source.config())?;
    if source.plan().is_some() {
        return Err(Error::invalid(format!("{} is already compressed", source.path().display())));
    }
    if train.rows() == 0 || options.batch_tokens == 0 || options.eval_every == 0 {
        return Err(Error::invalid("warm-up needs data, a batch size and an evaluation interval above 0"));
    }
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let file = |layer: usize| -> PathBuf { out.join(Recovery::layer_file(layer)) };
    let (mut todo, mut skipped) = (BTreeMap::new(), Vec::new());
    for target in &plan.changes {
        if form(&target.treatment).is_none() {
            continue;
        }
        // A file that does not load is done again rather than trusted.
        match file(target.layer).exists() && Recovery::load(file(target.layer)).is_ok() {
            true => skipped.push(target.layer),
            false => drop(todo.insert(target.layer, target)),
        }
    }
    let mut summary = WarmupSummary { layers: Vec::new(), skipped };
    let metrics_path = out.join(metrics::FILE);
    metrics::touch(&metrics_path)?;
    let Some(&last) = todo.keys().next_back() else { return Ok(summary) };
    let pool = Pool::new(vec![(); compute.threads])?;
    let mut walk = walk::Walk::new(source, train, held_out, out, compute, options)?;
    // One unit for each layer walked through, and as many again for each fit as steps make worth.
    let task = progress.task("warm-up", (last as u64 + 1) + 8 * todo.len() as u64, "units");
    for layer in 0..=last {
        let target = todo.get(&layer).copied();
        task.note(&format!("layer {layer}: activations"));
        let reached = walk.step(layer, target.is_some(), &pool)?;
        task.advance(1);
        let (Some(target), Some(reached)) = (target, reached) else { continue };
        let (recovery, layer_summary, lines) =
            fit::fit(source, target, reached, options, &pool, compute, task.as_ref())?;
        metrics::replace_layer(&metrics_path, layer, &lines)?;
        recovery.save(file(layer))?;
        tracing::info!(
            layer,
            start = layer_summary.start_error,
            error = layer_summary.error,
            steps = layer_summary.steps,
            "warmed up"
        );
        summary.layers.push(layer_summary);
    }
    Ok(summary)
}
