//! Warm-up and fine-tuning, and what the repair of a rounding has in common with them.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use sharp_schema::run::{
    FINETUNE, FINETUNE_COLD, IMPORT, METRICS_FILE, PLAN, PLAN_FILE, RECOVERY_FILE, TEXTS_FILE, WARMUP,
};

use super::arithmetic::Machine;
use super::command_line::CommandLine;
use super::evaluate;
use super::settings::Settings;
use super::stage::Stage;
use super::step::{Input, MODEL_FILES, PLAN_INPUT, Step, WARM_LAYERS, data, in_folder};
use crate::error::{Context as _, Result};
use crate::run_folder::Run;

/// Builds the part that every training command has; `seed` decides the order of its data.
fn training(run: &Run, command: &str, out: PathBuf, seed: u64) -> Result<(CommandLine, Vec<Input>)> {
    let config = &run.config;
    let mut inputs = vec![MODEL_FILES, PLAN_INPUT];
    let mut line = CommandLine::sharp_train(command)
        .flag("--model", run.path(IMPORT))
        .flag("--plan", in_folder(run, PLAN, PLAN_FILE))
        .flag("--out", out)
        .value("--seed", seed)
        .when(seed != config.seed, |line| line.value("--split-seed", config.seed))
        .value("--held-out", config.data.held_out)
        .value("--seq-len", config.data.sequence)
        .value("--bf16", config.training.bf16)
        .value("--device", config.training.device);
    for typed in &config.data.train {
        let (argument, input) = data(run, "data.train", typed)?;
        line = line.flag("--data", argument);
        inputs.push(input);
    }
    Ok((line.threads(run), inputs))
}

/// Collects what [`training`] reads of the configuration, `auto` as what it means on this machine.
fn training_settings(run: &Run) -> Settings {
    training_settings_on(Machine::this(), run)
}

/// Collects the same as it would be on a machine.
pub(super) fn training_settings_on(machine: Machine, run: &Run) -> Settings {
    let config = &run.config;
    Settings::default()
        .section("training", &config.training)
        .key("training.bf16", &machine.number_type(&config.training))
        .key("training.device", &machine.device(&config.training))
        .key("data.train", &config.data.train)
        .key("data.sequence", &config.data.sequence)
        .key("data.held_out", &config.data.held_out)
        .key("seed", &config.seed)
}

/// Returns the seed of the order of training and of first values.
pub(super) fn order_seed(run: &Run) -> u64 {
    run.config.training.seed.map_or(run.config.seed, Into::into)
}

/// Builds a fine-tuning command but for its start; `steps` and `lr` are its length and its highest learning
/// rate.
pub(super) fn finetuning(
    run: &Run,
    out: PathBuf,
    seed: u64,
    (steps, lr): (NonZeroUsize, f64),
) -> Result<(CommandLine, Vec<Input>)> {
    let finetune = &run.config.finetune;
    let (line, inputs) = training(run, "finetune", out, seed)?;
    let line = line
        .value("--steps", steps)
        .value("--batch-tokens", finetune.batch_tokens)
        .value("--lr", lr)
        .value("--distill", finetune.distill)
        .value("--save-every", finetune.save_every)
        .when(finetune.norms, |line| line.arg("--train-norms"))
        .value("--train-mlps", finetune.mlps);
    let line = line.option("--pool", finetune.pool);
    let twice: Vec<String> = finetune.run_twice.iter().map(usize::to_string).collect();
    Ok((line.when(!twice.is_empty(), |line| line.value("--run-twice", twice.join(","))), inputs))
}

/// Collects what [`finetuning`] reads of the configuration; `finetune.cold` decides no output.
pub(super) fn finetuning_settings(run: &Run) -> Settings {
    training_settings(run).section("finetune", &run.config.finetune).without(&["finetune.cold"])
}

/// Returns the fine-tuning's own number of steps and learning rate.
fn length(run: &Run) -> (NonZeroUsize, f64) {
    (run.config.finetune.steps, run.config.finetune.lr)
}

/// Builds a command that only says what the fine-tuning takes, and fails where the memory is not there.
pub(super) fn memory_check(run: &Run) -> Result<CommandLine> {
    let (line, _) = finetuning(run, run.path(FINETUNE), order_seed(run), length(run))?;
    Ok(line.arg("--check"))
}

/// Makes the warm-up: each changed layer is fitted alone.
pub(super) fn warmup(run: &Run) -> Result<Step> {
    let warmup = &run.config.warmup;
    let (line, inputs) = training(run, "warmup", run.path(WARMUP), order_seed(run))?;
    let line = line
        .value("--start", warmup.start)
        .value("--weighting", warmup.weighting)
        .value("--tokens", warmup.tokens)
        .value("--steps", warmup.steps)
        .value("--batch-tokens", warmup.batch_tokens)
        .value("--lr", warmup.lr);
    Ok(Step {
        version: 3,
        inputs,
        command_lines: vec![line],
        must_write: vec![METRICS_FILE],
        resumable: true,
        ..Step::new(Stage::Warmup, WARMUP, training_settings(run).section("warmup", warmup))
    })
}

/// Makes the fine-tuning: all changed layers are trained together, from the warm-up or without it.
pub(super) fn finetune(run: &Run, warm: bool) -> Result<Step> {
    let folder = if warm { FINETUNE } else { FINETUNE_COLD };
    let (line, mut inputs) = finetuning(run, run.path(folder), order_seed(run), length(run))?;
    // A dropped MLP has nothing that could be warmed up, and neither has a model that keeps all.
    let warm = warm && run.config.plan.has_recovery();
    let line = line.when(warm, |line| line.flag("--recovery", run.path(WARMUP)));
    if warm {
        inputs.push(WARM_LAYERS);
    }
    Ok(Step {
        version: 3,
        inputs,
        command_lines: vec![line],
        must_write: match run.config.finetune.reuses_weights() {
            false => vec![RECOVERY_FILE, METRICS_FILE],
            true => vec![METRICS_FILE],
        },
        scratch: &["step-"],
        resumable: true,
        ..Step::new(Stage::Finetune, folder, finetuning_settings(run))
    })
}

/// Has the fine-tuning measure its result on the texts of the evaluation, which then is not needed.
pub(super) fn measured(run: &Run, mut finetune: Step) -> Result<Step> {
    let (texts, inputs) = evaluate::texts(run)?;
    let request = evaluate::request(run, texts);
    let line = finetune.command_lines.pop().expect("a fine-tuning is one command");
    finetune.command_lines.push(line.flag("--texts", in_folder(run, finetune.folder, TEXTS_FILE)));
    finetune.files.push((TEXTS_FILE, toml::to_string(&request).context(TEXTS_FILE)?));
    finetune.inputs.extend(inputs);
    let evaluate = &run.config.evaluate;
    finetune.settings = finetune
        .settings
        .key("evaluate.texts", &evaluate.texts)
        .key("evaluate.text_tokens", &evaluate.text_tokens)
        .key("evaluate.window", &evaluate.window);
    Ok(finetune)
}
