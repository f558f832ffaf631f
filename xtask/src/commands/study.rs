//! `cargo xtask study`: a grid of configurations, each a run that the pipeline makes, and their results side
//! by side.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sharp_pipeline::study::{Cell, CellOutcome, CellStatus, Runner, StudyOutcome};
use sharp_pipeline::{StepStatus, Study};

use crate::build::Cargo;
use crate::observer::{catch_signals, stderr};
use crate::paths;

/// Options of `study`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The study, for example configs/studies/size_sweep.toml
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Run only these cells
    #[arg(long, value_name = "CELL", value_delimiter = ',')]
    only: Vec<String>,
    /// Replace one value of every cell's configuration, as in --set finetune.steps=200; may be given several
    /// times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// The folder of the study; `runs/` and its name by default
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Say which cells there are, how large each becomes and what is done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the outcome as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    study: &'a str,
    folder: String,
    dry_run: bool,
    cells: Vec<CellOutcome>,
    /// What was written: the table and the picture.
    written: Vec<String>,
}

/// Runs the cells one after another, and lays their results side by side.
pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = paths::workspace()?;
    let study = Study::load(&workspace, &args.file, &args.overrides)?;
    let chosen = study.chosen(&args.only)?;
    let file = args.file.display().to_string();
    let mut words = vec!["cargo", "xtask", "study", &file];
    words.extend(args.overrides.iter().flat_map(|assignment| ["--set", assignment]));
    let command = sharp_pipeline::for_shell(words);
    let runner = Runner::new(&workspace, &study, args.out.as_deref(), command)?;
    let folder = workspace.shown(runner.folder());
    if args.dry_run {
        let cells = runner.dry_run(&chosen, &stderr)?;
        if args.json {
            return print(&Summary { study: &study.name, folder, dry_run: true, cells, written: Vec::new() });
        }
        list(&chosen, &cells);
        return Ok(());
    }
    catch_signals()?;
    let StudyOutcome { cells, written } = runner.run(&chosen, &Cargo, &stderr)?;
    let failed: Vec<&str> = cells
        .iter()
        .filter(|cell| cell.status == CellStatus::Failed)
        .map(|cell| cell.cell.as_str())
        .collect();
    let failure = (!failed.is_empty())
        .then(|| format!("{} of {} cells failed: {}", failed.len(), chosen.len(), failed.join(", ")));
    eprintln!("\n{}: {}", study.name, written.join(", "));
    if args.json {
        print(&Summary { study: &study.name, folder, dry_run: false, cells, written })?;
    }
    match failure {
        Some(failure) => bail!("{failure}; the same command tries them again"),
        None => Ok(()),
    }
}

/// Prints a line for each cell: its size, how much of it is done, what comes next.
fn list(chosen: &[&Cell], cells: &[CellOutcome]) {
    let wide = cells.iter().map(|cell| cell.cell.len()).max().unwrap_or_default();
    for (cell, outcomes) in chosen.iter().zip(cells) {
        let standing = outcomes.steps.iter().filter(|step| step.status == StepStatus::Skipped).count();
        let next = outcomes.steps.iter().find(|step| step.status == StepStatus::WouldRun);
        println!(
            "{:<wide$}  {:<22} {:<26} {standing} of {} stages up to date{}",
            cell.name,
            cell.size(),
            format!("{} fine-tuning steps", cell.finetune_steps()),
            outcomes.steps.len(),
            next.map_or(String::new(), |step| format!("; next {} ({})", step.folder, step.reason))
        );
    }
    let waiting = cells.iter().filter(|cell| cell.status == CellStatus::WouldRun).count();
    println!("{} cells, {waiting} to run", cells.len());
}

fn print(summary: &Summary<'_>) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(summary).context("the outcome as JSON")?);
    Ok(())
}
