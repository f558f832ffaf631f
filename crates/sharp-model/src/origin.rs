//! Where a model comes from: what the `README.md` beside a checkpoint says first.

use std::fmt::Write;
use std::path::Path;

use crate::checkpoint::hf::read_text;
use crate::error::Result;

/// File name of a model card.
pub const CARD_FILE: &str = "README.md";

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

    pub(crate) fn title(&self) -> &str {
        self.name.as_deref().unwrap_or("Model")
    }

    pub(crate) fn front_matter(&self, tags: &[&str]) -> String {
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

    pub(crate) fn licence_text(&self) -> String {
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
