//! RoPE: how queries and keys are turned, and how its frequencies are stretched for long contexts.

use std::f64::consts::PI;

use serde_json::{Value, json};

use super::keys::{Keys, MAX_POSITIONS};
use crate::error::{Error, Result};
use crate::family::Family;

/// How RoPE's frequencies are stretched for contexts longer than those the model was first trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1's: high frequencies stay, low ones are divided by `factor`, between them a smooth passage.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Context length before stretching, in tokens.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// The value of `rope_scaling` in `config.json`.
    pub(super) fn to_json(self) -> Value {
        match self {
            RopeScaling::Default => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        }
    }
}

/// Returns RoPE's angles per position without scaling, `(width / 2)`, in radians, for heads of `width`.
pub(super) fn plain_inv_freq(theta: f64, width: usize) -> impl Iterator<Item = f64> {
    (0..width / 2).map(move |i| theta.powf(-2.0 * i as f64 / width as f64))
}

impl RopeScaling {
    /// Stretches one of [`plain_inv_freq`]'s angles.
    pub(super) fn stretch(self, freq: f64) -> f64 {
        match self {
            Self::Default => freq,
            Self::Linear { factor } => freq / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                // How often the pair turns within the original context.
                let turns = original_max_position_embeddings as f64 * freq / (2.0 * PI);
                if turns > high_freq_factor {
                    freq
                } else if turns < low_freq_factor {
                    freq / factor
                } else {
                    let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    keep * freq + (1.0 - keep) * freq / factor
                }
            }
        }
    }
}

/// What `config.json` says of RoPE.
pub(super) struct Rope {
    /// Base of the frequencies.
    pub(super) theta: f64,
    /// How the frequencies are stretched.
    pub(super) scaling: RopeScaling,
    /// Base in the layers that have one of their own.
    pub(super) local: Option<f64>,
}

/// Reads RoPE's base and scaling, from transformers 4's keys or transformers 5's `rope_parameters`.
/// `positions` is the context length where the scaling names none.
pub(super) fn rope(keys: &Keys<'_>, family: &Family, positions: usize) -> Result<Rope> {
    let field = if keys.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let theta = keys.positive("rope_theta", Some(family.default_rope_theta))?;
    let mut local = match family.default_local_rope_theta {
        None => None,
        default => Some(keys.positive("rope_local_base_freq", default)?),
    };
    let Some(value) = keys.get(field) else {
        return Ok(Rope { theta, scaling: RopeScaling::Default, local });
    };
    let Some(mut map) = value.as_object() else {
        return Err(keys.fault(field, format!("{value} is not an object")));
    };
    // One for layers of each type, in the families that have two.
    if let (Some(_), Some(global)) = (local, map.get("full_attention").and_then(Value::as_object)) {
        if let Some(sliding) = map.get("sliding_attention").and_then(Value::as_object) {
            local = Some(Keys { path: keys.path, raw: sliding }.positive("rope_theta", local)?);
        }
        map = global;
    }
    let inner = Keys { path: keys.path, raw: map };
    let theta = inner.positive("rope_theta", Some(theta))?;
    let kind =
        inner.get("rope_type").or_else(|| inner.get("type")).and_then(Value::as_str).unwrap_or("default");
    let stretch = |key: &str| match inner.positive(key, None) {
        Ok(x) if x >= 1.0 => Ok(x),
        Ok(x) => Err(keys.fault(field, format!("`{key}` is {x}, below 1"))),
        Err(_) => Err(keys.fault(field, format!("`{key}` is missing or not a positive number"))),
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: stretch("factor")? },
        "llama3" => {
            let low_freq_factor = inner.positive("low_freq_factor", None)?;
            let high_freq_factor = inner.positive("high_freq_factor", None)?;
            if high_freq_factor <= low_freq_factor {
                return Err(keys.fault(
                    field,
                    format!(
                        "high_freq_factor {high_freq_factor} is not above low_freq_factor {low_freq_factor}"
                    ),
                ));
            }
            RopeScaling::Llama3 {
                factor: stretch("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: inner
                    .optional_size("original_max_position_embeddings", MAX_POSITIONS)?
                    .unwrap_or(positions),
            }
        }
        other => {
            return Err(Error::unsupported(
                keys.path,
                format!("RoPE scaling `{other}`; known are default, linear, llama3"),
            ));
        }
    };
    Ok(Rope { theta, scaling, local })
}
