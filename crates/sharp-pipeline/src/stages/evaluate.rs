//! Evaluate: perplexity and task accuracy of every row.

use sharp_schema::evaluation::{Request, RowRequest, TaskRequest, TextRequest};
use sharp_schema::run::{
    COMPACT, COMPRESSED_MODEL, EVALUATE, EXPORT, FINETUNE_COLD, IMPORT, ORIGINAL_MODEL, PLAN, PLAN_FILE,
    QUANTIZE, RECOVERY_FILE, RESULTS_FILE, ROWS_FILE, UNREPAIRED_MODEL, WARMUP,
};

use super::command_line::CommandLine;
use super::settings::Settings;
use super::stage::Stage;
use super::step::{COMPACT_FILES, Input, MODEL_FILES, PLAN_INPUT, Step, WARM_LAYERS, data, in_folder};
use crate::config::{Row, Text, task_parts};
use crate::error::{Context as _, Result};
use crate::run_folder::Run;

pub(super) fn step(run: &Run) -> Result<Step> {
    let config = &run.config;
    let evaluate = &config.evaluate;
    let (rows, notes) = config.rows();
    let mut inputs = vec![MODEL_FILES, PLAN_INPUT];
    let (texts, of_texts) = texts(run)?;
    let mut request = request(run, texts);
    for &row in &rows {
        let (model, input) = measured(run, row);
        request.rows.push(model);
        inputs.extend(input);
    }
    inputs.extend(of_texts);
    for task in &evaluate.tasks {
        let (name, typed) = task_parts(task);
        let (argument, input) = data(run, "evaluate.tasks", typed)?;
        let limit = evaluate.task_limit.map(Into::into);
        request.tasks.push(TaskRequest { name: name.to_owned(), path: argument.into(), limit });
        inputs.push(input);
    }
    inputs.dedup();
    let line = CommandLine::sharp("evaluate")
        .flag("--rows", in_folder(run, EVALUATE, ROWS_FILE))
        .flag("--out", in_folder(run, EVALUATE, RESULTS_FILE));
    let settings = Settings::default()
        .section("evaluate", evaluate)
        .key("evaluate.rows", &rows)
        .key("data.held_out", &config.data.held_out)
        .key("seed", &config.seed);
    Ok(Step {
        version: 3,
        inputs,
        command_lines: vec![line.threads(run)],
        must_write: vec![RESULTS_FILE],
        files: vec![(ROWS_FILE, toml::to_string(&request).context(ROWS_FILE)?)],
        notes,
        ..Step::new(Stage::Evaluate, EVALUATE, settings)
    })
}

/// Asks for these texts, and for no model yet.
pub(super) fn request(run: &Run, texts: Vec<TextRequest>) -> Request {
    let config = &run.config;
    Request {
        window: config.evaluate.window.get(),
        stride: config.evaluate.stride.get(),
        held_out: config.data.held_out,
        seed: config.seed,
        rows: Vec::new(),
        texts,
        tasks: Vec::new(),
    }
}

/// Returns the texts to measure, and what is read for them.
pub(super) fn texts(run: &Run) -> Result<(Vec<TextRequest>, Vec<Input>)> {
    let evaluate = &run.config.evaluate;
    let (mut texts, mut inputs) = (Vec::new(), Vec::new());
    for text in &evaluate.texts {
        let text = Text::parse(text)?;
        let (argument, input) = data(run, "evaluate.texts", text.data)?;
        texts.push(TextRequest {
            name: text.name.to_owned(),
            data: argument,
            split: text.side,
            tokens: Some(evaluate.text_tokens.get()),
        });
        inputs.push(input);
    }
    Ok((texts, inputs))
}

/// Returns the model behind a row, and what it is made from beside the import and the plan.
fn measured(run: &Run, row: Row) -> (RowRequest, Option<Input>) {
    let name = row.result_name(&run.config.quantize.recipe.precision());
    let plan = || Some(in_folder(run, PLAN, PLAN_FILE));
    let import = || run.path(IMPORT);
    let model = |model, plan, recovery| RowRequest { name: name.clone(), model, plan, recovery };
    let packed = |file: &'static str, prefix: &'static [&'static str]| {
        (model(in_folder(run, QUANTIZE, file), None, None), Some(Input::From(QUANTIZE, prefix)))
    };
    match row {
        Row::Original => (model(import(), None, None), None),
        Row::Untrained => (model(import(), plan(), None), None),
        Row::Slw => (model(import(), plan(), Some(run.path(WARMUP))), Some(WARM_LAYERS)),
        Row::Sft => {
            let trained = in_folder(run, FINETUNE_COLD, RECOVERY_FILE);
            let input = Input::From(FINETUNE_COLD, &[RECOVERY_FILE]);
            (model(import(), plan(), Some(trained)), Some(input))
        }
        Row::SlwSft => (model(in_folder(run, EXPORT, COMPACT), None, None), Some(COMPACT_FILES)),
        Row::SlwSftQ4 => packed(COMPRESSED_MODEL, &[COMPRESSED_MODEL]),
        Row::UnrepairedQ4 => packed(UNREPAIRED_MODEL, &[UNREPAIRED_MODEL]),
        Row::OriginalQ4 => packed(ORIGINAL_MODEL, &[ORIGINAL_MODEL]),
    }
}
