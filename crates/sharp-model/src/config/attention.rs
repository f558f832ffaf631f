//! Which layers have RoPE and windows, and a model's constant factors, read from `config.json` as its family
//! says.

use serde_json::Value;

use super::keys::Keys;
use crate::error::{Error, Result};
use crate::family::{Family, Scale, Windows};

/// How a layer's queries and keys are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotary {
    /// Not at all.
    None,
    /// By the model's RoPE.
    Global,
    /// By RoPE of another base, without scaling ([`crate::ModelConfig::local_rope_theta`]).
    Local,
}

/// What a layer's attention does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerKind {
    /// How queries and keys are turned.
    pub rotary: Rotary,
    /// Positions a query sees, its own and those before it; all of them where there is no window.
    pub window: Option<usize>,
}

impl LayerKind {
    /// Llama's: RoPE and no window.
    pub const PLAIN: Self = Self { rotary: Rotary::Global, window: None };
}

/// Constant factors and caps of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multipliers {
    /// What embeddings are multiplied by.
    pub embedding: f64,
    /// What attention's and the MLP's outputs are multiplied by before they are added to the residual
    /// stream.
    pub residual: f64,
    /// What scores of queries and keys are multiplied by.
    pub attention: f64,
    /// What logits are divided by.
    pub logits: f64,
    /// `c` of `c tanh(score / c)`.
    pub attention_cap: Option<f64>,
    /// `c` of `c tanh(logit / c)`.
    pub logit_cap: Option<f64>,
}

impl Multipliers {
    /// Llama's: scores by `1 / sqrt(head_dim)`, the rest as it is.
    pub fn plain(head_dim: usize) -> Self {
        let attention = 1.0 / (head_dim as f64).sqrt();
        Self { embedding: 1.0, residual: 1.0, attention, logits: 1.0, attention_cap: None, logit_cap: None }
    }
}

pub(crate) fn scales(
    keys: &Keys<'_>,
    family: &Family,
    hidden: usize,
    head_dim: usize,
) -> Result<Multipliers> {
    let plain = Multipliers::plain(head_dim);
    let read = |scale: Scale, plain: f64| match scale {
        Scale::Plain => Ok(plain),
        Scale::Key(key) => keys.positive(key, Some(1.0)),
        Scale::RootOfHidden => Ok((hidden as f64).sqrt()),
        Scale::InverseRootOf(key, default) => Ok(1.0 / keys.positive(key, Some(default))?.sqrt()),
    };
    let cap = |key: &str, default: Option<f64>| match (family.caps, keys.raw.get(key)) {
        (None, _) | (Some(_), Some(Value::Null)) => Ok(None),
        (Some(_), None) => Ok(default),
        (Some(_), Some(_)) => keys.positive(key, None).map(Some),
    };
    let defaults = family.caps.unwrap_or_default();
    Ok(Multipliers {
        embedding: read(family.embedding_scale, plain.embedding)?,
        residual: read(family.residual_scale, plain.residual)?,
        attention: read(family.attention_scale, plain.attention)?,
        logits: read(family.logits_scale, plain.logits)?,
        attention_cap: cap("attn_logit_softcapping", defaults.attention)?,
        logit_cap: cap("final_logit_softcapping", defaults.logits)?,
    })
}

/// Each layer's kind.
pub(crate) fn layer_kinds(keys: &Keys<'_>, family: &Family, layers: usize) -> Result<Vec<LayerKind>> {
    let rotated = rotated(keys, family, layers)?;
    let window = window(keys, family)?;
    let listed = match family.windows {
        Windows::Never | Windows::Every => None,
        _ => listed(keys, layers)?,
    };
    let switched = || Ok::<_, Error>(keys.bool("use_sliding_window")?.unwrap_or(false));
    let (switch, from, every) = match family.windows {
        Windows::Never => (false, 0, 0),
        Windows::Every => (true, 0, 0),
        Windows::FromLayer(default) => {
            let from = match keys.get("max_window_layers") {
                None => default,
                Some(n) => n.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
                    keys.fault("max_window_layers", format!("{n} is not a number of layers"))
                })?,
            };
            (switched()?, from, 0)
        }
        Windows::Unrotated => (switched()?, 0, 0),
        Windows::AllButEvery(default) => {
            (true, 0, keys.optional_size("sliding_window_pattern", usize::MAX)?.unwrap_or(default))
        }
    };
    Ok(rotated
        .into_iter()
        .enumerate()
        .map(|(i, rotated)| {
            let narrow = match (&listed, family.windows) {
                (Some(listed), _) => listed.get(i).copied().unwrap_or(false),
                (None, Windows::Unrotated) => !rotated,
                (None, Windows::AllButEvery(_)) => !(i + 1).is_multiple_of(every),
                (None, _) => i >= from,
            };
            let rotary = match (rotated, narrow && family.default_local_rope_theta.is_some()) {
                (false, _) => Rotary::None,
                (true, true) => Rotary::Local,
                (true, false) => Rotary::Global,
            };
            LayerKind { rotary, window: window.filter(|_| switch && narrow) }
        })
        .collect())
}

/// The window's width, whichever layers have it.
fn window(keys: &Keys<'_>, family: &Family) -> Result<Option<usize>> {
    match keys.raw.get("sliding_window") {
        None => Ok(family.default_window),
        Some(_) => keys.optional_size("sliding_window", usize::MAX),
    }
}

/// Which layers `layer_types` says have windows; nothing where there is no such key.
fn listed(keys: &Keys<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(types) = keys.get("layer_types") else { return Ok(None) };
    let narrow = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(Error::unsupported(keys.path, format!("a layer of type {kind} in `layer_types`"))),
    };
    let types = types.as_array().map(Vec::as_slice).unwrap_or_default();
    if types.len() != layers {
        return Err(keys.fault("layer_types", format!("{} types for {layers} layers", types.len())));
    }
    types.iter().map(narrow).collect::<Result<_>>().map(Some)
}

/// Which layers turn queries and keys.
fn rotated(keys: &Keys<'_>, family: &Family, layers: usize) -> Result<Vec<bool>> {
    let Some(default) = family.unrotated_every else { return Ok(vec![true; layers]) };
    // The key's name notwithstanding, 1 stands for a layer with RoPE.
    if let Some(list) = keys.get("no_rope_layers").filter(|l| l.as_array().is_none_or(|l| !l.is_empty())) {
        let flags = list.as_array().and_then(|l| l.iter().map(flag).collect::<Option<Vec<_>>>());
        return match flags {
            Some(flags) if flags.len() >= layers => Ok(flags.into_iter().take(layers).collect()),
            _ => Err(keys.fault("no_rope_layers", format!("not a list of 0 and 1 for {layers} layers"))),
        };
    }
    let every = keys.optional_size("no_rope_layer_interval", usize::MAX)?.unwrap_or(default);
    Ok((1..=layers).map(|n| !n.is_multiple_of(every)).collect())
}

fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        other => other.as_u64().filter(|n| *n < 2).map(|n| n == 1),
    }
}
