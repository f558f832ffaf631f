//! The sharing plan: which layer runs with which layer's MLP, and what repairs the difference.
//!
//! A plan is a TOML file that a person may read and edit; inside a compact checkpoint it is the `sharp_config` of
//! `config.json`. Nothing in it is a tensor.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sharp_quant::DType;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::family;
use crate::names::Projection;
use crate::suggest;

/// The plan version this crate reads and writes.
pub const PLAN_VERSION: u32 = 1;

/// How a target layer's MLP is made from its reference's. `W` is a projection's weight `(out, in)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryForm {
    /// `W_ref`: direct sharing, nothing repaired.
    #[default]
    None,
    /// `W_ref + B A`: the paper's form (Wang et al., arXiv 2502.07832).
    LowRank,
    /// `diag(row_scale) W_ref + B A`.
    ScaledLowRank,
    /// `diag(row_scale) W_ref diag(col_scale) + B A`.
    RowColumnScaledLowRank,
    /// `B A`, nothing shared: the baseline of low rank alone.
    LowRankOnly,
    /// The layer's own MLP with [`Target::neurons`] of its neurons, nothing shared: structured pruning.
    Pruned,
}

impl RecoveryForm {
    /// All forms.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::LowRank,
        Self::ScaledLowRank,
        Self::RowColumnScaledLowRank,
        Self::LowRankOnly,
        Self::Pruned,
    ];

    /// The name in plans: `none`, `low_rank`, `scaled_low_rank`, `row_column_scaled_low_rank`, `low_rank_only`, `pruned`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::LowRank => "low_rank",
            Self::ScaledLowRank => "scaled_low_rank",
            Self::RowColumnScaledLowRank => "row_column_scaled_low_rank",
            Self::LowRankOnly => "low_rank_only",
            Self::Pruned => "pruned",
        }
    }

    /// Whether it has a `row_scale (out)`.
    pub fn row_scaled(self) -> bool {
        matches!(self, Self::ScaledLowRank | Self::RowColumnScaledLowRank)
    }

    /// Whether it has a `col_scale (in)`.
    pub fn column_scaled(self) -> bool {
        self == Self::RowColumnScaledLowRank
    }

    /// Whether it uses a reference layer's weights.
    pub fn shares(self) -> bool {
        !matches!(self, Self::LowRankOnly | Self::Pruned)
    }
}

impl std::str::FromStr for RecoveryForm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::name);
        Self::ALL
            .into_iter()
            .find(|f| f.name() == text)
            .ok_or_else(|| Error::plan(None, suggest::unknown("recovery form", text, &names)))
    }
}

impl std::fmt::Display for RecoveryForm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Rank `r` of `A (r, in)` and `B (out, r)` for each projection; 0: none.
///
/// In a plan either one number for all three or a table `{ gate = 56, up = 56, down = 56 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub struct Ranks {
    /// Of the gate projection.
    pub gate: usize,
    /// Of the up projection.
    pub up: usize,
    /// Of the down projection.
    pub down: usize,
}

impl Ranks {
    /// The same rank for all three.
    pub fn uniform(rank: usize) -> Self {
        Self { gate: rank, up: rank, down: rank }
    }

    /// A projection's rank.
    pub fn of(&self, projection: Projection) -> usize {
        match projection {
            Projection::Gate => self.gate,
            Projection::Up => self.up,
            Projection::Down => self.down,
        }
    }
}

impl<'de> Deserialize<'de> for Ranks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "ranks: a whole number, or { gate = .., up = .., down = .. }")]
        enum Form {
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
        Ok(match Form::deserialize(deserializer)? {
            Form::One(rank) => Self::uniform(rank),
            Form::Each { gate, up, down } => Self { gate, up, down },
        })
    }
}

/// One layer that gives up its own MLP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The layer, from 0.
    pub layer: usize,
    /// Whose MLP it runs with; none for the forms that share nothing and for dropped layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<usize>,
    /// How the reference is repaired.
    #[serde(default)]
    pub form: RecoveryForm,
    /// Ranks of the repair.
    #[serde(default)]
    pub ranks: Ranks,
    /// How many of its own neurons the MLP keeps, for [`RecoveryForm::Pruned`]; 0 with every other form.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub neurons: usize,
    /// Whether the MLP is simply left out (the layer-pruning baseline): its output is zero.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
    /// Why, in plain words, with the numbers it was decided by.
    #[serde(default)]
    pub reason: String,
}

impl Target {
    /// A layer that runs with `reference`'s MLP.
    pub fn sharing(layer: usize, reference: usize, form: RecoveryForm, ranks: Ranks) -> Self {
        Self { reference: Some(reference), form, ranks, ..Self::bare(layer) }
    }

    /// A layer whose MLP is replaced by a low-rank one, nothing shared.
    pub fn low_rank_only(layer: usize, ranks: Ranks) -> Self {
        Self { form: RecoveryForm::LowRankOnly, ranks, ..Self::bare(layer) }
    }

    /// A layer that keeps `neurons` of its MLP's neurons.
    pub fn pruned(layer: usize, neurons: usize) -> Self {
        Self { form: RecoveryForm::Pruned, neurons, ..Self::bare(layer) }
    }

    /// A layer without an MLP.
    pub fn dropped(layer: usize) -> Self {
        Self { dropped: true, ..Self::bare(layer) }
    }

    fn bare(layer: usize) -> Self {
        let (form, ranks) = (RecoveryForm::None, Ranks::default());
        Self { layer, reference: None, form, ranks, neurons: 0, dropped: false, reason: String::new() }
    }

    /// The same with a reason.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// How much it stores of its own, for people: ranks of gate, up and down, or neurons.
    pub fn size(&self) -> String {
        let Ranks { gate, up, down } = self.ranks;
        match self.is_pruned() {
            true => format!("{} neurons", self.neurons),
            false => format!("{gate}/{up}/{down}"),
        }
    }

    /// Whether the layer stores MLP weights of its own, though fewer: [`RecoveryForm::Pruned`].
    pub fn is_pruned(&self) -> bool {
        self.form == RecoveryForm::Pruned
    }

    /// `(out, in)` of a projection as this layer computes it: the model's shape, or fewer neurons.
    pub fn shape(&self, projection: Projection, config: &ModelConfig) -> (usize, usize) {
        match (self.is_pruned(), projection) {
            (false, _) => projection.shape(config),
            (true, Projection::Gate | Projection::Up) => (self.neurons, config.hidden_size),
            (true, Projection::Down) => (config.hidden_size, self.neurons),
        }
    }

    /// Parameters this layer stores of its own: low-rank factors and scales, or the neurons it keeps.
    pub fn recovery_parameters(&self, config: &ModelConfig) -> u64 {
        Projection::ALL
            .into_iter()
            .map(|p| {
                let (out, input) = self.shape(p, config);
                if self.is_pruned() {
                    return out as u64 * input as u64;
                }
                let rank = self.ranks.of(p) as u64;
                let mut n = rank * (out as u64 + input as u64);
                if self.form.row_scaled() {
                    n += out as u64;
                }
                if self.form.column_scaled() {
                    n += input as u64;
                }
                n
            })
            .sum()
    }
}

/// Which layers run with which layers' MLPs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharingPlan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// What decided it: a strategy's name, or `explicit`.
    #[serde(default)]
    pub strategy: String,
    /// The layers that give up their MLP, in any order.
    #[serde(default)]
    pub targets: Vec<Target>,
}

/// What a plan costs and saves, before anything runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// MLP weights of the original.
    pub original_mlp_parameters: u64,
    /// MLP weights kept plus recovery parameters.
    pub stored_mlp_parameters: u64,
    /// What the targets store of their own: recovery parameters, and neurons kept.
    pub recovery_parameters: u64,
    /// `1 - stored / original`, of the MLP weights.
    pub saved_fraction: f64,
    /// All weights of the original; a tied head counts once.
    pub original_parameters: u64,
    /// All weights stored under the plan.
    pub stored_parameters: u64,
    /// Bytes of the original's weights in the given type.
    pub original_bytes: u64,
    /// Bytes of the stored weights in the given type (scales in float32).
    pub stored_bytes: u64,
}

impl SharingPlan {
    /// A plan of this version.
    pub fn new(strategy: impl Into<String>, targets: Vec<Target>) -> Self {
        Self { version: PLAN_VERSION, strategy: strategy.into(), targets }
    }

    /// The target entry of a layer; `None` for a layer that keeps its MLP.
    pub fn target(&self, layer: usize) -> Option<&Target> {
        self.targets.iter().find(|t| t.layer == layer)
    }

    /// The layer whose stored MLP weights a layer runs with: its reference, or itself.
    pub fn source_of(&self, layer: usize) -> usize {
        self.target(layer).and_then(|t| t.reference).unwrap_or(layer)
    }

    /// Whether a layer's own MLP weights are stored.
    pub fn keeps_mlp(&self, layer: usize) -> bool {
        self.target(layer).is_none()
    }

    /// The reference layers and the targets that use each, by layer.
    pub fn groups(&self) -> Vec<(usize, Vec<usize>)> {
        let references: BTreeSet<usize> = self.targets.iter().filter_map(|t| t.reference).collect();
        references
            .into_iter()
            .map(|r| {
                let mut users: Vec<usize> =
                    self.targets.iter().filter(|t| t.reference == Some(r)).map(|t| t.layer).collect();
                users.sort_unstable();
                (r, users)
            })
            .collect()
    }

    /// Checks that the plan can be carried out on a model.
    ///
    /// # Errors
    /// [`Error::Plan`] for the first fault: an unknown version, a layer out of range or named twice, a reference that
    /// is itself a target, ranks above `min(d, f)`, or a form without what it needs.
    pub fn validate(&self, config: &ModelConfig) -> Result<()> {
        if self.version != PLAN_VERSION {
            let what = format!("version {}; this program reads version {PLAN_VERSION}", self.version);
            return Err(Error::plan(None, what));
        }
        let mut seen = BTreeSet::new();
        for target in &self.targets {
            if !seen.insert(target.layer) {
                return Err(Error::plan(Some(target.layer), "named twice"));
            }
        }
        for target in &self.targets {
            validate_target(target, config).map_err(|what| Error::plan(Some(target.layer), what))?;
            if let Some(reference) = target.reference
                && seen.contains(&reference)
            {
                let what =
                    format!("its reference {reference} is a target too; a reference must keep its own MLP");
                return Err(Error::plan(Some(target.layer), what));
            }
        }
        Ok(())
    }

    /// MLP weights of the original model.
    pub fn original_mlp_parameters(&self, config: &ModelConfig) -> u64 {
        config.num_hidden_layers as u64 * config.mlp_parameters_per_layer()
    }

    /// What all targets store of their own: low-rank factors, scales and neurons kept.
    pub fn recovery_parameters(&self, config: &ModelConfig) -> u64 {
        self.targets.iter().map(|t| t.recovery_parameters(config)).sum()
    }

    /// MLP weights that are stored: those of the layers that keep theirs, and the recovery parameters.
    pub fn stored_mlp_parameters(&self, config: &ModelConfig) -> u64 {
        let kept = (0..config.num_hidden_layers).filter(|&l| self.keeps_mlp(l)).count() as u64;
        kept * config.mlp_parameters_per_layer() + self.recovery_parameters(config)
    }

    /// `1 - stored / original` MLP parameters (the paper's "saved", 0.38 to 0.65 there).
    pub fn saved_fraction(&self, config: &ModelConfig) -> f64 {
        1.0 - self.stored_mlp_parameters(config) as f64 / self.original_mlp_parameters(config) as f64
    }

    /// Parameters and bytes before and after, stored as `dtype`.
    ///
    /// # Errors
    /// [`Error::Plan`] if the plan does not fit the model, [`Error::Quant`] if `dtype` cannot hold a shape.
    pub fn estimate(&self, config: &ModelConfig, dtype: DType) -> Result<Estimate> {
        self.validate(config)?;
        let (mut original, mut stored) = (0u64, 0u64);
        let (mut original_bytes, mut stored_bytes) = (0u64, 0u64);
        for (_, layer, info) in family::tensors_of(config, dtype) {
            let n = info.elements()?;
            // Norms and biases stay in a float type whatever the weights are in.
            let own = if info.shape.len() < 2 && dtype.block_len() > 1 { DType::F32 } else { dtype };
            let bytes = own.nbytes(n)? as u64;
            original += n as u64;
            original_bytes += bytes;
            let given_up = layer.is_some_and(|l| !self.keeps_mlp(l))
                && crate::names::parse_mlp_weight(&info.name).is_some();
            if !given_up {
                stored += n as u64;
                stored_bytes += bytes;
            }
        }
        for target in &self.targets {
            let all = target.recovery_parameters(config);
            // Scales stay in float32; everything else is matrices.
            let factors = match target.form {
                RecoveryForm::Pruned => all,
                _ => Target { form: RecoveryForm::LowRank, ..target.clone() }.recovery_parameters(config),
            };
            stored += all;
            stored_bytes +=
                factors * dtype.block_bytes() as u64 / dtype.block_len() as u64 + 4 * (all - factors);
        }
        Ok(Estimate {
            original_mlp_parameters: self.original_mlp_parameters(config),
            stored_mlp_parameters: self.stored_mlp_parameters(config),
            recovery_parameters: self.recovery_parameters(config),
            saved_fraction: self.saved_fraction(config),
            original_parameters: original,
            stored_parameters: stored,
            original_bytes,
            stored_bytes,
        })
    }

    /// Reads a plan from TOML; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Malformed`] with line and column for bad TOML and wrong types; misspelt keys and forms are named with
    /// the nearest known one.
    pub fn from_toml(path: &Path, text: &str) -> Result<Self> {
        let table: toml::Table = toml::from_str(text).map_err(|e| Error::malformed(path, e))?;
        let value = serde_json::to_value(&table).map_err(Error::json(path))?;
        check_keys(path, &value)?;
        toml::from_str(text).map_err(|e| Error::malformed(path, e))
    }

    /// Reads a plan from JSON, as in a compact checkpoint's `sharp_config`; `path` is for messages.
    ///
    /// # Errors
    /// As [`SharingPlan::from_toml`].
    pub fn from_json_value(path: &Path, value: Value) -> Result<Self> {
        check_keys(path, &value)?;
        serde_json::from_value(value).map_err(Error::json(path))
    }

    /// The plan as TOML, one block a target, with a comment that says what a person may change.
    pub fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let mut text = String::from(
            "# Sharing plan: each target layer runs with its reference layer's MLP, repaired as `form` says:\n\
             # none | low_rank | scaled_low_rank | row_column_scaled_low_rank; or, without a reference, with\n\
             # low_rank_only, or pruned: `neurons` of its own MLP's neurons.\n\
             # Layers not named keep their own MLP. Edit freely; the plan is checked before it is used.\n\n",
        );
        text += &format!("version = {}\nstrategy = {}\n", self.version, quoted(&self.strategy));
        if self.targets.is_empty() {
            text += "targets = []\n";
        }
        for target in &self.targets {
            text += &format!("\n[[targets]]\nlayer = {}\n", target.layer);
            if let Some(reference) = target.reference {
                text += &format!("reference = {reference}\n");
            }
            if target.dropped {
                text += "dropped = true\n";
            } else if target.is_pruned() {
                text += &format!("form = \"{}\"\nneurons = {}\n", target.form, target.neurons);
            } else {
                let Ranks { gate, up, down } = target.ranks;
                text += &format!("form = \"{}\"\n", target.form);
                text += &format!("ranks = {{ gate = {gate}, up = {up}, down = {down} }}\n");
            }
            text += &format!("reason = {}\n", quoted(&target.reason));
        }
        text
    }

    /// Reads a plan file.
    ///
    /// # Errors
    /// As [`SharingPlan::from_toml`], and [`Error::Io`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_toml(path, &crate::hf::read_text(path, 16 << 20)?)
    }

    /// Writes a plan file; an existing one is replaced at once or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let text = self.to_toml();
        crate::atomic::write_atomic(path.as_ref(), |w| w.write_all(text.as_bytes()))
    }
}

/// The rank at which recovery on all three projections costs the fraction `rho` of one MLP:
/// `rho = r (d + f) / (d f)`. The paper's figures follow from 0.134.
pub fn rank_for_rho(config: &ModelConfig, rho: f64) -> usize {
    let (d, f) = (config.hidden_size as f64, config.intermediate_size as f64);
    let most = config.hidden_size.min(config.intermediate_size);
    let rank = (rho * d * f / (d + f)).round();
    if rank.is_finite() { (rank.max(1.0) as usize).min(most) } else { 1 }
}

fn validate_target(target: &Target, config: &ModelConfig) -> std::result::Result<(), String> {
    let layers = config.num_hidden_layers;
    if target.layer >= layers {
        return Err(format!("the model has layers 0 to {}", layers - 1));
    }
    let most = config.hidden_size.min(config.intermediate_size);
    for projection in Projection::ALL {
        let rank = target.ranks.of(projection);
        if rank > most {
            return Err(format!("rank {rank} of {} is above min(d, f) = {most}", projection.name()));
        }
    }
    let ranks = Projection::ALL.map(|p| target.ranks.of(p));
    let form = target.form;
    if target.is_pruned() {
        return validate_pruned(target, config);
    }
    if target.neurons != 0 {
        return Err(format!("form `{form}` keeps no neurons of its own; only `pruned` has `neurons`"));
    }
    match (target.reference, target.dropped) {
        (Some(_), true) => return Err("dropped, and yet it has a reference".into()),
        (None, true) if form != RecoveryForm::None || ranks != [0; 3] => {
            return Err("dropped, and yet it has recovery parameters".into());
        }
        (None, true) => return Ok(()),
        (Some(r), false) if r >= layers => {
            return Err(format!("reference {r}: the model has layers 0 to {}", layers - 1));
        }
        (Some(r), false) if r == target.layer => return Err("its reference is itself".into()),
        (Some(r), false) if !form.shares() => {
            return Err(format!("form `{form}` shares nothing, and yet reference {r} is given"));
        }
        (None, false) if form.shares() => return Err(format!("form `{form}` needs a reference")),
        _ => {}
    }
    match form {
        RecoveryForm::None if ranks != [0; 3] => {
            Err("form `none` has no ranks; did you mean `low_rank`?".into())
        }
        RecoveryForm::LowRank if ranks == [0; 3] => {
            Err("form `low_rank` with all ranks 0; use `none` for direct sharing".into())
        }
        RecoveryForm::LowRankOnly if ranks.contains(&0) => {
            Err("form `low_rank_only` needs a rank for each projection".into())
        }
        _ => Ok(()),
    }
}

fn validate_pruned(target: &Target, config: &ModelConfig) -> std::result::Result<(), String> {
    let f = config.intermediate_size;
    if let Some(reference) = target.reference {
        return Err(format!("form `pruned` shares nothing, and yet reference {reference} is given"));
    }
    if target.dropped {
        return Err("dropped, and yet it keeps neurons".into());
    }
    if target.ranks != Ranks::default() {
        return Err("form `pruned` has no ranks, only `neurons`".into());
    }
    if target.neurons == 0 || target.neurons > f {
        return Err(format!("keeps {} neurons; the MLP has {f}, and at least one must stay", target.neurons));
    }
    if config.mlp_bias {
        return Err("form `pruned` is for MLPs without biases, and this model's have some".into());
    }
    Ok(())
}

/// Whether a count is left out of a file.
fn is_zero(n: &usize) -> bool {
    *n == 0
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
    check("", plan, &["version", "strategy", "targets"])?;
    for (i, target) in plan.get("targets").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let place = match target.get("layer").and_then(Value::as_u64) {
            Some(layer) => format!("target layer {layer}: "),
            None => format!("target {}: ", i + 1),
        };
        check(&place, target, &["layer", "reference", "form", "ranks", "neurons", "dropped", "reason"])?;
        if let Some(ranks) = target.get("ranks") {
            check(&place, ranks, &["gate", "up", "down"])?;
        }
        if let Some(form) = target.get("form").and_then(Value::as_str) {
            let names = RecoveryForm::ALL.map(RecoveryForm::name);
            if !names.contains(&form) {
                return fault(place, suggest::unknown("recovery form", form, &names));
            }
        }
    }
    Ok(())
}
