//! `cargo xtask pipeline`, and each stage by its own name.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use sharp_pipeline::{Look, Outcome, Run, Span, Stage, StepStatus, stages};
use sharp_schema::run::{IMPORT, REPORT_PAGE};

use crate::build::{self, Cargo};
use crate::observer::{catch_signals, stderr};
use crate::paths;

/// The run that is meant.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RunArgs {
    /// The configuration of the run
    #[arg(long, value_name = "FILE", default_value = "configs/smollm2-135m.toml")]
    pub(crate) config: PathBuf,
    /// Replace one value of the configuration, as in --set plan.remove=0.4; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// The folder of the run; `runs/` and the name of the configuration by default
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

impl RunArgs {
    pub(crate) fn resolve(&self) -> Result<Run> {
        Ok(Run::resolve(&paths::workspace()?, &self.config, &self.overrides, self.out.as_deref())?)
    }

    /// Formats the options as a shell takes them: another command with them speaks of the same run.
    pub(crate) fn for_shell(&self) -> String {
        let mut words = vec!["--config".to_owned(), self.config.display().to_string()];
        words.extend(self.overrides.iter().flat_map(|value| ["--set".to_owned(), value.clone()]));
        words.extend(self.out.iter().flat_map(|out| ["--out".to_owned(), out.display().to_string()]));
        sharp_pipeline::for_shell(words.iter().map(String::as_str))
    }
}

/// Takes the name of a stage.
fn stage_name() -> impl TypedValueParser<Value = Stage> {
    PossibleValuesParser::new(Stage::ALL.map(Stage::name)).try_map(|name| name.parse::<Stage>())
}

/// Options of `pipeline`.
#[derive(Debug, clap::Args)]
pub(crate) struct PipelineArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Make this stage and all after it again
    #[arg(long, value_name = "STAGE", value_parser = stage_name())]
    from: Option<Stage>,
    /// Stop after this stage
    #[arg(long, value_name = "STAGE", value_parser = stage_name())]
    until: Option<Stage>,
    /// Read every file again that was written, large ones as well, to see whether it is as it was
    #[arg(long)]
    verify: bool,
    /// Say what would run and why, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the outcome as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Options of a single stage.
#[derive(Debug, clap::Args)]
pub(crate) struct StageArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Make it again even if its outputs are up to date
    #[arg(long)]
    force: bool,
    /// Read every file again that was written, large ones as well, to see whether it is as it was
    #[arg(long)]
    verify: bool,
    /// Say what would run and why, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the outcome as one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    run: String,
    dry_run: bool,
    report: Option<String>,
    steps: &'a [Outcome],
}

/// Runs all stages, or the asked part of them.
pub(crate) fn pipeline(args: &PipelineArgs) -> Result<()> {
    if let (Some(from), Some(until)) = (args.from, args.until)
        && from > until
    {
        bail!("--from {} comes after --until {}", from.name(), until.name());
    }
    let span = Span { from: args.from, until: args.until, again: None, look: look(args.verify) };
    go(&args.run, span, args.dry_run, args.json)
}

/// Runs one stage, and the stages before it where their outputs are not up to date.
pub(crate) fn stage(stage: Stage, args: &StageArgs) -> Result<()> {
    let again = args.force.then_some(stage);
    let span = Span { from: None, until: Some(stage), again, look: look(args.verify) };
    go(&args.run, span, args.dry_run, args.json)
}

fn look(verify: bool) -> Look {
    if verify { Look::Whole } else { Look::Quick }
}

fn go(args: &RunArgs, span: Span, dry_run: bool, json: bool) -> Result<()> {
    let run = args.resolve()?;
    let mut steps = stages::steps(&run)?;
    let trains = span.until.is_none_or(|until| until >= Stage::Warmup);
    if trains {
        stages::check_model_first(&run, &mut steps)?;
    }
    if span.until.is_none_or(|until| until >= Stage::Finetune) {
        stages::check_memory_first(&run, &mut steps)?;
    }
    let outcomes = if dry_run {
        sharp_pipeline::dry_run(&run, &steps, span, &stderr)?
    } else {
        catch_signals()?;
        sharp_pipeline::execute(&run, &steps, span, &Cargo, &stderr)?
    };
    if dry_run && !json {
        for outcome in &outcomes {
            println!("{:<18} {:<10} {}", outcome.folder, outcome.status, outcome.reason);
            let step = steps.iter().find(|step| step.folder.name() == outcome.folder);
            for line in step
                .filter(|_| outcome.status == StepStatus::WouldRun)
                .iter()
                .flat_map(|step| &step.command_lines)
            {
                println!("{:18} $ {}", "", line.for_shell(&run));
            }
        }
    }
    if dry_run && trains {
        refuse_untrainable(&run, &outcomes)?;
    }
    let page = run.path(REPORT_PAGE);
    let report = page.is_file().then(|| paths::shown(&page));
    if !dry_run && outcomes.iter().any(|outcome| outcome.status == StepStatus::Ran) {
        let total: f64 = outcomes
            .iter()
            .filter(|outcome| outcome.status == StepStatus::Ran)
            .filter_map(|outcome| outcome.wall_s)
            .sum();
        eprintln!("\n{}: {total:.0} s in all", paths::shown(&run.folder));
        if let (Some(report), None) = (&report, span.until) {
            eprintln!(
                "report: {report}\ntry it: cargo xtask generate {} --prompt \"Hello\"",
                args.for_shell()
            );
        }
    }
    if json {
        let summary = Summary { run: paths::shown(&run.folder), dry_run, report, steps: &outcomes };
        println!("{}", serde_json::to_string_pretty(&summary).context("the outcome as JSON")?);
    }
    Ok(())
}

/// Lets `sharp` refuse a model that training cannot take, as it would in the run itself before the import.
fn refuse_untrainable(run: &Run, outcomes: &[Outcome]) -> Result<()> {
    let imports =
        |outcome: &Outcome| outcome.folder == IMPORT.name() && outcome.status == StepStatus::WouldRun;
    let Some(line) = stages::model_check(run)?.filter(|_| outcomes.iter().any(imports)) else {
        return Ok(());
    };
    let mut command = Command::new(build::provide(&[line.program])?.path(line.program)?);
    command.args(&line.arguments).stdin(Stdio::null()).stdout(Stdio::from(std::io::stderr()));
    let shown = line.for_shell(run);
    if !command.status().with_context(|| format!("starting {shown}"))?.success() {
        bail!("the run would stop at its first command: {shown}");
    }
    Ok(())
}
