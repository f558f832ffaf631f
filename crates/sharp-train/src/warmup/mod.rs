//! Single Layer Warmup: fits each changed layer alone to what the original's MLP does on the original's own
//! activations.
//!
//! The original runs once, layer after layer, with the residual stream of all calibration tokens held (in
//! memory, or in files where it would be large). Only one layer's weights are loaded at a time. At a changed
//! layer the inputs and outputs of its MLP are there: the layer is fitted, its file is written, and the pass
//! goes on.

mod activation_store;
mod finished;
mod fit;
mod layer_pass;
mod options;

use std::collections::BTreeMap;

use sharp_model::{PerProjection, Treatment};
use sharp_schema::Start;

use crate::error::{Error, Result};
use crate::forms::{Form, Pieces, form};
use crate::job::Job;
use crate::metrics;
use crate::pool::Pool;
use finished::Finished;
use fit::{FIT_UNITS, Fitter};
use layer_pass::LayerPass;
pub use options::{LayerSummary, WarmupOptions, WarmupSummary};

/// Warms up every changed layer of `job`'s plan that has recovery parameters.
///
/// Writes `layer-NN.safetensors` for each layer as soon as it is done, and `metrics.jsonl`, into the job's
/// folder. A layer is not done again where its file is as `digests.json` says, and where that was written
/// with the same original, plan, data and settings.
///
/// # Errors
/// [`Error::State`] for a folder with the layers of another warm-up, [`Error::Invalid`] for settings that
/// make no sense or data without rows, [`Error::NotFinite`] if training diverges, [`Error::Model`] and
/// [`Error::Io`] from files.
pub fn warmup(job: &Job<'_>, options: &WarmupOptions) -> Result<WarmupSummary> {
    prepare(job, options)?;
    let metrics_path = job.out.join(metrics::FILE);
    let mut finished = Finished::open(job, options)?;
    let (mut todo, mut skipped) = (BTreeMap::new(), Vec::new());
    for change in &job.plan.changes {
        let (layer, Some(form)) = (change.layer, form(&change.treatment)) else { continue };
        match finished.has(layer)? {
            true => skipped.push(layer),
            false => drop(todo.insert(layer, (change, form))),
        }
    }
    let mut summary = WarmupSummary { layers: Vec::new(), skipped };
    metrics::touch(&metrics_path)?;
    let Some(&last) = todo.keys().next_back() else { return Ok(summary) };
    let pool = Pool::new(vec![(); job.compute.threads])?;
    let mut pass = LayerPass::new(job, options)?;
    let units = (last as u64 + 1) + FIT_UNITS * todo.len() as u64;
    let task = job.progress.task("warm-up", units, "units");
    let fitter = Fitter { job, options, pool: &pool, task: task.as_ref() };
    for layer in 0..=last {
        let wanted = todo.get(&layer).copied();
        task.note(&format!("layer {layer}: activations"));
        let sample = pass.step(layer, wanted.is_some(), &pool)?;
        task.advance(1);
        let (Some((change, form)), Some(sample)) = (wanted, sample) else { continue };
        let fitted = fitter.fit(change, form, &sample)?;
        let recovery = fitted.layer.to_recovery(&fitted.params)?;
        metrics::replace_layer(&metrics_path, layer, fitted.lines)?;
        finished.save(layer, &recovery)?;
        let LayerSummary { start_error, error, steps, .. } = fitted.summary;
        tracing::info!(layer, start = start_error, error, steps, "warmed up");
        summary.layers.push(fitted.summary);
    }
    Ok(summary)
}

/// The result of [`fit_form`].
#[derive(Debug)]
pub struct FittedForm {
    /// Errors before and after, steps and time.
    pub summary: LayerSummary,
    /// The fitted pieces of each projection, float32.
    pub pieces: PerProjection<Pieces>,
}

/// Fits a recovery form of one's own to one layer, as [`warmup`] fits those that a plan can name.
///
/// The form stands in for the one that `job`'s plan names for `layer`; the plan's treatment still gives the
/// reference and the ranks. The parameters begin at [`Start::Zero`]. Nothing is kept in the job's folder:
/// files hold the pieces of the plan's forms only.
///
/// # Errors
/// [`Error::Invalid`] for a layer that the plan leaves alone or another start, and whatever [`warmup`] fails
/// with.
pub fn fit_form(
    job: &Job<'_>,
    layer: usize,
    form: &'static dyn Form,
    options: &WarmupOptions,
) -> Result<FittedForm> {
    prepare(job, options)?;
    let change = job.plan.change(layer).filter(|change| change.treatment != Treatment::Drop);
    let change =
        change.ok_or_else(|| Error::invalid(format!("the plan has no recovery for layer {layer}")))?;
    if options.start != Start::Zero {
        let name = form.name();
        return Err(Error::invalid(format!("form `{name}` can only begin at the zero start")));
    }
    let pool = Pool::new(vec![(); job.compute.threads])?;
    let mut pass = LayerPass::new(job, options)?;
    let task = job.progress.task("fit", layer as u64 + 1 + FIT_UNITS, "units");
    let fitter = Fitter { job, options, pool: &pool, task: task.as_ref() };
    for below in 0..layer {
        pass.step(below, false, &pool)?;
        task.advance(1);
    }
    let sample = pass.step(layer, true, &pool)?;
    let sample = sample.ok_or_else(|| Error::invalid(format!("layer {layer} has no MLP")))?;
    task.advance(1);
    let fitted = fitter.fit(change, form, &sample)?;
    Ok(FittedForm { pieces: fitted.layer.pieces(&fitted.params)?, summary: fitted.summary })
}

/// Checks job and settings, and makes the folder.
fn prepare(job: &Job<'_>, options: &WarmupOptions) -> Result<()> {
    job.check()?;
    if job.train.rows() == 0 || options.batch_tokens == 0 || options.eval_every == 0 {
        return Err(Error::invalid("warm-up needs data, a batch size and an evaluation interval above 0"));
    }
    if job.validation.rows() == 0 {
        return Err(Error::invalid("warm-up needs validation rows"));
    }
    std::fs::create_dir_all(job.out).map_err(Error::io(job.out))
}
