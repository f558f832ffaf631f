//! `sharp inspect`: what is in a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use serde::Serialize;
use sharp_model::gguf::{Gguf, HfView};
use sharp_model::packed::PackedFile;
use sharp_model::{HfCheckpoint, ModelConfig, ModelSource, Plan, Stored, TensorSource};

use crate::Global;
use crate::output::{self, Output};

/// Say what is in a model: tensors, plan, parameters, bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sharp inspect model.sharp --tensors")]
pub(crate) struct Args {
    /// A Hugging Face directory (dense or compact), a GGUF file or a model.sharp file.
    pub(crate) model: PathBuf,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
    /// Fail, by the configuration alone, if the model cannot be trained on rows of so many tokens.
    #[arg(long, value_name = "TOKENS", conflicts_with = "tensors")]
    trainable: Option<usize>,
}

#[derive(Serialize)]
struct Contents {
    kind: &'static str,
    config: ModelSummary,
    plan: Option<Plan>,
    tensors: Vec<TensorLine>,
    stored_bytes: u64,
    bytes_by_format: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct ModelSummary {
    architecture: String,
    num_hidden_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    vocab_size: usize,
    /// Of the model without sharing.
    parameters: u64,
}

#[derive(Serialize)]
struct TensorLine {
    name: String,
    format: String,
    shape: Vec<usize>,
    bytes: u64,
    /// Another name of the same stored tensor that comes before this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    same_as: Option<String>,
}

impl From<&ModelConfig> for ModelSummary {
    fn from(config: &ModelConfig) -> Self {
        ModelSummary {
            architecture: config.architecture().to_owned(),
            num_hidden_layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            vocab_size: config.vocab_size,
            parameters: config.total_parameters(),
        }
    }
}

pub(crate) fn run(args: Args, _global: &Global, output: &Output) -> Result<()> {
    if let Some(tokens) = args.trainable {
        return trainable(&args.model, tokens, output);
    }
    let contents = contents(&args.model)?;
    output.result(&contents, || describe(&contents, args.tensors))
}

/// Says whether a model's layers can be trained; reads no weights.
fn trainable(path: &Path, tokens: usize, output: &Output) -> Result<()> {
    let config = Stored::at(path)?.config()?;
    if let Some(refusal) = config.training_refusal(tokens) {
        bail!("{}: {refusal}", path.display());
    }
    let name = config.architecture();
    output.result(&serde_json::json!({"trainable": true}), || format!("a {name} can be trained\n"))
}

fn contents(path: &Path) -> Result<Contents> {
    match Stored::at(path)? {
        Stored::Folder(folder) => {
            // Opened twice: the model view checks that everything is there, the files say what is stored.
            let model = ModelSource::open(&folder)?;
            let lines = lines(&HfCheckpoint::open(&folder)?)?;
            let kind = if model.plan().is_some() { "compact checkpoint" } else { "dense checkpoint" };
            Ok(assemble(kind, model.config(), model.plan().cloned(), lines))
        }
        Stored::Packed(file) => packed(&file),
        Stored::Gguf(file) => {
            let gguf = Arc::new(Gguf::open(file)?);
            let lines = lines(gguf.as_ref())?;
            Ok(assemble("GGUF file", HfView::new(gguf)?.config(), None, lines))
        }
    }
}

fn packed(path: &Path) -> Result<Contents> {
    let file = PackedFile::open(path)?;
    let mut first: BTreeMap<usize, String> = BTreeMap::new();
    let mut lines = Vec::new();
    for (name, index) in file.names() {
        let Some(blob) = file.blobs().get(index) else { continue };
        let same_as = first.get(&index).cloned();
        first.entry(index).or_insert_with(|| name.to_owned());
        lines.push(TensorLine {
            name: name.to_owned(),
            format: blob.format.name().to_owned(),
            shape: vec![blob.rows, blob.cols],
            bytes: blob.len,
            same_as,
        });
    }
    Ok(assemble("packed model", file.config(), file.plan().cloned(), lines))
}

fn lines(source: &dyn TensorSource) -> Result<Vec<TensorLine>> {
    let mut lines = Vec::new();
    for info in source.tensors() {
        let bytes = info.dtype.nbytes(info.elements()?)? as u64;
        lines.push(TensorLine {
            name: info.name,
            format: info.dtype.name().to_owned(),
            shape: info.shape,
            bytes,
            same_as: None,
        });
    }
    Ok(lines)
}

fn assemble(
    kind: &'static str,
    config: &ModelConfig,
    plan: Option<Plan>,
    tensors: Vec<TensorLine>,
) -> Contents {
    let mut bytes_by_format = BTreeMap::new();
    for line in tensors.iter().filter(|line| line.same_as.is_none()) {
        *bytes_by_format.entry(line.format.clone()).or_insert(0) += line.bytes;
    }
    Contents {
        kind,
        config: config.into(),
        plan,
        stored_bytes: bytes_by_format.values().sum(),
        bytes_by_format,
        tensors,
    }
}

fn describe(contents: &Contents, list: bool) -> String {
    let config = &contents.config;
    let mut text = format!(
        "{}: {}\n{} layers, hidden size {}, intermediate size {}, {} heads ({} for keys and values), vocabulary {}\n{:.1} M parameters without sharing; {} stored: {}\n",
        contents.kind,
        config.architecture,
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        config.parameters as f64 / 1e6,
        output::bytes(contents.stored_bytes),
        contents
            .bytes_by_format
            .iter()
            .map(|(format, bytes)| format!("{format} {}", output::bytes(*bytes)))
            .collect::<Vec<_>>()
            .join(", "),
    );
    if let Some(plan) = &contents.plan {
        text.push_str(&format!("plan ({}):\n", plan.strategy));
        for change in &plan.changes {
            text.push_str(&format!("  layer {}: {}\n", change.layer, change.treatment.describe()));
        }
    }
    if list {
        let mut rows =
            vec![vec!["tensor".to_string(), "format".into(), "shape".into(), "bytes".into(), String::new()]];
        rows.extend(contents.tensors.iter().map(|line| {
            vec![
                line.name.clone(),
                line.format.clone(),
                format!("{:?}", line.shape),
                line.bytes.to_string(),
                line.same_as.as_ref().map(|name| format!("= {name}")).unwrap_or_default(),
            ]
        }));
        text.push_str(&output::table(&rows));
    }
    text
}
