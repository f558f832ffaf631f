//! The model card: the `README.md` beside a checkpoint.

use std::fmt::Write;

use crate::error::Result;
use crate::model::ModelSource;
use crate::origin::Origin;
use crate::plan::{Repair, Treatment};

/// What a model card says besides what the model itself tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CardNotes {
    /// What the recovery parameters were trained on, in Markdown.
    pub data: Option<String>,
    /// What was measured, in Markdown; usually a table.
    pub figures: Option<String>,
}

/// What of a model is written, for the card to say how to load it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Compact,
    Dense,
    Peft,
}

/// The card of an export.
pub(super) fn write(source: &ModelSource, kind: Kind, notes: &CardNotes) -> Result<String> {
    let origin = match source.gguf() {
        Some(gguf) => gguf.origin()?,
        None => Origin::of_folder(source.path())?,
    };
    let config = source.config();
    let mut text = origin.front_matter(&["sharp", "mlp-sharing"]);
    let _ = writeln!(text, "\n# {}, compressed\n", origin.title());
    let changes = source.changes();
    let (layers, stored) = (config.num_hidden_layers, source.mlp_parameters());
    let original = layers as u64 * config.mlp_parameters_per_layer();
    let saved = 100.0 * (1.0 - stored as f64 / original as f64);
    let _ = writeln!(
        text,
        "{} of {layers} layers do not keep their whole MLP ({}SHARP, \
         [arXiv 2502.07832](https://arxiv.org/abs/2502.07832)). The MLPs come to {:.1} M parameters instead of {:.1} M, \
         {saved:.1} % fewer.\n",
        changes.len(),
        what_they_do(source).map_or_else(String::new, |what| what + "; "),
        stored as f64 / 1e6,
        original as f64 / 1e6,
    );
    let _ = writeln!(text, "## Use\n\n{}\n", usage(kind));
    if !changes.is_empty() {
        text.push_str("## Plan\n\n| layer | in place of its MLP |\n|---|---|\n");
        for change in changes {
            let _ = writeln!(text, "| {} | {} |", change.layer, change.treatment.describe());
        }
        text.push('\n');
    }
    for (title, body) in [("Figures", &notes.figures), ("Data", &notes.data)] {
        if let Some(body) = body {
            let _ = writeln!(text, "## {title}\n\n{}\n", body.trim());
        }
    }
    Ok(text + &origin.licence_text())
}

/// What changed layers do, a phrase for each kind that there is; `None` where no layer changes.
fn what_they_do(source: &ModelSource) -> Option<String> {
    let mut phrases: Vec<&str> = Vec::new();
    for change in source.changes() {
        let phrase = match change.treatment {
            Treatment::Share { repair: Repair::None, .. } => "some run with another layer's MLP as it is",
            Treatment::Share { repair: Repair::Neurons { .. }, .. } => {
                "some run with another layer's MLP beside a few neurons of their own"
            }
            Treatment::Share { .. } => {
                "some run with another layer's MLP, repaired by parameters of their own"
            }
            Treatment::LowRank { .. } => "some have a low-rank MLP",
            Treatment::Prune { .. } => "some keep a part of their MLP's neurons",
            Treatment::Drop => "some have no MLP",
        };
        if !phrases.contains(&phrase) {
            phrases.push(phrase);
        }
    }
    (!phrases.is_empty()).then(|| phrases.join(", "))
}

fn usage(kind: Kind) -> &'static str {
    match kind {
        Kind::Compact => {
            "Each shared MLP is stored once. `modeling_sharp.py` beside the weights runs the checkpoint as it is, each shared \
             MLP in memory once:\n\n\
             ```python\n\
             from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)\n\
             tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)\n\
             ```"
        }
        Kind::Dense => {
            "Every layer has its effective weights: a plain checkpoint of the original's family that any tool loads, as large \
             as the original.\n\n\
             ```python\n\
             from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             model = AutoModelForCausalLM.from_pretrained(folder)\n\
             tokenizer = AutoTokenizer.from_pretrained(folder)\n\
             ```"
        }
        Kind::Peft => {
            "`base/` is a plain checkpoint in which each target layer holds a scaled copy of its reference's MLP, as large as the \
             original; the adapter holds the low-rank factors, which can be trained further with PEFT.\n\n\
             ```python\n\
             from peft import PeftModel\n\
             from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             base = AutoModelForCausalLM.from_pretrained(f\"{folder}/base\")\n\
             model = PeftModel.from_pretrained(base, folder)\n\
             tokenizer = AutoTokenizer.from_pretrained(f\"{folder}/base\")\n\
             ```"
        }
    }
}
