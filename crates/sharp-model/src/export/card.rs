//! The model card: the `README.md` beside a checkpoint.

use std::fmt::Write;
use std::path::Path;

use crate::error::Result;
use crate::hf::read_text;
use crate::model::ModelSource;

/// File name of a model card.
pub const CARD_FILE: &str = "README.md";

/// What a model card says besides what the model itself tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CardNotes {
    /// What the recovery parameters were trained on, in Markdown.
    pub data: Option<String>,
    /// What was measured, in Markdown; usually a table.
    pub figures: Option<String>,
}

/// Where a model comes from, as far as its own card tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// A name: `HuggingFaceTB/SmolLM2-135M-Instruct`.
    pub name: Option<String>,
    /// The licence's identifier as hubs write it, `apache-2.0`.
    pub licence: Option<String>,
}

impl Origin {
    /// Reads the front matter of a checkpoint folder's card; without a card nothing is known.
    ///
    /// # Errors
    /// [`crate::Error::Io`] and [`crate::Error::Malformed`] for a card that is there and cannot be read.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let card = folder.join(CARD_FILE);
        if !card.is_file() {
            return Ok(Self::default());
        }
        Ok(Self::from_card(&read_text(&card, 4 << 20)?))
    }

    /// Reads a card's front matter: the lines between two `---` at its beginning.
    pub fn from_card(text: &str) -> Self {
        let mut lines = text.lines();
        if lines.next().map(str::trim_end) != Some("---") {
            return Self::default();
        }
        let mut found = Self::default();
        let mut listed = "";
        for line in lines.take_while(|l| l.trim_end() != "---") {
            // `key: value`, or `key:` and the first of a list below it.
            let (key, value) = match (line.trim_start().strip_prefix("- "), line.split_once(':')) {
                (Some(item), _) => (listed, item),
                (None, Some((key, value))) => (key, value),
                (None, None) => continue,
            };
            listed = key;
            let value = value.trim().trim_matches(['"', '\'']);
            let place = match key {
                "license" => &mut found.licence,
                "base_model" => &mut found.name,
                _ => continue,
            };
            if place.is_none() && plain(value) {
                *place = Some(value.to_owned());
            }
        }
        found
    }

    /// A card that says only this, for a checkpoint whose original came without one.
    pub(crate) fn to_card(&self, what: &str) -> String {
        format!("{}\n# {}\n\n{what}\n\n{}", self.front_matter(&[]), self.title(), self.licence_text())
    }

    fn title(&self) -> &str {
        self.name.as_deref().unwrap_or("Model")
    }

    fn front_matter(&self, tags: &[&str]) -> String {
        let mut text = String::from("---\nlibrary_name: transformers\n");
        for (key, value) in [("license", &self.licence), ("base_model", &self.name)] {
            if let Some(value) = value {
                let _ = writeln!(text, "{key}: {value}");
            }
        }
        if !tags.is_empty() {
            let _ = writeln!(text, "tags: [{}]", tags.join(", "));
        }
        text + "---\n"
    }

    fn licence_text(&self) -> String {
        match &self.licence {
            Some(licence) => format!(
                "## Licence\n\nThe weights derive from the original's, whose licence is `{licence}`; its terms hold here too.\n"
            ),
            None => "## Licence\n\nThe weights derive from the original's. The files this was made from do not name its licence: \
                     look it up before passing these on.\n"
                .to_owned(),
        }
    }
}

/// Whether a value can stand in front matter without quotes and without changing its meaning.
fn plain(value: &str) -> bool {
    let sound = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ' ' | '+');
    value.len() <= 200 && value.starts_with(char::is_alphanumeric) && value.chars().all(sound)
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
    let _ = writeln!(text, "\n# {}, with MLPs shared between layers\n", origin.title());
    let changes = source.changes();
    let (layers, stored) = (config.num_hidden_layers, source.mlp_parameters());
    let original = layers as u64 * config.mlp_parameters_per_layer();
    let saved = 100.0 * (1.0 - stored as f64 / original as f64);
    let _ = writeln!(
        text,
        "{} of {layers} layers give up their MLP: they run with another layer's, or with a low-rank one, repaired by recovery \
         parameters of their own (SHARP, [arXiv 2502.07832](https://arxiv.org/abs/2502.07832)). The MLPs come to {:.1} M \
         parameters instead of {:.1} M, {saved:.1} % fewer.\n",
        changes.len(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_names_the_licence_and_the_original() {
        let card = "---\nlanguage:\n- en\nlicense: \"apache-2.0\"\nbase_model:\n- Org/Model-1B\n- Other/Model\n---\n# license: mit\n";
        let origin = Origin::from_card(card);
        assert_eq!(origin.licence.as_deref(), Some("apache-2.0"));
        assert_eq!(origin.name.as_deref(), Some("Org/Model-1B"));
        assert_eq!(Origin::from_card(&origin.to_card("Imported.")), origin);
    }

    #[test]
    fn text_that_is_no_front_matter_names_nothing() {
        assert_eq!(Origin::from_card("# Model\nlicense: mit\n---\n"), Origin::default());
        let hostile = "---\nlicense: mit # ](javascript:x)\nbase_model: [a, b]\n---\n";
        assert_eq!(Origin::from_card(hostile), Origin::default());
    }
}
