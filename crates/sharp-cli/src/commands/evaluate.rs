//! `sharp evaluate`: perplexity, distance from the original and task accuracy of several models at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use sharp_data::{Chat, DataSpec, Task};
use sharp_eval::{EvalRow, Results, Text, TextSettings, Windows};
use sharp_infer::{Model, Options, Team};
use sharp_model::tokenizer::Tokenizer;
use sharp_model::{ModelSource, Stored};
use sharp_progress::Terminal;
use sharp_schema::Side;
use sharp_schema::evaluation::{self, RowRequest, TaskRequest, default_held_out};

use crate::Global;
use crate::commands::export;
use crate::hub;
use crate::output::{self, Output};

/// Measure perplexity, distance from the first model, and multiple-choice accuracy.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sharp evaluate --model original --model model.sharp --text prose=prose.txt --out results.json\n  \
                  sharp evaluate --rows rows.toml --out results.json\n\nrows.toml holds window, stride, held_out, seed, and tables \
                  [[rows]] (name, model, plan, recovery), [[texts]] (name, data, split, tokens), [[tasks]] (name, path, limit)."
)]
pub(crate) struct Args {
    /// What to measure, as a TOML file; instead of the options below.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "text", "task"])]
    rows: Option<PathBuf>,
    /// A model, NAME=PATH or PATH: a model.sharp file, a Hugging Face directory or a GGUF file; the others
    /// are compared with the first.
    #[arg(long, value_name = "MODEL", required_unless_present = "rows")]
    pub(crate) model: Vec<Named<PathBuf>>,
    /// A text, NAME=DATA or DATA: PATH, PATH#VIEW or PATH#VIEW:LIMIT.
    #[arg(long, value_name = "TEXT")]
    text: Vec<Named<DataSpec>>,
    /// A task, NAME=PATH or PATH of a requests.jsonl(.gz).
    #[arg(long, value_name = "TASK")]
    task: Vec<Named<PathBuf>>,
    /// Tokens of each text; all of it by default.
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Questions of each task; all by default.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Tokens a model sees at once.
    #[arg(long, value_name = "N", default_value_t = 512)]
    window: usize,
    /// How far the window moves; the window's size by default.
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Where to write the results as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// `NAME=VALUE`, or a value that gives its own name.
#[derive(Debug, Clone)]
pub(crate) struct Named<T> {
    pub(crate) name: Option<String>,
    pub(crate) value: T,
}

impl<T: FromStr> FromStr for Named<T> {
    type Err = T::Err;

    fn from_str(typed: &str) -> Result<Self, T::Err> {
        // A path may hold a '=' of its own: a name has no separators.
        match typed.split_once('=') {
            Some((name, value)) if !name.is_empty() && !name.contains(['/', '\\', '.']) => {
                Ok(Named { name: Some(name.to_owned()), value: value.parse()? })
            }
            _ => Ok(Named { name: None, value: typed.parse()? }),
        }
    }
}

/// Texts are named by files and views.
type Request = evaluation::Request<DataSpec>;
type TextRequest = evaluation::TextRequest<DataSpec>;

fn read_request(path: &Path) -> Result<Request> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

fn request_of(args: &Args) -> Request {
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let rows = args.model.iter().map(|m| RowRequest {
        name: m.name.clone().unwrap_or_else(|| hub::name(&m.value)),
        model: m.value.clone(),
        plan: None,
        recovery: None,
    });
    let texts = args.text.iter().map(|t| TextRequest {
        name: t.name.clone().unwrap_or_else(|| stem(&t.value.path)),
        data: t.value.clone(),
        split: Side::All,
        tokens: args.tokens,
    });
    let tasks = args.task.iter().map(|t| TaskRequest {
        name: t.name.clone().or_else(|| Task::name_of(&t.value)).unwrap_or_else(|| stem(&t.value)),
        path: t.value.clone(),
        limit: args.limit,
    });
    Request {
        window: args.window,
        stride: args.stride.unwrap_or(args.window),
        held_out: default_held_out(),
        seed: 0,
        rows: rows.collect(),
        texts: texts.collect(),
        tasks: tasks.collect(),
    }
}

/// Opens the models of the rows; those of one checkpoint share it.
fn open(rows: &[RowRequest], threads: usize) -> Result<Vec<Model>> {
    let options = Options { team: Some(Arc::new(Team::new(threads)?)), ..Options::default() };
    let mut sources: BTreeMap<&Path, ModelSource> = BTreeMap::new();
    let mut models = Vec::with_capacity(rows.len());
    for row in rows {
        let row_of = || format!("the row {:?}", row.name);
        if row.plan.is_none() && row.recovery.is_some() {
            bail!("{}: recovery parameters need the plan they were trained for", row_of());
        }
        let stored = Stored::at(&row.model).with_context(row_of)?;
        if row.plan.is_none() && !matches!(stored, Stored::Folder(_)) {
            models.push(Model::open(&row.model, &options).with_context(row_of)?);
            continue;
        }
        let base = match sources.get(row.model.as_path()) {
            Some(source) => source.clone(),
            None => ModelSource::open(&row.model).with_context(row_of)?,
        };
        sources.entry(&row.model).or_insert_with(|| base.clone());
        let source =
            export::overlay(&base, row.plan.as_deref(), row.recovery.as_deref()).with_context(row_of)?;
        models.push(Model::from_source(&source, &options).with_context(row_of)?);
    }
    Ok(models)
}

fn text(request: &TextRequest, all: &Request, tokenizer: &Tokenizer, chat: Option<&Chat>) -> Result<Text> {
    let texts = sharp_data::read_texts(&request.data, chat, request.split, all.held_out, all.seed)?;
    Ok(Text::new(&request.name, tokenizer, &texts, request.tokens)?)
}

pub(crate) fn run(args: Args, global: &Global, output: &Output) -> Result<()> {
    let request = match &args.rows {
        Some(path) => read_request(path)?,
        None => request_of(&args),
    };
    let Some(first) = request.rows.first() else { bail!("there is no model to evaluate: give a row") };
    if request.texts.is_empty() && request.tasks.is_empty() {
        bail!("there is nothing to measure: give --text, --task, or both");
    }
    let tokenizer = Model::open_tokenizer(&first.model)?;
    let chat = Chat::from_tokenizer(&tokenizer);
    let texts: Vec<Text> = request
        .texts
        .iter()
        .map(|t| {
            text(t, &request, &tokenizer, chat.as_ref()).with_context(|| format!("the text {:?}", t.name))
        })
        .collect::<Result<_>>()?;
    let tasks: Vec<Task> = request
        .tasks
        .iter()
        .map(|t| Task::load(&t.path, &t.name, t.limit).with_context(|| format!("the task {:?}", t.name)))
        .collect::<Result<_>>()?;
    let models = open(&request.rows, global.threads())?;
    let named: Vec<(&str, &Model)> =
        request.rows.iter().map(|r| r.name.as_str()).zip(models.iter()).collect();
    let cut = Windows { window: request.window, stride: request.stride };
    let mut results = sharp_eval::measure(&named, &tokenizer, &texts, cut, &tasks, &Terminal::stderr())?;
    let settings = |t: &TextRequest| TextSettings { view: t.data.view.name().to_owned(), split: t.split };
    results.settings.texts = Some(request.texts.iter().map(|t| (t.name.clone(), settings(t))).collect());
    if let Some(path) = &args.out {
        sharp_eval::save(&results, path)?;
    }
    output.result(&results, || describe(&results))
}

/// A table with a line for each model, and what its errors are of.
fn describe(results: &Results) -> String {
    let Some(first) = results.rows.first() else { return String::new() };
    let mut head = vec!["model".to_owned(), "MLP parameters".into(), "bytes".into()];
    head.extend(
        first
            .perplexity
            .keys()
            .flat_map(|t| [format!("perplexity {t}"), format!("loss over {}", first.name)]),
    );
    head.extend(first.tasks.keys().map(|task| format!("acc {task}")));
    let line = |row: &EvalRow| {
        let mut line = vec![
            row.name.clone(),
            format!("{:.1} M", row.mlp_parameters as f64 / 1e6),
            output::bytes(row.bytes),
        ];
        line.extend(first.perplexity.keys().flat_map(|text| {
            let over = row.differences.get(text).and_then(|others| others.get(&first.name));
            [perplexity(row, text), over.map_or_else(|| "-".into(), ToString::to_string)]
        }));
        line.extend(first.tasks.keys().map(|task| {
            row.tasks.get(task).map_or_else(
                || "-".into(),
                |s| format!("{:.1} ± {:.1} %", 100.0 * s.acc, 100.0 * s.acc_stderr),
            )
        }));
        line
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(results.rows.iter().map(line)).collect();
    let mut text = output::table(&rows);
    let units: Vec<String> =
        results.settings.units.iter().map(|(text, units)| format!("{units} of {text}")).collect();
    if !units.is_empty() {
        text += &format!(
            "Loss in nats a token. Perplexity ± standard error, loss over {} [95 % interval, paired]: both by a bootstrap over {}.\n",
            first.name,
            units.join(" and ")
        );
    }
    text
}

/// A row's perplexity on a text with its standard error: that of the mean loss, taken through `exp`.
fn perplexity(row: &EvalRow, text: &str) -> String {
    let Some(&value) = row.perplexity.get(text) else { return "-".into() };
    match row.loss_stderr.get(text) {
        Some(stderr) => format!("{value:.2} ± {:.2}", value * stderr),
        None => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_from_a_path() {
        let named: Named<PathBuf> = "q4=out/model.sharp".parse().unwrap();
        assert_eq!((named.name.as_deref(), named.value), (Some("q4"), "out/model.sharp".into()));
        for path in ["out/model.sharp", "runs/lr=1e-3/model.sharp", "./a=b"] {
            let named: Named<PathBuf> = path.parse().unwrap();
            assert_eq!((named.name, named.value), (None, path.into()));
        }
    }

    #[test]
    fn a_typing_error_in_the_rows_is_named() {
        let error = toml::from_str::<Request>("window = 8\nstride = 8\n[[rows]]\nname = 'a'\nmodle = 'b'");
        assert!(error.unwrap_err().to_string().contains("modle"));
    }
}
