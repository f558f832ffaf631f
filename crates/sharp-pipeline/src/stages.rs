//! The stages: what each one reads, runs and writes. The only place that knows the flags of the programs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::config::{self, ModelSource, resolve_data};
use crate::error::{Context as _, Error, Result};
use crate::programs::Program;
use crate::provision::pins::PinnedFile;
use crate::run_folder::Run;
use crate::suggest;

/// A stage by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Bring the checkpoint into one form.
    Import,
    /// Measure how alike the layers are.
    Analyze,
    /// Choose which layer uses whose MLP.
    Plan,
    /// Fit the recovery parameters of each replaced layer alone (SLW).
    Warmup,
    /// Train all recovery parameters together (SFT).
    Finetune,
    /// Write the compressed checkpoint.
    Export,
    /// Write the files that the engine runs.
    Quantize,
    /// Measure perplexity and task accuracy.
    Evaluate,
    /// Measure speed and memory.
    Benchmark,
    /// Write the page that a person reads.
    Report,
}

/// A file or folder that a step reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Outputs of an earlier step's folder: those whose path begins with one of the prefixes.
    From(&'static str, &'static [&'static str]),
    /// A file known by its published hash.
    Pinned(&'static PinnedFile),
    /// A file or folder of the user's own, outside the run.
    Outside(PathBuf),
}

/// One command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Which program.
    pub program: Program,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// One folder of a run: a stage, or one of the parts of a stage.
#[derive(Debug)]
pub struct Step {
    /// The stage it belongs to.
    pub stage: Stage,
    /// Its folder in the run.
    pub folder: &'static str,
    /// Raised where the meaning of the outputs changes.
    pub version: u32,
    /// The part of the configuration that decides the outputs.
    pub config: BTreeMap<String, Value>,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// What to run, in order.
    pub invocations: Vec<Invocation>,
    /// Outputs that must be there afterwards, relative to the folder.
    pub must_write: Vec<&'static str>,
    /// Outputs outside the folder, relative to the run.
    pub beside: Vec<&'static str>,
    /// Beginnings of paths that are not outputs: steps kept for resuming.
    pub scratch: &'static [&'static str],
    /// True where a person may edit the outputs: the edit then counts as the output.
    pub editable: bool,
    /// True where the program goes on from what an interrupted run left in the folder.
    pub resumable: bool,
    /// Small files that the driver writes before the programs start: name and contents.
    pub prepared: Vec<(&'static str, String)>,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 10] = [
        Self::Import,
        Self::Analyze,
        Self::Plan,
        Self::Warmup,
        Self::Finetune,
        Self::Export,
        Self::Quantize,
        Self::Evaluate,
        Self::Benchmark,
        Self::Report,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Analyze => "analyze",
            Self::Plan => "plan",
            Self::Warmup => "warmup",
            Self::Finetune => "finetune",
            Self::Export => "export",
            Self::Quantize => "quantize",
            Self::Evaluate => "evaluate",
            Self::Benchmark => "benchmark",
            Self::Report => "report",
        }
    }
}

impl std::str::FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name).ok_or_else(|| {
            let hint = suggest::hint(name, &Self::ALL.map(Self::name));
            Error::Invalid(format!("there is no stage {name:?}{hint}"))
        })
    }
}

/// Collects the arguments of one program.
struct Line(Invocation);

impl Line {
    fn new(program: Program, command: &str) -> Self {
        Self(Invocation { program, arguments: vec![command.into()] })
    }

    fn arg(mut self, value: impl Into<OsString>) -> Self {
        self.0.arguments.push(value.into());
        self
    }

    fn flag(self, name: &str, value: impl Into<OsString>) -> Self {
        self.arg(name).arg(value)
    }

    fn number(self, name: &str, value: impl ToString) -> Self {
        self.flag(name, value.to_string())
    }

    fn when(self, condition: bool, more: impl FnOnce(Self) -> Self) -> Self {
        if condition { more(self) } else { self }
    }
}

/// The folder of the original as the stages read it.
pub const IMPORT: &str = "01-import";
const ANALYZE: &str = "02-analyze";
pub(crate) const PLAN: &str = "03-plan";
pub(crate) const WARMUP: &str = "04-warmup";
pub(crate) const FINETUNE: &str = "05-finetune";
pub(crate) const FINETUNE_COLD: &str = "05-finetune-cold";
const EXPORT: &str = "06-export";
/// The folder of the runtime files, for `cargo xtask generate`.
pub const QUANTIZE: &str = "07-quantize";
/// The folder of the results.
pub const EVALUATE: &str = "08-evaluate";
const BENCHMARK: &str = "09-benchmark";
const REPORT: &str = "10-report";

/// The compressed model as the engine runs it.
pub const COMPRESSED: &str = "model.sharp";

/// Everything of the imported model, the plan, the warmed-up layers, the trained recovery parameters.
const MODEL_FILES: Input = Input::From(IMPORT, &[]);
const PLAN_FILE: Input = Input::From(PLAN, &["plan.toml"]);
const WARM_LAYERS: Input = Input::From(WARMUP, &["layer-"]);

/// All steps of a run, in order.
///
/// # Errors
/// Where a file that the configuration names is not there.
pub fn steps(run: &Run) -> Result<Vec<Step>> {
    let mut steps = vec![import(run)?, analyze(run)?, plan(run)?, warmup(run)?, finetune(run, true)?];
    if run.config.finetune_cold {
        steps.push(finetune(run, false)?);
    }
    steps.extend([export(run)?, quantize(run)?, evaluate(run)?, benchmark(run)?, report(run)?]);
    Ok(steps)
}

/// The steps without which the step in `last` could not be made, and itself.
pub fn needed_for(last: &str, steps: Vec<Step>) -> Vec<Step> {
    let mut wanted = vec![last];
    for step in steps.iter().rev() {
        if wanted.contains(&step.folder) {
            wanted.extend(step.inputs.iter().filter_map(|input| match input {
                Input::From(folder, _) => Some(*folder),
                _ => None,
            }));
        }
    }
    let wanted: Vec<bool> = steps.iter().map(|step| wanted.contains(&step.folder)).collect();
    steps.into_iter().zip(wanted).filter_map(|(step, wanted)| wanted.then_some(step)).collect()
}

/// Where there is fine-tuning to do, lets a machine that is too small for it say so before the warm-up, not after it.
///
/// # Errors
/// Where a file that the configuration names is not there.
pub fn check_memory_first(run: &Run, steps: &mut [Step]) -> Result<()> {
    let finetunes = steps.iter().any(|step| step.folder == FINETUNE);
    if let Some(warmup) = steps.iter_mut().find(|step| step.folder == WARMUP && finetunes) {
        let how = (run.config.finetune_steps, run.config.finetune_lr);
        let line = finetuning(run, run.path(FINETUNE), order_seed(run), how)?.0;
        warmup.invocations.insert(0, line.arg("--check").0);
    }
    Ok(())
}

/// A step with the parts that most have in common.
fn step(run: &Run, stage: Stage, folder: &'static str, keys: &[&str]) -> Result<Step> {
    Ok(Step {
        stage,
        folder,
        version: 1,
        config: slice(run, keys)?,
        inputs: Vec::new(),
        invocations: Vec::new(),
        must_write: Vec::new(),
        beside: Vec::new(),
        scratch: &[],
        editable: false,
        resumable: false,
        prepared: Vec::new(),
    })
}

/// The named keys of the configuration. `train_seed` only where it is given: without it nothing differs from a run made before
/// there was such a key.
fn slice(run: &Run, keys: &[&str]) -> Result<BTreeMap<String, Value>> {
    let all = serde_json::to_value(&run.config).context("the configuration as JSON")?;
    keys.iter()
        .filter(|key| **key != "train_seed" || run.config.train_seed > 0)
        .map(|key| {
            let value = all.get(key).with_context(|| format!("there is no configuration key {key}"))?;
            Ok(((*key).to_owned(), value.clone()))
        })
        .collect()
}

/// A data specification as an argument and as an input.
fn data(run: &Run, typed: &str) -> Result<(String, Input)> {
    let data = resolve_data(&run.workspace, typed)?;
    let argument = data.argument();
    Ok((argument, data.pinned.map_or(Input::Outside(data.path), Input::Pinned)))
}

fn threads(run: &Run, line: Line) -> Line {
    line.when(run.config.threads > 0, |line| line.number("--threads", run.config.threads))
}

fn import(run: &Run) -> Result<Step> {
    let config = &run.config;
    let (line, inputs, keys): (Line, Vec<Input>, &[&str]) = match config.model_source(&run.workspace)? {
        ModelSource::Synth(preset) => {
            let line =
                Line::new(Program::Sharp, "synth").flag("--preset", preset).number("--seed", config.seed);
            (line, Vec::new(), &["model", "seed"])
        }
        ModelSource::File(found) => {
            let line =
                Line::new(Program::Sharp, "import").arg(&found.path).flag("--dtype", config.dtype.as_str());
            (line, vec![found.pinned.map_or(Input::Outside(found.path), Input::Pinned)], &["dtype"])
        }
    };
    let line = line.flag("--out", run.path(IMPORT));
    Ok(Step {
        inputs,
        invocations: vec![line.0],
        must_write: vec!["config.json", "tokenizer.json"],
        ..step(run, Stage::Import, IMPORT, keys)?
    })
}

fn analyze(run: &Run) -> Result<Step> {
    let config = &run.config;
    let (calibration, input) = data(run, &config.calibration)?;
    let line = Line::new(Program::Sharp, "analyze")
        .flag("--model", run.path(IMPORT))
        .flag("--data", calibration)
        .flag("--out", run.path(ANALYZE))
        .number("--tokens", config.calibration_tokens)
        .number("--seq-len", config.sequence)
        .number("--window", config.window)
        .flag("--split", "train")
        .number("--held-out", config.held_out)
        .number("--seed", config.seed)
        .when(config.delta_nll_tokens > 0, |line| line.number("--delta-nll", config.delta_nll_tokens));
    Ok(Step {
        inputs: vec![MODEL_FILES, input],
        invocations: vec![threads(run, line).0],
        must_write: vec!["similarity.json", "similarity.html"],
        ..step(
            run,
            Stage::Analyze,
            ANALYZE,
            &[
                "calibration",
                "calibration_tokens",
                "sequence",
                "window",
                "delta_nll_tokens",
                "held_out",
                "seed",
            ],
        )?
    })
}

fn plan(run: &Run) -> Result<Step> {
    let config = &run.config;
    let keep: Vec<String> = config.keep.iter().map(ToString::to_string).collect();
    let line = Line::new(Program::Sharp, "plan")
        .flag("--model", run.path(IMPORT))
        .flag("--similarity", run.path(ANALYZE).join("similarity.json"))
        .flag("--strategy", config.strategy.as_str())
        .when(!config.explicit.is_empty(), |line| line.flag("--explicit", config.explicit.as_str()))
        .when(config.group > 0, |line| line.number("--group", config.group))
        .when(!config.cost.is_empty(), |line| line.flag("--cost", config.cost.as_str()))
        .when(config.targets > 0, |line| line.number("--targets", config.targets))
        .when(config.targets == 0 && config.explicit.is_empty(), |line| {
            line.number("--remove", config.remove)
        })
        .when(!keep.is_empty(), |line| line.flag("--keep", keep.join(",")))
        .number("--window", config.window)
        .number("--rho", config.rho)
        .when(config.form == "drop", |line| line.arg("--drop"))
        .when(config.form != "drop", |line| line.flag("--form", config.form.as_str()))
        .flag("--out", run.path(PLAN).join("plan.toml"));
    Ok(Step {
        inputs: vec![Input::From(IMPORT, &["config.json"]), Input::From(ANALYZE, &["similarity.json"])],
        invocations: vec![line.0],
        must_write: vec!["plan.toml"],
        editable: true,
        ..step(
            run,
            Stage::Plan,
            PLAN,
            &["strategy", "explicit", "group", "cost", "targets", "remove", "keep", "window", "rho", "form"],
        )?
    })
}

/// What [`training`] reads of the configuration.
const TRAINING_KEYS: [&str; 7] =
    ["train_data", "sequence", "bf16", "device", "held_out", "seed", "train_seed"];

/// What [`finetuning`] reads of it besides.
const FINETUNING_KEYS: [&str; 5] =
    ["finetune_batch_tokens", "finetune_distill", "finetune_norms", "finetune_mlps", "finetune_save_every"];

/// The part of a training command that all trainings share; `seed` is that of its order.
fn training(run: &Run, command: &str, out: PathBuf, seed: u64) -> Result<(Line, Vec<Input>)> {
    let config = &run.config;
    let mut inputs = vec![MODEL_FILES, PLAN_FILE];
    let mut line = Line::new(Program::SharpTrain, command)
        .flag("--model", run.path(IMPORT))
        .flag("--plan", run.path(PLAN).join("plan.toml"))
        .flag("--out", out)
        .number("--seed", seed)
        .when(seed != config.seed, |line| line.number("--split-seed", config.seed))
        .number("--held-out", config.held_out)
        .number("--seq-len", config.sequence)
        .flag("--bf16", config.bf16.as_str())
        .flag("--device", config.device.as_str());
    for typed in &config.train_data {
        let (argument, input) = data(run, typed)?;
        line = line.flag("--data", argument);
        inputs.push(input);
    }
    Ok((threads(run, line), inputs))
}

/// The seed of the order of training and of first values.
fn order_seed(run: &Run) -> u64 {
    if run.config.train_seed > 0 { run.config.train_seed } else { run.config.seed }
}

/// A fine-tuning command but for where it begins.
fn finetuning(run: &Run, out: PathBuf, seed: u64, (steps, lr): (usize, f64)) -> Result<(Line, Vec<Input>)> {
    let config = &run.config;
    let (line, inputs) = training(run, "finetune", out, seed)?;
    let line = line
        .number("--steps", steps)
        .number("--batch-tokens", config.finetune_batch_tokens)
        .number("--lr", lr)
        .number("--distill", config.finetune_distill)
        .number("--save-every", config.finetune_save_every)
        .when(config.finetune_norms, |line| line.arg("--train-norms"))
        .flag("--train-mlps", config.finetune_mlps.as_str());
    Ok((line, inputs))
}

fn warmup(run: &Run) -> Result<Step> {
    let config = &run.config;
    let (line, inputs) = training(run, "warmup", run.path(WARMUP), order_seed(run))?;
    let line = line
        .flag("--start", config.warmup_start.as_str())
        .flag("--weighting", config.warmup_weighting.as_str())
        .number("--tokens", config.warmup_tokens)
        .number("--steps", config.warmup_steps)
        .number("--batch-tokens", config.warmup_batch_tokens)
        .number("--lr", config.warmup_lr);
    Ok(Step {
        inputs,
        invocations: vec![line.0],
        must_write: vec!["metrics.jsonl"],
        resumable: true,
        ..step(
            run,
            Stage::Warmup,
            WARMUP,
            &[
                &TRAINING_KEYS[..],
                &[
                    "warmup_start",
                    "warmup_weighting",
                    "warmup_tokens",
                    "warmup_steps",
                    "warmup_batch_tokens",
                    "warmup_lr",
                ],
            ]
            .concat(),
        )?
    })
}

fn finetune(run: &Run, warm: bool) -> Result<Step> {
    let config = &run.config;
    let folder = if warm { FINETUNE } else { FINETUNE_COLD };
    let how = (config.finetune_steps, config.finetune_lr);
    let (line, mut inputs) = finetuning(run, run.path(folder), order_seed(run), how)?;
    // A dropped MLP has nothing that could be warmed up.
    let warm = warm && config.form != "drop";
    let line = line.when(warm, |line| line.flag("--recovery", run.path(WARMUP)));
    if warm {
        inputs.push(WARM_LAYERS);
    }
    Ok(Step {
        inputs,
        invocations: vec![line.0],
        must_write: vec!["recovery.safetensors", "metrics.jsonl"],
        scratch: &["step-"],
        resumable: true,
        ..step(
            run,
            Stage::Finetune,
            folder,
            &[&TRAINING_KEYS[..], &FINETUNING_KEYS[..], &["finetune_steps", "finetune_lr"]].concat(),
        )?
    })
}

fn export(run: &Run) -> Result<Step> {
    let line = Line::new(Program::Sharp, "export")
        .flag("--model", run.path(IMPORT))
        .flag("--plan", run.path(PLAN).join("plan.toml"))
        .flag("--recovery", run.path(FINETUNE).join("recovery.safetensors"))
        .flag("--out", run.path(EXPORT).join("compact"))
        .flag("--dtype", run.config.export_dtype.as_str())
        .when(run.config.export_dense, |line| line.flag("--dense", run.path(EXPORT).join("dense")));
    Ok(Step {
        inputs: vec![MODEL_FILES, PLAN_FILE, Input::From(FINETUNE, &["recovery.safetensors"])],
        invocations: vec![line.0],
        must_write: vec!["compact/config.json"],
        ..step(run, Stage::Export, EXPORT, &["export_dtype", "export_dense"])?
    })
}

fn quantize(run: &Run) -> Result<Step> {
    let config = &run.config;
    let (recipe, recipe_file) = recipe(run)?;
    let (calibration, calibration_file) = data(run, &config.calibration)?;
    let calibrated = config.quantize_tokens > 0;
    let repaired = config.repair_steps > 0;
    let place = |name: &str| run.path(QUANTIZE).join(name);
    let line = |model: PathBuf, out: &str, report: &str| {
        let line = Line::new(Program::Sharp, "quantize")
            .flag("--model", model)
            .flag("--out", place(out))
            .flag("--recipe", recipe.as_str())
            .flag("--report", place(report))
            .when(calibrated, |line| {
                line.flag("--calibrate", calibration.as_str())
                    .number("--calibration-tokens", config.quantize_tokens)
                    .number("--seq-len", config.sequence)
                    .flag("--split", "train")
                    .number("--held-out", config.held_out)
                    .number("--seed", config.seed)
            });
        threads(run, line).0
    };
    let first = if repaired { UNREPAIRED } else { COMPRESSED };
    let mut invocations = vec![
        line(run.path(EXPORT).join("compact"), first, "quant_report.json"),
        line(run.path(IMPORT), ORIGINAL_PACKED, "original_quant_report.json"),
    ];
    let mut inputs = vec![MODEL_FILES, Input::From(EXPORT, &["compact/"])];
    inputs.extend(recipe_file);
    let mut keys = vec!["recipe", "quantize_tokens"];
    if calibrated {
        inputs.push(calibration_file);
        keys.extend(["calibration", "sequence", "held_out", "seed"]);
    }
    if repaired {
        let (lines, read) = repair(run)?;
        invocations.extend(lines);
        inputs.extend(read);
        keys.extend(TRAINING_KEYS);
        keys.extend(FINETUNING_KEYS);
        keys.extend(["repair_steps", "repair_lr"]);
    }
    Ok(Step {
        version: 2,
        inputs,
        invocations,
        must_write: vec![COMPRESSED, ORIGINAL_PACKED, "quant_report.json"],
        scratch: &["repair/step-"],
        resumable: repaired,
        ..step(run, Stage::Quantize, QUANTIZE, &keys)?
    })
}

/// Trains what the plan trains once more, against the rounding of [`UNREPAIRED`], and puts the result into [`COMPRESSED`].
fn repair(run: &Run) -> Result<(Vec<Invocation>, Vec<Input>)> {
    let config = &run.config;
    let folder = run.path(QUANTIZE).join("repair");
    let unrepaired = run.path(QUANTIZE).join(UNREPAIRED);
    // Another order than that of the fine-tuning it goes on from.
    let seed = order_seed(run).wrapping_add(1);
    let (line, mut inputs) = finetuning(run, folder.clone(), seed, (config.repair_steps, config.repair_lr))?;
    let train = line
        .flag("--recovery", run.path(FINETUNE).join("recovery.safetensors"))
        .flag("--runtime", &unrepaired);
    let onto = Line::new(Program::Sharp, "quantize")
        .flag("--model", run.path(IMPORT))
        .flag("--plan", run.path(PLAN).join("plan.toml"))
        .flag("--recovery", folder.join("recovery.safetensors"))
        .flag("--onto", &unrepaired)
        .flag("--out", run.path(QUANTIZE).join(COMPRESSED));
    inputs.push(Input::From(FINETUNE, &["recovery.safetensors"]));
    Ok((vec![train.0, threads(run, onto).0], inputs))
}

/// The recipe as an argument, and its file where it is one.
fn recipe(run: &Run) -> Result<(String, Option<Input>)> {
    let typed = &run.config.recipe;
    if typed.ends_with(".toml") {
        data(run, typed).map(|(path, file)| (path, Some(file)))
    } else {
        Ok((typed.clone(), None))
    }
}

/// The compressed model before the repair of its rounding, where there is one.
const UNREPAIRED: &str = "unrepaired.sharp";

/// The original at the precision of the compressed model: what it is compared with.
const ORIGINAL_PACKED: &str = "original-q4.sharp";

fn evaluate(run: &Run) -> Result<Step> {
    let config = &run.config;
    let mut inputs = vec![MODEL_FILES, PLAN_FILE];
    let mut file = RowsFile {
        window: config.eval_window,
        stride: config.eval_stride,
        held_out: config.held_out,
        seed: config.seed,
        ..RowsFile::default()
    };
    for name in &config.rows {
        let base = || Row { name: name.clone(), model: run.path(IMPORT), plan: None, recovery: None };
        let plan = Some(run.path(PLAN).join("plan.toml"));
        let (row, input) = match name.as_str() {
            "direct" => (Row { plan, ..base() }, None),
            "slw" => (Row { plan, recovery: Some(run.path(WARMUP)), ..base() }, Some(WARM_LAYERS)),
            "sft" => (
                Row { plan, recovery: Some(run.path(FINETUNE_COLD).join("recovery.safetensors")), ..base() },
                Some(Input::From(FINETUNE_COLD, &["recovery.safetensors"])),
            ),
            "slw_sft" => (
                Row { model: run.path(EXPORT).join("compact"), ..base() },
                Some(Input::From(EXPORT, &["compact/"])),
            ),
            "slw_sft_q4" => (
                Row { model: run.path(QUANTIZE).join(COMPRESSED), ..base() },
                Some(Input::From(QUANTIZE, &[COMPRESSED])),
            ),
            "unrepaired_q4" => (
                Row { model: run.path(QUANTIZE).join(UNREPAIRED), ..base() },
                Some(Input::From(QUANTIZE, &[UNREPAIRED])),
            ),
            "original_q4" => (
                Row { model: run.path(QUANTIZE).join(ORIGINAL_PACKED), ..base() },
                Some(Input::From(QUANTIZE, &[ORIGINAL_PACKED])),
            ),
            _ => (base(), None),
        };
        // A row says the precision that it really has.
        let precision = Path::new(&config.recipe).file_stem().unwrap_or_default().to_string_lossy();
        file.rows.push(Row { name: name.replace("_q4", &format!("_{precision}")), ..row });
        inputs.extend(input);
    }
    for text in &config.texts {
        let text = config::Text::parse(text)?;
        let (argument, input) = data(run, text.data)?;
        file.texts.push(Text {
            name: text.name.to_owned(),
            data: argument,
            split: text.side.to_owned(),
            tokens: config.text_tokens,
        });
        inputs.push(input);
    }
    for task in &config.tasks {
        let (name, typed) = config.task_parts(task);
        let (argument, input) = data(run, typed)?;
        let limit = (config.task_limit > 0).then_some(config.task_limit);
        file.tasks.push(Task { name: name.to_owned(), path: argument, limit });
        inputs.push(input);
    }
    inputs.dedup();
    let line = Line::new(Program::Sharp, "evaluate")
        .flag("--rows", run.path(EVALUATE).join("rows.toml"))
        .flag("--out", run.path(EVALUATE).join("results.json"));
    Ok(Step {
        inputs,
        invocations: vec![threads(run, line).0],
        must_write: vec!["results.json"],
        prepared: vec![("rows.toml", toml::to_string(&file).context("rows.toml")?)],
        ..step(
            run,
            Stage::Evaluate,
            EVALUATE,
            &[
                "rows",
                "texts",
                "text_tokens",
                "eval_window",
                "eval_stride",
                "tasks",
                "task_limit",
                "held_out",
                "seed",
            ],
        )?
    })
}

/// What `sharp evaluate` is to measure.
#[derive(Debug, Default, Serialize)]
struct RowsFile {
    window: usize,
    stride: usize,
    held_out: f64,
    seed: u64,
    rows: Vec<Row>,
    texts: Vec<Text>,
    tasks: Vec<Task>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    model: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Text {
    name: String,
    data: String,
    split: String,
    tokens: usize,
}

#[derive(Debug, Serialize)]
struct Task {
    name: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
}

fn benchmark(run: &Run) -> Result<Step> {
    let config = &run.config;
    let line = Line::new(Program::Sharp, "benchmark")
        .flag("--model", run.path(QUANTIZE).join(ORIGINAL_PACKED))
        .flag("--model", run.path(QUANTIZE).join(COMPRESSED))
        .number("--prompt-tokens", config.bench_prompt_tokens)
        .number("--decode-tokens", config.bench_decode_tokens)
        .number("--repeats", config.bench_repeats)
        .flag("--out", run.path(BENCHMARK).join("bench.json"));
    Ok(Step {
        inputs: vec![Input::From(QUANTIZE, &[COMPRESSED, ORIGINAL_PACKED])],
        invocations: vec![threads(run, line).0],
        must_write: vec!["bench.json"],
        ..step(
            run,
            Stage::Benchmark,
            BENCHMARK,
            &["bench_prompt_tokens", "bench_decode_tokens", "bench_repeats", "threads"],
        )?
    })
}

fn report(run: &Run) -> Result<Step> {
    let config = &run.config;
    let mut line = Line::new(Program::Sharp, "report")
        .flag("--run", run.folder.clone())
        .flag("--out", run.path("report.html"))
        .number("--sample-tokens", config.sample_tokens);
    for prompt in &config.prompts {
        line = line.flag("--prompt", prompt.as_str());
    }
    let mut inputs = vec![
        Input::From(IMPORT, &["config.json"]),
        Input::From(ANALYZE, &[]),
        PLAN_FILE,
        Input::From(WARMUP, &["metrics.jsonl"]),
        Input::From(FINETUNE, &["metrics.jsonl"]),
        Input::From(EXPORT, &["compact/config.json"]),
        Input::From(QUANTIZE, &[]),
        Input::From(EVALUATE, &["results.json"]),
        Input::From(BENCHMARK, &[]),
    ];
    if config.finetune_cold {
        inputs.push(Input::From(FINETUNE_COLD, &["metrics.jsonl"]));
    }
    for (name, folder) in config.beside(&run.workspace)? {
        line = line.flag("--beside", format!("{name}={}", folder.display()));
        let results = folder.join(EVALUATE).join("results.json");
        if results.exists() {
            inputs.push(Input::Outside(results));
        }
    }
    Ok(Step {
        inputs,
        invocations: vec![threads(run, line).0],
        beside: vec!["report.html", "report.md"],
        ..step(run, Stage::Report, REPORT, &["prompts", "sample_tokens", "beside"])?
    })
}

#[cfg(test)]
mod tests;
