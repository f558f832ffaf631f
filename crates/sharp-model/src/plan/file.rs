//! Plan files, version 1: TOML that a person may edit, and the same keys as JSON in a compact checkpoint.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sharp_schema::{Form, suggest};

use super::{LayerChange, PLAN_VERSION, Plan, Ranks, Repair, Treatment};
use crate::error::{Error, Result};

const PLAN_KEYS: [&str; 3] = ["version", "strategy", "targets"];
const CHANGE_KEYS: [&str; 7] = ["layer", "reference", "form", "ranks", "neurons", "dropped", "reason"];
const RANK_KEYS: [&str; 3] = ["gate", "up", "down"];

/// The head of a plan file.
const COMMENT: &str = "\
# What each layer named here has in place of its own MLP, by `form`:
# none | low_rank | scaled_low_rank | row_column_scaled_low_rank: the MLP of the layer `reference`, so repaired;
# neurons: the MLP of the layer `reference` with `neurons` of its own MLP's neurons beside it;
# low_rank_only: a low-rank MLP; pruned: `neurons` of its own MLP's neurons; `dropped = true`: no MLP.
# Layers not named keep their own MLP. Edit freely; the plan is checked before it is used.

";

/// A plan as files have it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanFile {
    version: u32,
    #[serde(default)]
    strategy: String,
    #[serde(default)]
    targets: Vec<ChangeFile>,
}

/// A changed layer as files have it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeFile {
    layer: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference: Option<usize>,
    #[serde(default = "no_form")]
    form: Form,
    /// One number for all three, or a table `{ gate = 56, up = 56, down = 56 }`.
    #[serde(default, deserialize_with = "ranks")]
    ranks: Ranks,
    #[serde(default, skip_serializing_if = "is_zero")]
    neurons: usize,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    dropped: bool,
    #[serde(default)]
    reason: String,
}

fn no_form() -> Form {
    Form::None
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn ranks<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Ranks, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "ranks: a whole number, or { gate = .., up = .., down = .. }")]
    enum Written {
        One(usize),
        Each {
            #[serde(default)]
            gate: usize,
            #[serde(default)]
            up: usize,
            #[serde(default)]
            down: usize,
        },
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::One(rank) => Ranks::uniform(rank),
        Written::Each { gate, up, down } => Ranks { gate, up, down },
    })
}

impl From<Plan> for PlanFile {
    fn from(plan: Plan) -> Self {
        let targets = plan.changes.into_iter().map(ChangeFile::from).collect();
        Self { version: plan.version, strategy: plan.strategy, targets }
    }
}

impl From<LayerChange> for ChangeFile {
    fn from(LayerChange { layer, treatment, reason }: LayerChange) -> Self {
        let (form, dropped) = match treatment.form() {
            Form::Drop => (Form::None, true),
            form => (form, false),
        };
        let (reference, ranks, neurons) = (treatment.reference(), treatment.ranks(), treatment.neurons());
        Self { layer, reference, form, ranks, neurons, dropped, reason }
    }
}

impl TryFrom<PlanFile> for Plan {
    type Error = Error;

    fn try_from(file: PlanFile) -> Result<Self> {
        super::check_version(file.version)?;
        let changes = file.targets.into_iter().map(LayerChange::try_from).collect::<Result<_>>()?;
        Ok(Self { version: PLAN_VERSION, strategy: file.strategy, changes })
    }
}

impl TryFrom<ChangeFile> for LayerChange {
    type Error = Error;

    fn try_from(file: ChangeFile) -> Result<Self> {
        let fault = |what: &str| Err(Error::plan(Some(file.layer), what));
        let form = match (file.form, file.dropped) {
            (Form::Drop, _) => return fault("form `drop` is written `dropped = true`"),
            (Form::None, true) => Form::Drop,
            (Form::Pruned | Form::Neurons, true) => return fault("dropped, and yet it keeps neurons"),
            (_, true) => return fault("dropped, and yet it has recovery parameters"),
            (form, false) => form,
        };
        let treatment = Treatment::new(form, file.reference, file.ranks, file.neurons)
            .map_err(|e| e.in_layer(file.layer))?;
        Ok(Self { layer: file.layer, treatment, reason: file.reason })
    }
}

impl Plan {
    /// Reads a plan from TOML; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Malformed`] with line and column for bad TOML and wrong types; misspelt keys and forms are
    /// named with the nearest known one. [`Error::Plan`] for another version, and naming the layer for a
    /// combination of values that means nothing.
    pub fn from_toml(path: &Path, text: &str) -> Result<Self> {
        let table: toml::Table = toml::from_str(text).map_err(|e| Error::malformed(path, e))?;
        let value = serde_json::to_value(&table).map_err(Error::json(path))?;
        check_keys(path, &value)?;
        let file: PlanFile = toml::from_str(text).map_err(|e| Error::malformed(path, e))?;
        file.try_into()
    }

    /// Reads a plan from JSON, as in a compact checkpoint's `sharp_config`; `path` is for messages.
    ///
    /// # Errors
    /// As [`Plan::from_toml`], with [`Error::Json`] for wrong types.
    pub fn from_json_value(path: &Path, value: Value) -> Result<Self> {
        check_keys(path, &value)?;
        let file: PlanFile = serde_json::from_value(value).map_err(Error::json(path))?;
        file.try_into()
    }

    /// Writes the plan as TOML, one block a layer, with a comment that says what a person may change.
    pub fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let mut text = String::from(COMMENT);
        text += &format!("version = {}\nstrategy = {}\n", self.version, quoted(&self.strategy));
        if self.changes.is_empty() {
            text += "targets = []\n";
        }
        for LayerChange { layer, treatment, reason } in &self.changes {
            text += &format!("\n[[targets]]\nlayer = {layer}\n");
            if let Some(reference) = treatment.reference() {
                text += &format!("reference = {reference}\n");
            }
            match treatment {
                Treatment::Drop => text += "dropped = true\n",
                Treatment::Share { repair: Repair::Neurons { neurons }, .. }
                | Treatment::Prune { neurons } => {
                    text += &format!("form = \"{}\"\nneurons = {neurons}\n", treatment.form());
                }
                Treatment::Share { .. } | Treatment::LowRank { .. } => {
                    let Ranks { gate, up, down } = treatment.ranks();
                    text += &format!("form = \"{}\"\n", treatment.form());
                    text += &format!("ranks = {{ gate = {gate}, up = {up}, down = {down} }}\n");
                }
            }
            text += &format!("reason = {}\n", quoted(reason));
        }
        text
    }

    /// Reads a plan file.
    ///
    /// # Errors
    /// As [`Plan::from_toml`], and [`Error::Io`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_toml(path, &crate::checkpoint::hf::read_text(path, 16 << 20)?)
    }

    /// Writes a plan file; an existing one is replaced at once or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let text = self.to_toml();
        crate::checkpoint::atomic::write_atomic(path.as_ref(), |w| w.write_all(text.as_bytes()))
    }
}

/// Refuses unknown keys and forms by name, before serde does so without a suggestion.
fn check_keys(path: &Path, plan: &Value) -> Result<()> {
    let fault = |place: String, what: String| Err(Error::malformed(path, format!("{place}{what}")));
    let check = |place: &str, value: &Value, known: &[&str]| -> Result<()> {
        let unknown = value.as_object().and_then(|o| o.keys().find(|k| !known.contains(&k.as_str())));
        match unknown {
            Some(key) => fault(place.to_owned(), suggest::unknown("key", key, known)),
            None => Ok(()),
        }
    };
    check("", plan, &PLAN_KEYS)?;
    for (i, target) in plan.get("targets").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let place = match target.get("layer").and_then(Value::as_u64) {
            Some(layer) => format!("target layer {layer}: "),
            None => format!("target {}: ", i + 1),
        };
        check(&place, target, &CHANGE_KEYS)?;
        if let Some(ranks) = target.get("ranks") {
            check(&place, ranks, &RANK_KEYS)?;
        }
        if let Some(form) = target.get("form").and_then(Value::as_str)
            && let Err(unknown) = form.parse::<Form>()
        {
            return fault(place, unknown.to_string());
        }
    }
    Ok(())
}
