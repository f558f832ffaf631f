//! Bringing a checkpoint in: from a Hugging Face folder or a GGUF file to one folder in one form.
//!
//! Whatever the source, the result is `model.safetensors` (or shards), `config.json`, `tokenizer.json` and
//! `tokenizer_config.json`, with Hugging Face names, rotary halves and one floating-point type. Later stages
//! read only that. Quantised GGUF tensors are dequantised: the result *is* the original for everything that
//! follows.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};
use sharp_progress::Progress;
use sharp_quant::DType;

use crate::checkpoint::compact;
use crate::checkpoint::fused;
use crate::checkpoint::hf::HfCheckpoint;
use crate::checkpoint::source::TensorInfo;
use crate::checkpoint::writer::{DEFAULT_SHARD_BYTES, SafetensorsWriter, WriteSummary};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, HfView};
use crate::model::ModelSource;
use crate::origin::CARD_FILE;
use crate::stored::Stored;
use crate::tensors;
use crate::tokenizer::Tokenizer;

/// Files of a Hugging Face folder that come along unchanged, where they exist.
const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    CARD_FILE,
];

/// Those of them without which the result would be another model.
const READ: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// Writes the checkpoint `source` (a Hugging Face folder, a GGUF file, or a folder with one GGUF file in it)
/// to the folder `out`, all weights in `dtype` (F32, F16 or BF16). `out` changes only when everything has
/// been written.
///
/// # Errors
/// Those of opening the source; [`Error::Unsupported`] for another `dtype`, or a source that is already a
/// SHARP model or has tensors its architecture does not know; [`Error::NotFinite`] naming the first tensor
/// with a NaN, an infinity or a value `dtype` cannot hold; [`Error::Io`] for a disk too full, which is
/// checked before anything is written.
pub fn import(
    source: impl AsRef<Path>,
    out: impl AsRef<Path>,
    dtype: DType,
    progress: &dyn Progress,
) -> Result<WriteSummary> {
    import_sharded(source.as_ref(), out.as_ref(), dtype, DEFAULT_SHARD_BYTES, progress)
}

/// [`import`] with shards of at most `max_shard_bytes` (a single larger tensor gets a shard of its own).
///
/// # Errors
/// As [`import`].
pub fn import_sharded(
    source: &Path,
    out: &Path,
    dtype: DType,
    max_shard_bytes: u64,
    progress: &dyn Progress,
) -> Result<WriteSummary> {
    let torch_dtype = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        other => {
            let what = format!("importing as {} (F32, F16 and BF16 are possible)", other.name());
            return Err(Error::unsupported(out, what));
        }
    };
    let opened = open(source)?;
    if let (Ok(a), Ok(b)) = (opened.path.canonicalize(), out.canonicalize())
        && (a == b || a.parent() == Some(&b))
    {
        return Err(Error::malformed(out, "an import cannot write into the folder it reads from"));
    }
    let model = &opened.model;
    let tensors: Vec<TensorInfo> =
        tensors::tensors_of(model.config(), dtype).into_iter().map(|(_, _, info)| info).collect();
    check_space(out, &tensors)?;

    let mut writer = SafetensorsWriter::create(out, &tensors, max_shard_bytes)?;
    for (name, text) in &opened.files {
        writer.add_file(name, text.as_bytes())?;
    }
    for path in &opened.copies {
        if let Some(name) = path.file_name().and_then(OsStr::to_str) {
            writer.copy_file(name, path)?;
        }
    }
    let bytes: u64 =
        tensors.iter().map(|t| t.elements().map_or(0, |n| n as u64 * dtype.block_bytes() as u64)).sum();
    let task = progress.task("importing", bytes, "bytes");
    for info in &tensors {
        let tensor = model.tensor(&info.name)?;
        writer.copy(&info.name, &tensor).map_err(|e| blame_source(e, &opened.path))?;
        task.advance(info.elements()? as u64 * dtype.block_bytes() as u64);
    }
    let mut config = opened.config;
    config.remove("dtype");
    config.insert("torch_dtype".into(), json!(torch_dtype));
    writer.finish(&config)
}

/// A checkpoint to import: its tensors under Hugging Face names, and the files that go beside them.
struct Opened {
    path: PathBuf,
    model: ModelSource,
    config: Map<String, Json>,
    /// Name and content of files made here.
    files: Vec<(&'static str, String)>,
    /// Files copied as they are.
    copies: Vec<PathBuf>,
}

fn open(source: &Path) -> Result<Opened> {
    match Stored::at(source)? {
        Stored::Folder(folder) => open_folder(&folder),
        Stored::Gguf(file) => open_gguf(&file),
        Stored::Packed(file) => {
            Err(Error::unsupported(file, "importing a packed model; import what it was made from"))
        }
    }
}

fn open_gguf(path: &Path) -> Result<Opened> {
    let gguf = Arc::new(Gguf::open(path)?);
    let view = HfView::new(gguf.clone())?;
    let config = view.config_json().clone();
    let files = view.companions()?;
    let model = ModelSource::new(view.config().clone(), None, Arc::new(view))?;
    Ok(Opened { path: path.to_path_buf(), model, config, files, copies: Vec::new() })
}

fn open_folder(folder: &Path) -> Result<Opened> {
    let (model_config, plan) = compact::load_with_plan(folder)?;
    if plan.is_some() {
        let what = "importing a compact SHARP checkpoint; it can be used as it is, or exported dense first";
        return Err(Error::unsupported(folder, what));
    }
    let config = model_config.to_json();
    let stored = HfCheckpoint::open(folder)?.under_plain_names(model_config.tie_word_embeddings);
    let checkpoint = fused::split(&model_config, stored)?;
    let model = ModelSource::new(model_config, None, checkpoint)?;
    let copies = companions(folder)?;
    if folder.join("tokenizer.json").is_file() {
        Tokenizer::load(folder)?;
    } else {
        tracing::warn!(folder = %folder.display(), "no tokenizer.json: the model can be run on token ids only");
    }
    Ok(Opened { path: folder.to_path_buf(), model, config, files: Vec::new(), copies })
}

/// Lists the files that come along. A link that leads out of the folder is not followed: whoever made the
/// folder would choose a file of the user's that becomes a part of the result.
fn companions(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = COMPANIONS.iter().map(|name| folder.join(name)).filter(|path| path.is_file());
    let mut inside = Vec::new();
    for path in files {
        let real = path.canonicalize().map_err(Error::io(&path))?;
        let home = folder.canonicalize().map_err(Error::io(folder))?;
        // The Hub's cache: snapshots/REVISION/NAME leads to blobs/DIGEST.
        let blobs = home.parent().and_then(Path::parent).map(|model| model.join("blobs"));
        if real.starts_with(&home) || real.parent().is_some_and(|parent| Some(parent) == blobs.as_deref()) {
            inside.push(path);
            continue;
        }
        let target = real.display();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if READ.contains(&name) {
            let what = format!("a link to {target}, out of the checkpoint's folder; put a copy in its place");
            return Err(Error::unsupported(path, what));
        }
        tracing::warn!("{}: left out, since it is a link to {target}, out of the folder", path.display());
    }
    Ok(inside)
}

/// The writer names the folder it writes to; a bad value is the source's.
fn blame_source(error: Error, source: &Path) -> Error {
    match error {
        Error::NotFinite { tensor, index, value, .. } => {
            Error::NotFinite { path: source.to_path_buf(), tensor, index, value }
        }
        other => other,
    }
}

/// Refuses to begin what cannot be finished: all of it is written before anything old is removed.
fn check_space(out: &Path, tensors: &[TensorInfo]) -> Result<()> {
    let mut need = 0u64;
    for t in tensors {
        need = need.saturating_add(t.dtype.nbytes(t.elements()?)? as u64);
    }
    fs::create_dir_all(out).map_err(Error::io(out))?;
    match fs4::available_space(out) {
        Ok(free) if free < need => {
            let what = format!("{need} bytes are needed, {free} are free");
            Err(Error::io(out)(io::Error::new(io::ErrorKind::StorageFull, what)))
        }
        // A file system that does not tell is left to fail in writing, which is as safe.
        _ => Ok(()),
    }
}
