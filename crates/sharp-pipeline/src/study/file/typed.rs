//! A study's file as it is typed, and what in it cannot be meant.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sharp_schema::suggest;

use crate::config::{Row, check_keys, dotted_keys};
use crate::error::{Context as _, Result, bail};

/// The file as typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StudyFile {
    pub(super) base: PathBuf,
    #[serde(default = "one_seed")]
    pub(super) seeds: Vec<u64>,
    #[serde(default)]
    pub(super) until: Until,
    #[serde(default)]
    pub(super) set: toml::Table,
    #[serde(default)]
    pub(super) axes: Vec<Axis>,
    #[serde(default)]
    pub(super) when: Vec<When>,
    #[serde(default)]
    pub(super) plot: Plot,
}

fn one_seed() -> Vec<u64> {
    vec![1]
}

/// One thing that differs between cells.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Axis {
    pub(super) name: String,
    pub(super) values: Vec<Value>,
}

/// One of the values of an axis: a name, and the configuration keys that make it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Value {
    pub(super) name: String,
    #[serde(default)]
    pub(super) set: toml::Table,
}

/// Keys for the cells that have these values: what a combination needs, laid over what its values say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct When {
    pub(super) is: BTreeMap<String, String>,
    pub(super) set: toml::Table,
}

/// How far every cell goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// The rows of the evaluation are measured.
    #[default]
    Evaluate,
    /// Fine-tuning measures its own result; nothing is exported.
    Finetune,
}

/// What the picture shows.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plot {
    /// The axis with a line for each of its values; the first by default.
    pub lines: String,
    /// The axis with a panel for each of its values; all cells are in one panel by default.
    pub panels: Option<String>,
    /// What the points are placed by.
    pub x: X,
    /// Rows of the evaluation that are drawn; `slw_sft` by default.
    pub rows: Vec<Row>,
}

/// What a picture's points are placed by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum X {
    /// Stored MLP parameters.
    #[default]
    Parameters,
    /// Tokens of the fine-tuning.
    Tokens,
}

/// Refuses what cannot be meant, naming the place.
pub(super) fn check(read: &StudyFile) -> Result<()> {
    check_keys(&read.set).context("[set]")?;
    if read.axes.is_empty() {
        bail!("axes: there are none; an [[axes]] with a name and [[axes.values]] says what is compared");
    }
    if read.seeds.is_empty() || read.seeds.contains(&0) {
        bail!("seeds: a list of numbers from 1, for example [1, 2]");
    }
    distinct("seeds", &read.seeds)?;
    let axes: Vec<&str> = read.axes.iter().map(|axis| axis.name.as_str()).collect();
    distinct("axes", &axes)?;
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for axis in &read.axes {
        check_name("axes", &axis.name)?;
        let place = format!("the axis {:?}", axis.name);
        if axis.values.is_empty() {
            bail!("{place}: it has no [[axes.values]]");
        }
        distinct(&place, &axis.values.iter().map(|value| value.name.as_str()).collect::<Vec<_>>())?;
        for value in &axis.values {
            check_name(&place, &value.name)?;
            check_keys(&value.set).with_context(|| format!("{place}, value {:?}", value.name))?;
            for key in dotted_keys(&value.set) {
                let owner = owners.entry(key.clone()).or_insert(&axis.name);
                if *owner != axis.name {
                    bail!(
                        "{place}: {key} is set by the axis {owner:?} too, and one would hide the other; a [[when]] sets \
                         what a combination needs"
                    );
                }
            }
        }
    }
    for when in &read.when {
        check_keys(&when.set).context("[[when]]")?;
        for (name, value) in &when.is {
            let Some(axis) = read.axes.iter().find(|axis| axis.name == *name) else {
                bail!("[[when]]: there is no axis {name:?}{}", suggest::hint(name, &axes))
            };
            let values: Vec<&str> = axis.values.iter().map(|value| value.name.as_str()).collect();
            if !values.contains(&value.as_str()) {
                bail!("[[when]]: the axis {name:?} has no value {value:?}{}", suggest::hint(value, &values));
            }
        }
    }
    let mut everywhere = vec![&read.set];
    everywhere.extend(read.axes.iter().flat_map(|axis| axis.values.iter().map(|value| &value.set)));
    everywhere.extend(read.when.iter().map(|when| &when.set));
    if everywhere.iter().any(|set| dotted_keys(set).iter().any(|key| key == "training.seed")) {
        bail!("training.seed: the study sets it for each cell; write seeds = [1, 2] instead");
    }
    if !read.plot.lines.is_empty() && !axes.contains(&read.plot.lines.as_str()) {
        bail!("plot.lines: there is no axis {:?}{}", read.plot.lines, suggest::hint(&read.plot.lines, &axes));
    }
    if let Some(panels) = read.plot.panels.as_deref().filter(|panels| !axes.contains(panels)) {
        bail!("plot.panels: there is no axis {panels:?}{}", suggest::hint(panels, &axes));
    }
    Ok(())
}

/// Insists on a name that can be part of a folder's.
fn check_name(place: &str, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        bail!("{place}: {name:?} is not a name (letters, digits, -, _ and ., and no . at its beginning)");
    }
    Ok(())
}

fn distinct<T: PartialEq + std::fmt::Debug>(place: &str, names: &[T]) -> Result<()> {
    match names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        Some((_, twice)) => bail!("{place}: {twice:?} is there twice"),
        None => Ok(()),
    }
}
