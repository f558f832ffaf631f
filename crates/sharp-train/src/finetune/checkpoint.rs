//! Checkpoints of fine-tuning: a folder for each, complete or absent.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sharp_model::RECOVERY_FILE;
use sharp_model::{DType, HfCheckpoint, Recovery, SafetensorsWriter, TensorInfo, TensorSource, write_atomic};
use tch::Tensor;

use super::best::{Best, Record};
use super::options::{FinetuneOptions, StartFrom};
use crate::adamw::AdamW;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::params::{Layout, Params};
use crate::tensors::{dim, from_f32, to_vec};

/// The optimiser's file.
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The file that says what a checkpoint was made with.
const STATE_FILE: &str = "state.json";
/// Version of the format.
const VERSION: u32 = 3;
/// Checkpoints kept; one suffices to go on, and the one before it is there while the new one is written.
const KEPT: usize = 1;

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    step: u64,
    /// Steps that the optimiser has taken since it last began anew.
    optimizer_step: u64,
    parameters: usize,
    fingerprint: String,
    best: Record,
}

/// Computes a blake3 digest of what changes the course of training: plan, parameters, data, start, settings
/// and number type. The original's weights are not part of it.
pub(super) fn fingerprint(
    job: &Job<'_>,
    from: StartFrom<'_>,
    layout: &Layout,
    options: &FinetuneOptions,
) -> Result<String> {
    let train = job.train;
    let mut hash = blake3::Hasher::new();
    // Each part with its length, so that no bytes move between parts.
    let mut write = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    write(job.plan.to_toml().as_bytes());
    for spec in layout.specs() {
        write(spec.name.as_bytes());
        spec.shape.iter().for_each(|&n| write(&(n as u64).to_le_bytes()));
    }
    write(&(train.seq_len as u64).to_le_bytes());
    write(&train.tokens.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>());
    write(&train.mask.iter().map(|&m| u8::from(m)).collect::<Vec<u8>>());
    for tensor in from.recovery().map(Recovery::tensors).transpose()?.unwrap_or_default() {
        write(tensor.name().as_bytes());
        write(&tensor.bytes);
    }
    if let Some(file) = from.runtime_file() {
        for (name, _) in file.names() {
            write(name.as_bytes());
            write(&file.get(name).expect("a file has the tensors that it names").bytes);
        }
    }
    let o = options;
    let settings = format!(
        "{:?} {} {} {} {:?} {} {} {} {} {} {} {:?} {} {:?}",
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
        job.compute.precision,
        job.compute.sequences_at_once(train.seq_len),
        o.reuse
    );
    write(settings.as_bytes());
    Ok(hash.finalize().to_hex().to_string())
}

/// Returns a checkpoint's folder.
fn step_folder(out: &Path, step: u64) -> PathBuf {
    out.join(format!("step-{step:06}"))
}

/// Finds the checkpoint of the latest step in `out`.
pub(super) fn latest(out: &Path) -> Result<Option<PathBuf>> {
    Ok(all(out)?.pop())
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

/// Writes a checkpoint beside its place, renames it, and removes those before it.
pub(super) fn save(
    out: &Path,
    step: u64,
    print: &str,
    recovery: Option<&Recovery>,
    params: &Params,
    optimiser: &AdamW,
    best: &Best,
) -> Result<()> {
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
        version: VERSION,
        step,
        optimizer_step: optimiser.step_count(),
        parameters: params.layout.total(),
        fingerprint: print.to_owned(),
        best: best.record,
    };
    let text = serde_json::to_string_pretty(&state)
        .map_err(|e| Error::state(partial.join(STATE_FILE), e.to_string()))?;
    write_atomic(&partial.join(STATE_FILE), |w| writeln!(w, "{text}"))?;
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

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder)(e)),
        _ => Ok(()),
    }
}

/// Restores parameters and optimiser from a checkpoint and returns its step and the best state until then.
pub(super) fn load(
    folder: &Path,
    print: &str,
    params: &mut Params,
    optimiser: &mut AdamW,
) -> Result<(u64, Best)> {
    let path = folder.join(STATE_FILE);
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    let state: State = serde_json::from_str(&text).map_err(|e| Error::state(&path, e.to_string()))?;
    if state.version != VERSION {
        let what = format!(
            "is a checkpoint of version {}, and this program writes version {VERSION}; remove the folder to begin again",
            state.version
        );
        return Err(Error::state(folder, what));
    }
    if state.fingerprint != print || state.parameters != params.layout.total() {
        let what = "was made with another plan, data or settings; remove the folder or choose another --out";
        return Err(Error::state(folder, what));
    }
    let file = folder.join(OPTIMIZER_FILE);
    let source = HfCheckpoint::open(&file)?;
    let get = |name: &str| -> Result<Vec<f32>> { Ok(source.f32(&format!("model.{name}"))?) };
    optimiser.restore(state.optimizer_step, &get("exp_avg")?, &get("exp_avg_sq")?)?;
    let flat = |name| from_f32(&get(name)?, &[params.layout.total()], params.flat.device());
    let (values, best) = (flat("values")?, flat("best")?);
    params.flat.f_copy_(&values)?;
    Ok((state.step, Best { record: state.best, flat: best }))
}
