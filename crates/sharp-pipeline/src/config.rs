//! The configuration of a run: one flat TOML file, as typed. Unknown keys are refused with a suggestion; every
//! value is checked before anything starts.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Result, bail};
use crate::provision::pins::{self, Kind, PinnedFile};
use crate::suggest;
use crate::workspace::Workspace;

/// Every key, with the values a file may leave out. `configs/smollm2-135m.toml` says what each one means; a
/// test holds that it names them all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub(crate) model: String,
    pub(crate) dtype: String,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
    pub(crate) held_out: f64,

    pub(crate) calibration: String,
    pub(crate) calibration_tokens: usize,
    pub(crate) window: usize,
    pub(crate) delta_nll_tokens: usize,

    pub(crate) strategy: String,
    pub(crate) group: usize,
    pub(crate) explicit: String,
    pub(crate) cost: String,
    pub(crate) remove: f64,
    pub(crate) targets: usize,
    pub(crate) keep: Vec<usize>,
    pub(crate) rho: f64,
    pub(crate) form: String,

    pub(crate) train_data: Vec<String>,
    pub(crate) sequence: usize,
    pub(crate) bf16: String,
    pub(crate) device: String,
    pub(crate) train_seed: u64,

    pub(crate) warmup_start: String,
    pub(crate) warmup_weighting: String,
    pub(crate) warmup_tokens: usize,
    pub(crate) warmup_steps: usize,
    pub(crate) warmup_batch_tokens: usize,
    pub(crate) warmup_lr: f64,

    pub(crate) finetune_steps: usize,
    pub(crate) finetune_batch_tokens: usize,
    pub(crate) finetune_lr: f64,
    pub(crate) finetune_distill: f64,
    pub(crate) finetune_norms: bool,
    pub(crate) finetune_mlps: String,
    pub(crate) finetune_save_every: usize,
    pub(crate) finetune_cold: bool,

    pub(crate) export_dtype: String,
    pub(crate) export_dense: bool,
    pub(crate) recipe: String,
    pub(crate) quantize_tokens: usize,
    pub(crate) repair_steps: usize,
    pub(crate) repair_lr: f64,

    pub(crate) rows: Vec<String>,
    pub(crate) texts: Vec<String>,
    pub(crate) text_tokens: usize,
    pub(crate) eval_window: usize,
    pub(crate) eval_stride: usize,
    pub(crate) tasks: Vec<String>,
    pub(crate) task_limit: usize,

    pub(crate) bench_prompt_tokens: usize,
    pub(crate) bench_decode_tokens: usize,
    pub(crate) bench_repeats: usize,

    pub(crate) prompts: Vec<String>,
    pub(crate) sample_tokens: usize,
    pub(crate) beside: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: String::new(),
            dtype: "f32".into(),
            seed: 1,
            threads: 0,
            held_out: 0.05,
            calibration: String::new(),
            calibration_tokens: 16_384,
            window: 2,
            delta_nll_tokens: 0,
            strategy: "optimal".into(),
            group: 0,
            explicit: String::new(),
            cost: String::new(),
            remove: 0.2,
            targets: 0,
            keep: Vec::new(),
            rho: 0.134,
            form: "low_rank".into(),
            train_data: Vec::new(),
            sequence: 512,
            bf16: "auto".into(),
            device: "auto".into(),
            train_seed: 0,
            warmup_start: "zero".into(),
            warmup_weighting: "residual".into(),
            warmup_tokens: 65_536,
            warmup_steps: 400,
            warmup_batch_tokens: 1024,
            warmup_lr: 1e-3,
            finetune_steps: 200,
            finetune_batch_tokens: 2048,
            finetune_lr: 1e-3,
            finetune_distill: 0.0,
            finetune_norms: false,
            finetune_mlps: "none".into(),
            finetune_save_every: 50,
            finetune_cold: true,
            export_dtype: "f16".into(),
            export_dense: false,
            recipe: "q4".into(),
            quantize_tokens: 4096,
            repair_steps: 0,
            repair_lr: 6e-4,
            rows: ROWS.iter().filter(|row| **row != "unrepaired_q4").map(|row| (*row).to_owned()).collect(),
            texts: Vec::new(),
            text_tokens: 8192,
            eval_window: 512,
            eval_stride: 512,
            tasks: Vec::new(),
            task_limit: 0,
            bench_prompt_tokens: 512,
            bench_decode_tokens: 128,
            bench_repeats: 3,
            prompts: Vec::new(),
            sample_tokens: 64,
            beside: Vec::new(),
        }
    }
}

/// The rows that an evaluation can have, in the order of the report.
pub(crate) const ROWS: &[&str] =
    &["original", "direct", "slw", "sft", "slw_sft", "unrepaired_q4", "slw_sft_q4", "original_q4"];

/// What may follow `synth:` in `model`: models of random weights that `sharp synth` makes.
const PRESETS: &[&str] = &["tiny"];

/// Reads a configuration file, lays `--set` values over it and checks the result.
pub(crate) fn load(workspace: &Workspace, file: &Path, overrides: &[String]) -> Result<Config> {
    let text = std::fs::read_to_string(file).with_context(|| {
        let near: Vec<String> = workspace.listed("configs");
        format!("reading the configuration {} (there are: {})", file.display(), near.join(", "))
    })?;
    parse(workspace, &text, overrides).with_context(|| format!("in the configuration {}", file.display()))
}

/// The same from text.
pub(crate) fn parse(workspace: &Workspace, text: &str, overrides: &[String]) -> Result<Config> {
    let mut table = text.parse::<toml::Table>().context("this is not TOML")?;
    table.extend(assignments(overrides)?);
    from_table(workspace, table)
}

/// A checked configuration from its keys.
pub(crate) fn from_table(workspace: &Workspace, table: toml::Table) -> Result<Config> {
    check_keys(&table)?;
    let config: Config = table.try_into().context("a value has the wrong type")?;
    config.check(workspace)?;
    Ok(config)
}

/// The values of `--set key=value`.
pub(crate) fn assignments(overrides: &[String]) -> Result<toml::Table> {
    let mut table = toml::Table::new();
    for assignment in overrides {
        let Some((key, value)) = assignment.split_once('=') else {
            bail!("--set {assignment}: expected key=value, for example --set remove=0.4")
        };
        table.insert(key.trim().to_owned(), value_of(value.trim()));
        check_keys(&table).with_context(|| format!("--set {assignment}"))?;
    }
    Ok(table)
}

/// Every key there is.
pub(crate) fn keys() -> Vec<String> {
    match serde_json::to_value(Config::default()) {
        Ok(serde_json::Value::Object(map)) => map.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    }
}

/// Refuses a key that no configuration has.
pub(crate) fn check_keys(table: &toml::Table) -> Result<()> {
    let names = keys();
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => bail!("there is no key {key:?}{}", suggest::hint(key, &known)),
        None => Ok(()),
    }
}

/// A value typed on the command line: TOML where it is TOML, otherwise the text itself, so that
/// `--set strategy=pairs` needs no quotes.
fn value_of(text: &str) -> toml::Value {
    let wrapped = format!("value = {text}");
    wrapped
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

impl Config {
    /// Refuses what cannot be meant, naming the key.
    fn check(&self, workspace: &Workspace) -> Result<()> {
        if self.model.is_empty() {
            bail!("model: missing; a Hugging Face directory, a GGUF file, pinned:NAME or synth:tiny");
        }
        if self.calibration.is_empty() {
            bail!("calibration: missing; a text or JSONL file, or pinned:NAME");
        }
        if self.train_data.is_empty() {
            bail!("train_data: missing; a list of text or JSONL files, or pinned:NAME");
        }
        let positive = [
            ("calibration_tokens", self.calibration_tokens),
            ("window", self.window),
            ("sequence", self.sequence),
            ("warmup_tokens", self.warmup_tokens),
            ("warmup_steps", self.warmup_steps),
            ("warmup_batch_tokens", self.warmup_batch_tokens),
            ("finetune_steps", self.finetune_steps),
            ("finetune_batch_tokens", self.finetune_batch_tokens),
            ("finetune_save_every", self.finetune_save_every),
            ("text_tokens", self.text_tokens),
            ("eval_window", self.eval_window),
            ("eval_stride", self.eval_stride),
            ("bench_prompt_tokens", self.bench_prompt_tokens),
            ("bench_decode_tokens", self.bench_decode_tokens),
            ("bench_repeats", self.bench_repeats),
        ];
        for (key, value) in positive {
            if value == 0 {
                bail!("{key}: must be at least 1");
            }
        }
        if self.eval_stride > self.eval_window {
            bail!(
                "eval_stride: {} is more than eval_window {}; tokens between would not be counted",
                self.eval_stride,
                self.eval_window
            );
        }
        if !(self.remove > 0.0 && self.remove < 1.0) && self.targets == 0 {
            bail!("remove: {} is not a fraction between 0 and 1 of the MLP parameters", self.remove);
        }
        self.beside(workspace)?;
        if !(self.held_out > 0.0 && self.held_out < 1.0) {
            bail!("held_out: {} is not a fraction between 0 and 1", self.held_out);
        }
        if !(self.rho > 0.0 && self.rho <= 1.0) {
            bail!("rho: {} is not between 0 and 1", self.rho);
        }
        let rates =
            [("warmup_lr", self.warmup_lr), ("finetune_lr", self.finetune_lr), ("repair_lr", self.repair_lr)];
        for (key, value) in rates {
            if !(value > 0.0 && value.is_finite()) {
                bail!("{key}: {value} is not a learning rate");
            }
        }
        if !(0.0..=1.0).contains(&self.finetune_distill) {
            bail!("finetune_distill: {} is not between 0 and 1", self.finetune_distill);
        }
        choice("dtype", &self.dtype, &["f32", "f16", "bf16"])?;
        choice("export_dtype", &self.export_dtype, &["f32", "f16", "bf16"])?;
        if self.recipe.ends_with(".toml") {
            resolve_data(workspace, &self.recipe).context("recipe")?;
        } else {
            choice("recipe", &self.recipe, &["q4", "q8", "f16"])?;
        }
        if self.repair_steps > 0 && self.recipe == "f16" {
            bail!("repair_steps: recipe = \"f16\" rounds to 16 bits, which leaves nothing to repair; 0");
        }
        choice("bf16", &self.bf16, &["auto", "on", "off"])?;
        choice(
            "strategy",
            &self.strategy,
            &["optimal", "greedy", "pairs", "back", "front", "groups", "even", "explicit"],
        )?;
        if (self.strategy == "explicit") == self.explicit.is_empty() {
            bail!(
                "explicit: goes together with strategy = \"explicit\"; for example explicit = \"27<-26,29<-28\""
            );
        }
        choice(
            "form",
            &self.form,
            &["low_rank", "scaled_low_rank", "row_column_scaled_low_rank", "low_rank_only", "pruned", "drop"],
        )?;
        let (even, pruned) = (self.strategy == "even", self.form == "pruned");
        if pruned && !even {
            bail!("strategy: form = \"pruned\" takes some neurons from every layer: strategy = \"even\"");
        }
        if even && !(pruned || self.form == "low_rank_only") {
            bail!("form: strategy = \"even\" shares nothing: form = \"pruned\" or \"low_rank_only\"");
        }
        if even && self.targets != 0 {
            bail!(
                "targets: strategy = \"even\" replaces every layer but those of `keep`; give `remove` instead"
            );
        }
        if self.form == "drop" {
            if let Some(row) = self.rows.iter().find(|row| matches!(row.as_str(), "slw" | "sft")) {
                bail!("rows: {row:?} needs recovery parameters, and form = \"drop\" has none");
            }
            if !self.finetune_norms && self.finetune_mlps != "all" {
                bail!(
                    "form: \"drop\" leaves nothing to train but finetune_norms = true or finetune_mlps = \"all\""
                );
            }
        }
        choice("warmup_start", &self.warmup_start, &["zero", "whitened"])?;
        choice("finetune_mlps", &self.finetune_mlps, &["none", "shared", "all"])?;
        choice("warmup_weighting", &self.warmup_weighting, &["none", "residual", "output"])?;
        let cuda = self.device.strip_prefix("cuda:").is_some_and(|n| n.parse::<u8>().is_ok());
        if !cuda {
            choice("device", &self.device, &["auto", "cpu", "cuda"])?;
        }
        for row in &self.rows {
            choice("rows", row, ROWS)?;
        }
        if !self.rows.iter().any(|row| row == "original") {
            bail!("rows: must contain \"original\"; the others are compared with it");
        }
        if self.rows.iter().any(|row| row == "sft") && !self.finetune_cold {
            bail!("rows: \"sft\" needs finetune_cold = true, which trains it");
        }
        if self.rows.iter().any(|row| row == "unrepaired_q4") && self.repair_steps == 0 {
            bail!("rows: \"unrepaired_q4\" is slw_sft_q4 before its repair, and repair_steps is 0");
        }
        self.model_source(workspace)?;
        for text in &self.texts {
            Text::parse(text)?;
        }
        for data in self.all_data() {
            resolve_data(workspace, data)?;
        }
        for task in &self.tasks {
            let (_, source) = self.task_parts(task);
            resolve_data(workspace, source)?;
        }
        Ok(())
    }

    /// Where the model comes from.
    pub(crate) fn model_source(&self, workspace: &Workspace) -> Result<ModelSource> {
        if let Some(preset) = self.model.strip_prefix("synth:") {
            choice("model", preset, PRESETS)?;
            return Ok(ModelSource::Synth(preset.to_owned()));
        }
        Ok(ModelSource::File(resolve_data(workspace, &self.model).context("model")?))
    }

    /// Names and folders of the runs that the report sets beside this one; they need not be there.
    pub(crate) fn beside(&self, workspace: &Workspace) -> Result<Vec<(&str, PathBuf)>> {
        self.beside
            .iter()
            .map(|run| match run.split_once('=') {
                Some((name, folder))
                    if !name.is_empty() && !name.contains(['/', '\\', '.']) && !folder.is_empty() =>
                {
                    Ok((name, workspace.root().join(folder)))
                }
                _ => bail!("beside: {run:?} is not name=folder of a run, the name without . / and \\"),
            })
            .collect()
    }

    /// Every data specification but the tasks.
    fn all_data(&self) -> Vec<&str> {
        let texts = self.texts.iter().filter_map(|text| Text::parse(text).ok()).map(|text| text.data);
        std::iter::once(self.calibration.as_str())
            .chain(self.train_data.iter().map(String::as_str))
            .chain(texts)
            .collect()
    }

    /// A task's name and where its questions are: `pinned:sciq` or `name=path`.
    pub(crate) fn task_parts<'a>(&self, task: &'a str) -> (&'a str, &'a str) {
        if let Some((name, source)) = task.split_once('=') {
            return (name, source);
        }
        (task.strip_prefix("pinned:").unwrap_or(task), task)
    }
}

/// A text of `texts`: `name=data`, or `name=data@side`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Text<'a> {
    /// Its name in the results.
    pub(crate) name: &'a str,
    /// The data specification.
    pub(crate) data: &'a str,
    /// Side of the train/held-out split: all, train or held_out.
    pub(crate) side: &'a str,
}

impl<'a> Text<'a> {
    /// Takes an entry of `texts` apart.
    pub(crate) fn parse(text: &'a str) -> Result<Self> {
        let Some((name, data)) = text.split_once('=') else {
            bail!(
                "texts: {text:?} should be name=data, for example \"boolq=pinned:boolq-train#passage@held_out\""
            )
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            bail!("texts: {name:?} is not a name (letters, digits, -, _ and .)");
        }
        let (data, side) = data.rsplit_once('@').unwrap_or((data, "all"));
        choice("texts", side, &["all", "train", "held_out"])?;
        Ok(Self { name, data, side })
    }
}

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelSource {
    /// `sharp synth --preset`.
    Synth(String),
    /// A file or a folder.
    File(Data),
}

/// A data specification with its path resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Data {
    /// The file or folder.
    pub(crate) path: PathBuf,
    /// What follows `#`: how the rows are to be read.
    pub(crate) view: Option<String>,
    /// The pinned file behind it, if it is one.
    pub(crate) pinned: Option<&'static PinnedFile>,
}

impl Data {
    /// As the programs take it: `path#view`.
    pub(crate) fn argument(&self) -> String {
        match &self.view {
            Some(view) => format!("{}#{view}", self.path.display()),
            None => self.path.display().to_string(),
        }
    }
}

/// Resolves `path`, `path#view`, `pinned:NAME` or `pinned:NAME#view`. Relative paths start at the repository.
pub(crate) fn resolve_data(workspace: &Workspace, typed: &str) -> Result<Data> {
    let (place, view) = match typed.rsplit_once('#') {
        Some((place, view)) => (place, Some(view.to_owned())),
        None => (typed, None),
    };
    if let Some(view) = &view {
        let (name, limit) = view.split_once(':').unwrap_or((view, "1"));
        choice("the view after #", name, &["auto", "text", "completion", "messages", "passage"])?;
        if !limit.replace('_', "").parse::<usize>().is_ok_and(|limit| limit > 0) {
            bail!("{typed}: {limit:?} is not a number of documents");
        }
    }
    if let Some(name) = place.strip_prefix("pinned:") {
        let pinned = pins::find(name)?;
        if view.is_some() && pinned.kind == Kind::Model {
            bail!("{typed}: a model has no view");
        }
        let path = crate::provision::cached_path(pinned)?;
        return Ok(Data { path, view, pinned: Some(pinned) });
    }
    let path = workspace.root().join(place);
    if !path.exists() {
        bail!("{place}: no such file or folder (relative paths start at the repository: {})", path.display());
    }
    Ok(Data { path, view, pinned: None })
}

fn choice(key: &str, value: &str, allowed: &[&str]) -> Result<()> {
    if allowed.contains(&value) {
        return Ok(());
    }
    bail!("{key}: there is no {value:?}{}", suggest::hint(value, allowed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;
    use crate::workspace::tests::workspace;

    const SMALLEST: &str = "model = \"synth:tiny\"\ncalibration = \"pinned:boolq-train\"\ntrain_data = [\"pinned:boolq-train\"]\n";

    fn refused(text: &str) -> String {
        chain(&parse(&workspace(), &format!("{SMALLEST}{text}"), &[]).unwrap_err())
    }

    #[test]
    fn typos_are_refused_with_a_suggestion() {
        assert!(refused("stratgey = \"pairs\"").contains("did you mean \"strategy\"?"));
        assert!(refused("strategy = \"optimale\"").contains("did you mean \"optimal\"?"));
        assert!(refused("tasks = [\"pinned:sciqq\"]").contains("did you mean \"sciq\"?"));
        let error = chain(&parse(&workspace(), SMALLEST, &["windw=3".into()]).unwrap_err());
        assert!(error.contains("did you mean \"window\"?"), "{error}");
    }

    #[test]
    fn impossible_values_are_refused_by_key() {
        for (text, key) in [
            ("remove = 1.5", "remove"),
            ("rho = 0.0", "rho"),
            ("window = 0", "window"),
            ("warmup_lr = -1.0", "warmup_lr"),
            ("eval_stride = 1024", "eval_stride"),
            ("texts = [\"pinned:boolq-train\"]", "texts"),
            ("rows = [\"slw\"]", "rows"),
            ("finetune_cold = false", "rows"),
            ("strategy = \"explicit\"", "explicit"),
            ("beside = [\"runs/paper\"]", "beside"),
            ("beside = [\"v1.0=runs/paper\"]", "beside"),
            ("form = \"drop\"", "rows"),
            ("form = \"drop\"\nrows = [\"original\"]\nfinetune_mlps = \"shared\"", "form"),
        ] {
            let error = refused(text);
            assert!(error.contains(&format!("{key}:")), "{text}: {error}");
        }
        assert!(refused("window = \"two\"").contains("wrong type"));
    }

    #[test]
    fn set_lays_values_of_every_type_over_the_file() {
        let overrides =
            ["remove=0.4", "strategy=pairs", "keep=[0, 1]", "export_dense=true", "form = \"low_rank\""];
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        let config = parse(&workspace(), SMALLEST, &overrides).unwrap();
        assert_eq!((config.remove, config.strategy.as_str(), config.export_dense), (0.4, "pairs", true));
        assert_eq!(config.keep, [0, 1]);
    }

    #[test]
    fn the_shipped_configurations_load_and_explain_every_key() {
        let folder = workspace().root().join("configs");
        for name in ["smollm2-135m", "smollm2-135m-full", "smollm2-135m-paper", "tiny"] {
            let path = folder.join(format!("{name}.toml"));
            let text = std::fs::read_to_string(&path).unwrap();
            load(&workspace(), &path, &[]).unwrap();
            let first = text.lines().next().unwrap();
            assert!(first.starts_with("# cargo xtask pipeline"), "{name}: {first}");
            let mut explained = false;
            for line in text.lines() {
                let is_key = line
                    .split_once('=')
                    .is_some_and(|(key, _)| keys().iter().any(|known| known == key.trim()));
                assert!(!is_key || explained, "{name}: no comment above {line}");
                explained = line.starts_with('#');
            }
        }
        let text = std::fs::read_to_string(folder.join("smollm2-135m.toml")).unwrap();
        let table: toml::Table = text.parse().unwrap();
        for key in keys() {
            assert!(table.contains_key(&key), "configs/smollm2-135m.toml does not explain {key}");
        }
    }
}
