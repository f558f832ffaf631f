//! What lies at a path: the one place that tells the forms of a stored model from one another.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::compact;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, HfView};
use crate::packed::{self, PackedFile};
use crate::tokenizer::Tokenizer;

/// A stored model, by its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// A Hugging Face directory, dense or compact.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A `model.sharp`.
    Packed(PathBuf),
}

impl Stored {
    /// What is at `path`: a directory with a `config.json`, a directory with one GGUF file and no
    /// `config.json`, a GGUF file or a packed file. Files are told by how they begin, not by their names.
    ///
    /// # Errors
    /// [`Error::Missing`] where there is nothing, or a directory with neither or with several GGUF files;
    /// [`Error::Unsupported`] for a file of another kind; [`Error::Io`].
    pub fn at(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = fs::metadata(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Error::missing(path, format!("no such file or folder ({FORMS})"))
            }
            _ => Error::io(path)(e),
        })?;
        if meta.is_dir() {
            if path.join("config.json").is_file() {
                return Ok(Self::Folder(path.to_path_buf()));
            }
            return Ok(Self::Gguf(gguf_in(path)?));
        }
        if !meta.is_file() {
            return Err(Error::unsupported(
                path,
                "neither a regular file nor a folder; write it to a file first",
            ));
        }
        let mut magic = Vec::new();
        let file = fs::File::open(path).map_err(Error::io(path))?;
        file.take(packed::MAGIC.len() as u64).read_to_end(&mut magic).map_err(Error::io(path))?;
        if magic == packed::MAGIC {
            return Ok(Self::Packed(path.to_path_buf()));
        }
        if magic.starts_with(b"GGUF") {
            return Ok(Self::Gguf(path.to_path_buf()));
        }
        let what = match path.extension().and_then(OsStr::to_str) {
            Some("safetensors") => {
                "a safetensors file by itself; give the folder that also has its config.json".to_owned()
            }
            Some("gguf") => {
                "not a GGUF file, whatever its name says: it does not begin with `GGUF`".to_owned()
            }
            _ => "neither a GGUF file nor a packed model.sharp (a Hugging Face model is given as its folder)"
                .to_owned(),
        };
        Err(Error::unsupported(path, what))
    }

    /// The directory or file itself.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Gguf(path) | Self::Packed(path) => path,
        }
    }

    /// The model's shape, whatever form it is stored in. No weights are read.
    ///
    /// # Errors
    /// Those of opening each form.
    pub fn config(&self) -> Result<ModelConfig> {
        Ok(match self {
            Self::Folder(folder) => compact::load_with_plan(folder)?.0,
            Self::Gguf(file) => HfView::new(Arc::new(Gguf::open(file)?))?.config().clone(),
            Self::Packed(file) => PackedFile::open(file)?.config().clone(),
        })
    }
}

impl Tokenizer {
    /// Reads the tokenizer of the model at `path`, in whatever form it is stored. In a folder it is
    /// `tokenizer.json`, with `tokenizer_config.json`, `chat_template.jinja`, `generation_config.json` and
    /// `config.json` where they are there (they name the end-of-text ids and the chat template); GGUF and
    /// packed files hold theirs.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none; [`Error::Json`] and [`Error::Tokenizer`] for files that are not
    /// what they should be; those of [`Stored::at`] and of opening a file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() && (path.join("tokenizer.json").is_file() || gguf_in(path).is_err()) {
            return Self::from_folder(path);
        }
        match Stored::at(path)? {
            Stored::Folder(folder) => Self::from_folder(&folder),
            Stored::Packed(file) => PackedFile::open(file)?.tokenizer(),
            Stored::Gguf(file) => HfView::new(Arc::new(Gguf::open(&file)?))?
                .tokenizer()?
                .ok_or_else(|| Error::missing(file, "the file holds no tokenizer")),
        }
    }
}

const FORMS: &str = "a model is a Hugging Face directory, a GGUF file or a packed model.sharp";

/// The one GGUF file of a folder without `config.json`.
fn gguf_in(folder: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.extension() == Some(OsStr::new("gguf")) {
            found.push(path);
        }
    }
    match found.len() {
        0 if folder.join("adapter_config.json").is_file() => {
            Err(Error::missing(folder, "a PEFT adapter by itself: no config.json of the model it belongs on"))
        }
        0 => Err(Error::missing(folder, "no config.json and no GGUF file in this folder")),
        1 => Ok(found.swap_remove(0)),
        n => Err(Error::missing(
            folder,
            format!("no config.json, and {n} GGUF files to choose from: name one"),
        )),
    }
}
