//! The values of keys that are neither numbers nor plain text.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use sharp_schema::suggest;

/// Reads a key that may be left out. `"none"` takes back what an extended file or a study's base says.
///
/// # Errors
/// For what is not a `T`. 0 and "" get their own message: they meant nothing given when the keys were flat.
pub(super) fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: for<'any> Deserialize<'any>,
{
    let value = toml::Value::deserialize(deserializer)?;
    if value.as_str() == Some("none") {
        return Ok(None);
    }
    if value.as_integer() == Some(0) || value.as_str() == Some("") {
        return Err(D::Error::custom(format!(
            "{value} is no value: leave the key out, or write \"none\" to take back what an extended file says"
        )));
    }
    T::deserialize(value).map(Some).map_err(|error| D::Error::custom(error.to_string().trim_end()))
}

/// Writes a key that [`optional`] reads and that has a default: leaving it out would give the default back.
pub(super) fn or_none<S: Serializer, T: Serialize>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(serializer),
        None => serializer.serialize_str("none"),
    }
}

/// Reads a value by its name, with a suggestion where there is no such name.
fn by_name<T: Copy>(kind: &str, typed: &str, all: &[(&str, T)]) -> Result<T, String> {
    let found = all.iter().find(|(name, _)| *name == typed);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        suggest::unknown(kind, typed, &names)
    })
}

/// Says what each matrix of a packed file becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Recipe {
    /// 4 bits, the embedding in 8.
    Q4,
    /// 8 bits.
    Q8,
    /// 16-bit floating point: nothing is quantised.
    F16,
    /// A TOML file that says what each kind of matrix becomes.
    File(String),
}

impl Recipe {
    /// Returns the precision that rows of the evaluation are named after: the recipe's name, or its file's.
    pub fn precision(&self) -> String {
        match self {
            Self::File(path) => {
                std::path::Path::new(path).file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
            named => named.to_string(),
        }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q4 => "q4",
            Self::Q8 => "q8",
            Self::F16 => "f16",
            Self::File(path) => path,
        })
    }
}

impl TryFrom<String> for Recipe {
    type Error = String;

    fn try_from(typed: String) -> Result<Self, String> {
        if typed.ends_with(".toml") {
            return Ok(Self::File(typed));
        }
        match typed.as_str() {
            "q4" => Ok(Self::Q4),
            "q8" => Ok(Self::Q8),
            "f16" => Ok(Self::F16),
            _ => Err(suggest::unknown("recipe", &typed, &["q4", "q8", "f16"])),
        }
    }
}

impl From<Recipe> for String {
    fn from(recipe: Recipe) -> Self {
        recipe.to_string()
    }
}

/// Says where training computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// A GPU where libtorch has one, otherwise the processor.
    Auto,
    /// The processor.
    Cpu,
    /// The first GPU.
    Cuda,
    /// The GPU of this number.
    CudaIndex(u8),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda => f.write_str("cuda"),
            Self::CudaIndex(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(typed: String) -> Result<Self, String> {
        if let Some(index) = typed.strip_prefix("cuda:").and_then(|index| index.parse().ok()) {
            return Ok(Self::CudaIndex(index));
        }
        by_name("device", &typed, &[("auto", Self::Auto), ("cpu", Self::Cpu), ("cuda", Self::Cuda)])
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

/// A row of the evaluation: a model that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Row {
    /// The original.
    Original,
    /// The plan without any training.
    Untrained,
    /// After the warm-up alone (SLW).
    Slw,
    /// After fine-tuning without the warm-up (SFT).
    Sft,
    /// After both.
    SlwSft,
    /// The packed file before its rounding is repaired.
    UnrepairedQ4,
    /// The packed file.
    SlwSftQ4,
    /// The original, packed alike.
    OriginalQ4,
}

impl Row {
    /// All rows, in the order of the report.
    pub const ALL: [Self; 8] = [
        Self::Original,
        Self::Untrained,
        Self::Slw,
        Self::Sft,
        Self::SlwSft,
        Self::UnrepairedQ4,
        Self::SlwSftQ4,
        Self::OriginalQ4,
    ];

    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Untrained => "untrained",
            Self::Slw => "slw",
            Self::Sft => "sft",
            Self::SlwSft => "slw_sft",
            Self::UnrepairedQ4 => "unrepaired_q4",
            Self::SlwSftQ4 => "slw_sft_q4",
            Self::OriginalQ4 => "original_q4",
        }
    }

    /// Its name in `results.json`, where a packed row ends with its real precision and `untrained` is
    /// `direct`.
    pub fn result_name(self, precision: &str) -> String {
        match self {
            Self::Untrained => "direct".to_owned(),
            row => row.name().replace("_q4", &format!("_{precision}")),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        // What `untrained` was called before.
        let typed = if typed == "direct" { "untrained" } else { typed };
        by_name("row", typed, &Self::ALL.map(|row| (row.name(), row)))
    }
}

impl TryFrom<String> for Row {
    type Error = String;

    fn try_from(typed: String) -> Result<Self, String> {
        typed.parse()
    }
}

impl From<Row> for String {
    fn from(row: Row) -> Self {
        row.name().to_owned()
    }
}
