//! What a quantisation turns each kind of matrix into.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sharp_model::{
    Part, Role,
    packed::{BlobFormat, PackedFile},
};
use sharp_quant::{PackedFormat, ScaleRule};

use crate::error::{Error, Result};

/// The key that a packed file has beside its recipe's own.
const CALIBRATION_TOKENS: &str = "calibration_tokens";

/// What each kind of matrix becomes: `q4` (Q4_0's numbers), `q8` (Q8_0's) or `f16`. Norms, biases and scales
/// stay f32.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What reports call it.
    pub name: String,
    /// Query, key, value and output projections.
    #[serde(with = "short")]
    pub attention: PackedFormat,
    /// MLP weights.
    #[serde(with = "short")]
    pub mlp: PackedFormat,
    /// The embedding; where the output head is tied to it, the head too.
    #[serde(with = "short")]
    pub embedding: PackedFormat,
    /// The output head, where it has weights of its own.
    #[serde(with = "short")]
    pub head: PackedFormat,
    /// Recovery factors A and B.
    #[serde(with = "short")]
    pub recovery: PackedFormat,
    /// Whether the block scales of weights that are rounded plainly are chosen by least squares, or by the
    /// largest magnitude alone, as ggml's plain quantiser does (the default: its error is larger, and the
    /// models it makes are better).
    #[serde(default)]
    pub least_squares: bool,
}

/// Serialises formats by their short names: `q4`, `q8` and `f16`.
mod short {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use sharp_quant::PackedFormat;

    pub(super) fn name(format: PackedFormat) -> &'static str {
        format.name().trim_end_matches("x16")
    }

    pub(super) fn serialize<S: Serializer>(format: &PackedFormat, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(name(*format))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<PackedFormat, D::Error> {
        let text = String::deserialize(d)?;
        PackedFormat::ALL
            .into_iter()
            .find(|f| name(*f) == text)
            .ok_or_else(|| D::Error::custom(format!("unknown format `{text}`: q4, q8 or f16")))
    }
}

impl Recipe {
    /// 4 bits for the layers; 8 for embedding, head and recovery factors, which cost little and matter more.
    pub fn q4() -> Self {
        Self::of("q4", PackedFormat::Q4, PackedFormat::Q8)
    }

    /// 8 bits throughout.
    pub fn q8() -> Self {
        Self::of("q8", PackedFormat::Q8, PackedFormat::Q8)
    }

    /// 16-bit floats throughout.
    pub fn f16() -> Self {
        Self::of("f16", PackedFormat::F16, PackedFormat::F16)
    }

    fn of(name: &str, layers: PackedFormat, rest: PackedFormat) -> Self {
        Self {
            name: name.to_owned(),
            attention: layers,
            mlp: layers,
            embedding: rest,
            head: rest,
            recovery: rest,
            least_squares: false,
        }
    }

    /// A preset by name (`q4`, `q8`, `f16`), or the TOML file of that path.
    ///
    /// # Errors
    /// [`Error::Recipe`] if it is neither, or the file is not a recipe.
    pub fn load(text: &str) -> Result<Self> {
        match text {
            "q4" => return Ok(Self::q4()),
            "q8" => return Ok(Self::q8()),
            "f16" => return Ok(Self::f16()),
            _ => {}
        }
        let what = |e: &dyn std::fmt::Display| Error::Recipe { what: format!("{text}: {e}") };
        let path = Path::new(text);
        if !path.is_file() {
            return Err(what(&"neither q4, q8 or f16 nor a file"));
        }
        let content = std::fs::read_to_string(path).map_err(|e| what(&e))?;
        toml::from_str(&content).map_err(|e| what(&e))
    }

    /// Reads the recipe of a packed file, and the number of tokens that it was rounded against.
    pub(crate) fn of_file(file: &PackedFile) -> Result<(Self, usize)> {
        let fault = |what: &dyn std::fmt::Display| Error::Recipe {
            what: format!("{}: {what}", file.path().display()),
        };
        let mut json = file.recipe().clone();
        let tokens = match json.as_object_mut().and_then(|fields| fields.remove(CALIBRATION_TOKENS)) {
            None => 0,
            Some(tokens) => serde_json::from_value(tokens).map_err(|e| fault(&e))?,
        };
        Ok((serde_json::from_value(json).map_err(|e| fault(&e))?, tokens))
    }

    /// Writes the recipe as [`Recipe::of_file`] reads it.
    pub(crate) fn to_json(&self, calibration_tokens: usize) -> Result<Value> {
        let mut json = serde_json::to_value(self).map_err(|e| Error::Recipe { what: e.to_string() })?;
        if calibration_tokens > 0 {
            json[CALIBRATION_TOKENS] = calibration_tokens.into();
        }
        Ok(json)
    }

    /// Returns the format that a tensor of this role is stored in.
    pub(crate) fn format_of(&self, role: Role) -> BlobFormat {
        match role {
            Role::Embedding => BlobFormat::Packed(self.embedding),
            Role::Head => BlobFormat::Packed(self.head),
            Role::Attention(_, Part::Weight) => BlobFormat::Packed(self.attention),
            Role::Mlp(_, Part::Weight | Part::Neurons) => BlobFormat::Packed(self.mlp),
            Role::Attention(_, Part::LoraA | Part::LoraB) | Role::Mlp(_, Part::LoraA | Part::LoraB) => {
                BlobFormat::Packed(self.recovery)
            }
            _ => BlobFormat::F32,
        }
    }

    /// Returns the rule for the block scales of weights that are rounded plainly.
    pub(crate) fn rule(&self) -> ScaleRule {
        if self.least_squares { ScaleRule::LeastSquares } else { ScaleRule::Max }
    }
}
