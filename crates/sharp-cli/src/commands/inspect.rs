//! `sharp inspect`: what is in a model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde::Serialize;
use sharp_data::{Chat, Message};
use sharp_model::gguf::{Gguf, HfView};
use sharp_model::packed::PackedFile;
use sharp_model::tokenizer::Tokenizer;
use sharp_model::{HfCheckpoint, ModelConfig, ModelSource, Plan, Stored, TensorSource};

use crate::Global;
use crate::model::{ModelArg, open_tokenizer};
use crate::output::{self, Output};

/// Tokens of a row that training is asked about, where the model sees so many.
const ROW: usize = 512;

/// Say what is in a model: sizes, tokenizer, plan, tensors, bytes, and whether it can be trained.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sharp inspect model.sharp --tensors")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArg,
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
    tokenizer: Option<TokenizerSummary>,
    /// What is wrong with the tokenizer, if it cannot be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer_error: Option<String>,
    /// Why training does not take the model, if it does not.
    training_refusal: Option<String>,
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
    /// Tokens that the model sees at most.
    max_position_embeddings: usize,
    /// Of the model without sharing.
    parameters: u64,
}

#[derive(Serialize)]
struct TokenizerSummary {
    tokens: usize,
    /// What stands before every text, often nothing.
    begin: Vec<String>,
    /// What ends a text or a turn.
    ends: Vec<String>,
    chat_template: bool,
    /// Why the chat template does not write a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_template_error: Option<String>,
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
            max_position_embeddings: config.max_position_embeddings,
            parameters: config.total_parameters(),
        }
    }
}

pub(crate) fn run(args: Args, _global: &Global, output: &Output) -> Result<()> {
    if let Some(tokens) = args.trainable {
        return trainable(args.model.path(), tokens, output);
    }
    let contents = contents(args.model.path())?;
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
    let stored = stored(path)?;
    Ok(match open_tokenizer(path) {
        Ok(tokenizer) => Contents { tokenizer: Some(tokenizer_summary(&tokenizer)?), ..stored },
        Err(error) => Contents { tokenizer_error: Some(format!("{error:#}")), ..stored },
    })
}

fn tokenizer_summary(tokenizer: &Tokenizer) -> Result<TokenizerSummary> {
    let written = |ids: &[u32]| ids.iter().filter_map(|&id| tokenizer.token(id)).collect();
    let chat = Chat::from_tokenizer(tokenizer);
    let rendered = chat.as_ref().map(|chat| chat.render(&[Message::new("user", "Hello")], true));
    Ok(TokenizerSummary {
        tokens: tokenizer.vocab_size(),
        begin: written(&sharp_data::begin_tokens(tokenizer)?),
        ends: written(tokenizer.end_ids()),
        chat_template: chat.is_some(),
        chat_template_error: rendered.and_then(Result::err).map(|error| error.to_string()),
    })
}

fn stored(path: &Path) -> Result<Contents> {
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
    let row = config.max_position_embeddings.min(ROW);
    Contents {
        kind,
        config: config.into(),
        tokenizer: None,
        tokenizer_error: None,
        training_refusal: config.training_refusal(row),
        plan,
        stored_bytes: bytes_by_format.values().sum(),
        bytes_by_format,
        tensors,
    }
}

/// Describes the tokenizer and the chat template, a line each.
fn describe_tokenizer(contents: &Contents) -> String {
    let Some(tokenizer) = &contents.tokenizer else {
        return format!("tokenizer: {}\n", contents.tokenizer_error.as_deref().unwrap_or("none"));
    };
    let listed = |tokens: &[String]| if tokens.is_empty() { "nothing".into() } else { tokens.join(", ") };
    let template = match (&tokenizer.chat_template_error, tokenizer.chat_template) {
        (Some(error), _) => format!("cannot be used: {error}"),
        (None, true) => "there is one".to_owned(),
        (None, false) => "none".to_owned(),
    };
    format!(
        "tokenizer: {} tokens; texts begin with {}, end with {}\nchat template: {template}\n",
        tokenizer.tokens,
        listed(&tokenizer.begin),
        listed(&tokenizer.ends),
    )
}

fn describe(contents: &Contents, list: bool) -> String {
    let config = &contents.config;
    let mut text = format!(
        "{}: {}\n{} layers, hidden size {}, intermediate size {}, {} heads ({} for keys and values), vocabulary {}, context {} tokens\n{:.1} M parameters without sharing; {} stored: {}\n",
        contents.kind,
        config.architecture,
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        config.max_position_embeddings,
        config.parameters as f64 / 1e6,
        output::bytes(contents.stored_bytes),
        contents
            .bytes_by_format
            .iter()
            .map(|(format, bytes)| format!("{format} {}", output::bytes(*bytes)))
            .collect::<Vec<_>>()
            .join(", "),
    );
    text.push_str(&describe_tokenizer(contents));
    text.push_str(&match &contents.training_refusal {
        None => "training: possible\n".to_owned(),
        Some(refusal) => format!("training: {refusal}\n"),
    });
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
