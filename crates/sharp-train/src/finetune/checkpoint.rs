//! Checkpoints of fine-tuning: a folder for each, complete or absent.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sharp_model::RECOVERY_FILE;
use sharp_model::{DType, HfCheckpoint, Recovery, SafetensorsWriter, TensorInfo, TensorSource, write_atomic};
use sharp_schema::metrics::{FinetuneLine, Validation};
use tch::Tensor;

use super::best::{Best, Record};
use super::options::{FinetuneOptions, StartFrom};
use crate::adamw::AdamW;
use crate::digests::{Digests, remove};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::job::Job;
use crate::metrics;
use crate::params::{Layout, Params};
use crate::tensors::{dim, from_f32, to_vec};

/// The optimiser's file.
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The file that says what a checkpoint was made with.
const STATE_FILE: &str = "state.json";
/// Checkpoints kept; one suffices to go on, and the one before it is there while the new one is written.
const KEPT: usize = 1;

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: u64,
    /// Steps that the optimiser has taken since it last began anew.
    optimizer_step: u64,
    best: Record,
    /// The measurement before the first step.
    start: Validation,
    /// Digest of the lines of metrics up to this step, their times apart.
    metrics: String,
}

/// Computes a digest of all that decides the course of training: original, plan, parameters, data, start,
/// settings and number type.
pub(super) fn fingerprint(
    job: &Job<'_>,
    from: StartFrom<'_>,
    layout: &Layout,
    options: &FinetuneOptions,
) -> Result<String> {
    let mut print = Fingerprint::of(job)?;
    for spec in layout.specs() {
        print.add(spec.name.as_bytes());
        spec.shape.iter().for_each(|&n| print.add(&(n as u64).to_le_bytes()));
    }
    for tensor in from.recovery().map(Recovery::tensors).transpose()?.unwrap_or_default() {
        print.add(tensor.name().as_bytes());
        print.add(&tensor.bytes);
    }
    if let Some(file) = from.runtime_file() {
        for (name, _) in file.names() {
            print.add(name.as_bytes());
            print.add(&file.get(name).expect("a file has the tensors that it names").bytes);
        }
    }
    let o = options;
    let settings = format!(
        "{:?} {} {} {} {:?} {} {} {} {} {} {} {} {:?}",
        o.loss,
        o.steps,
        o.batch_tokens,
        o.lr,
        o.lr_warmup,
        o.lr_floor,
        o.weight_decay,
        o.clip,
        o.train_norms,
        o.train_mlps.name(),
        o.seed,
        o.eval_every,
        o.reuse
    );
    print.add(settings.as_bytes());
    Ok(print.finish())
}

/// Returns a checkpoint's folder.
fn step_folder(out: &Path, step: u64) -> PathBuf {
    out.join(format!("step-{step:06}"))
}

/// Lists all complete checkpoints, the oldest first.
fn all(out: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(out).map_err(Error::io(out))?.flatten() {
        let name = entry.file_name();
        let step = name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse::<u64>().ok());
        if let Some(step) = step {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// What a checkpoint keeps beside parameters and moments.
pub(super) struct Progress<'a> {
    pub(super) step: u64,
    pub(super) best: &'a Best,
    /// The measurement before the first step.
    pub(super) start: Validation,
    /// The lines of metrics up to this step.
    pub(super) lines: &'a [FinetuneLine],
}

/// Writes a checkpoint beside its place, renames it, and removes those before it.
pub(super) fn save(
    out: &Path,
    print: &str,
    progress: &Progress<'_>,
    recovery: Option<&Recovery>,
    params: &Params,
    optimiser: &AdamW,
) -> Result<()> {
    let Progress { step, best, start, lines } = *progress;
    let partial = out.join(".partial-step");
    remove(&partial)?;
    fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
    if let Some(recovery) = recovery {
        recovery.save(partial.join(RECOVERY_FILE))?;
    }
    let [first, second] = optimiser.moments();
    let vectors = [
        ("model.exp_avg", first),
        ("model.exp_avg_sq", second),
        ("model.values", &params.flat),
        ("model.best", &best.flat),
    ];
    save_flat(&partial.join(OPTIMIZER_FILE), vectors)?;
    let state = State {
        step,
        optimizer_step: optimiser.step_count(),
        best: best.record,
        start,
        metrics: metrics::finetune_digest(lines),
    };
    let text = serde_json::to_string_pretty(&state)
        .map_err(|e| Error::state(partial.join(STATE_FILE), e.to_string()))?;
    write_atomic(&partial.join(STATE_FILE), |w| writeln!(w, "{text}"))?;
    let mut digests = Digests::new(print);
    for name in [OPTIMIZER_FILE, STATE_FILE] {
        digests.add_file(&partial, name)?;
    }
    digests.write(&partial)?;
    let folder = step_folder(out, step);
    remove(&folder)?;
    fs::rename(&partial, &folder).map_err(Error::io(&folder))?;
    let mut old = all(out)?;
    old.truncate(old.len().saturating_sub(KEPT));
    old.iter().try_for_each(|path| remove(path))
}

/// Writes flat vectors as one file, a piece at a time: together they are several times the model.
fn save_flat(path: &Path, vectors: [(&str, &Tensor); 4]) -> Result<()> {
    const PIECE: usize = 1 << 20;
    let infos = vectors.map(|(name, vector)| TensorInfo {
        name: name.to_owned(),
        dtype: DType::F32,
        shape: vec![vector.numel()],
    });
    SafetensorsWriter::write_file(path, &infos, |writer| {
        for (name, vector) in vectors {
            for start in (0..vector.numel()).step_by(PIECE) {
                let len = PIECE.min(vector.numel() - start);
                writer.append_f32(name, &to_vec(&vector.f_narrow(0, dim(start)?, dim(len)?)?)?)?;
            }
        }
        Ok(())
    })
}

/// What a checkpoint restores beside parameters and moments.
pub(super) struct Restored {
    pub(super) step: u64,
    pub(super) best: Best,
    /// The measurement before the first step.
    pub(super) start: Validation,
    /// The lines of metrics up to the checkpoint's step, or the first alone where the file is another by
    /// now.
    pub(super) lines: Vec<FinetuneLine>,
}

/// Restores parameters and optimiser from the latest checkpoint that is as it was written. Those that are not
/// are removed with a warning; `None` where there is no other.
///
/// # Errors
/// [`Error::State`] for a checkpoint made with other settings, [`Error::Io`] for one that cannot be read.
pub(super) fn resume(
    out: &Path,
    print: &str,
    params: &mut Params,
    optimiser: &mut AdamW,
) -> Result<Option<Restored>> {
    for folder in all(out)?.into_iter().rev() {
        match intact(&folder, print)? {
            Ok(state) => return load(out, &folder, state, params, optimiser).map(Some),
            Err(what) => {
                let checkpoint = folder.display();
                tracing::warn!(
                    %checkpoint,
                    "the checkpoint is damaged and is removed: {what}; training goes on from the one before, or from its start"
                );
                remove(&folder)?;
            }
        }
    }
    Ok(None)
}

/// Compares a checkpoint's files with their digests; returns its state, or what is wrong.
fn intact(folder: &Path, print: &str) -> Result<Result<State, String>> {
    let digests = match Digests::read(folder)? {
        Ok(digests) => digests,
        Err(what) => return Ok(Err(what)),
    };
    if digests.fingerprint != print {
        let what =
            "was made with another model, plan, data or settings; remove the folder or choose another --out";
        return Err(Error::state(folder, what));
    }
    for name in [STATE_FILE, OPTIMIZER_FILE] {
        if let Err(what) = digests.compare_file(folder, name)? {
            return Ok(Err(what));
        }
    }
    let path = folder.join(STATE_FILE);
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    Ok(serde_json::from_str(&text).map_err(|e| format!("{STATE_FILE}: {e}")))
}

/// Restores what a checkpoint whose files are as they were written holds.
fn load(
    out: &Path,
    folder: &Path,
    state: State,
    params: &mut Params,
    optimiser: &mut AdamW,
) -> Result<Restored> {
    let source = HfCheckpoint::open(folder.join(OPTIMIZER_FILE))?;
    let get = |name: &str| -> Result<Vec<f32>> { Ok(source.f32(&format!("model.{name}"))?) };
    optimiser.restore(state.optimizer_step, &get("exp_avg")?, &get("exp_avg_sq")?)?;
    let flat = |name| from_f32(&get(name)?, &[params.layout.total()], params.flat.device());
    let (values, best) = (flat("values")?, flat("best")?);
    params.flat.f_copy_(&values)?;
    let mut lines = metrics::finetune_lines(&out.join(metrics::FILE))?;
    // What a killed run did after its last checkpoint is done again.
    lines.retain(|line| line.step() <= state.step);
    if metrics::finetune_digest(&lines) != state.metrics {
        tracing::warn!(
            step = state.step,
            "{} changed after it was written: the lines up to this step are lost, the training itself is not",
            metrics::FILE
        );
        lines = vec![FinetuneLine::Start { step: 0, validation: state.start, seconds: 0.0 }];
    }
    let best = Best { record: state.best, flat: best };
    Ok(Restored { step: state.step, best, start: state.start, lines })
}
