//! `cargo xtask study`: a grid of configurations, each a run that the pipeline makes, and their results side by side.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::engine::{self, Outcome, Span};
use crate::provision::write_atomic;
use crate::run_folder::{self, Run};
use crate::stages::{self, Stage, Step};
use crate::study::{Cell, State, Study, Table, svg};
use crate::{child, paths};

/// How far every cell goes.
const SPAN: Span = Span { from: None, until: Some(Stage::Evaluate), again: None };

/// Options of `study`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The study, for example configs/studies/size_sweep.toml
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Run only these cells
    #[arg(long, value_name = "CELL", value_delimiter = ',')]
    only: Vec<String>,
    /// Replace one value of every cell's configuration, as in --set finetune_steps=200; may be given several times
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
    cells: Vec<Outcomes>,
    /// What was written: the table and the picture.
    written: Vec<String>,
}

/// What happened, or would happen, to a cell.
#[derive(Debug, Serialize)]
struct Outcomes {
    cell: String,
    /// `ran`, `stands`, `failed` or, in a dry run, `would_run`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    steps: Vec<Outcome>,
}

/// Runs the cells one after another, and lays their results side by side.
pub(crate) fn run(args: &Args) -> Result<()> {
    let study = Study::load(&args.file, &args.overrides)?;
    let chosen = study.chosen(&args.only)?;
    let folder = match &args.out {
        Some(path) => std::path::absolute(path).with_context(|| format!("the folder {}", path.display()))?,
        None => paths::repository()?.join("runs").join(&study.name),
    };
    let place = Place { study: &study, folder: &folder };
    if args.dry_run {
        return dry_run(args, &place, &chosen);
    }
    child::catch_signals()?;
    let _lock = run_folder::lock(&folder)?;
    let mut cells: Vec<Outcomes> = Vec::new();
    let mut states = place.states()?;
    let mut waiting: usize = chosen.iter().filter(|cell| !place.stands(cell, &states)).count();
    let (mut worked, mut seconds) = (0u32, 0.0);
    let mut stopped = None;
    for (index, cell) in chosen.iter().enumerate() {
        let stood = place.stands(cell, &states);
        if !stood {
            let left = match worked {
                0 => String::new(),
                n => format!(", about {} left", minutes(seconds / f64::from(n) * waiting as f64)),
            };
            eprintln!("\n== {}/{} {} ({waiting} to run{left})", index + 1, chosen.len(), cell.name);
        }
        let begun = Instant::now();
        let outcome = place.steps(cell).and_then(|(run, steps)| engine::execute(&run, &steps, SPAN));
        let (status, error, steps, state) = match outcome {
            Ok(steps) => (if stood { "stands" } else { "ran" }, None, steps, State::Done),
            Err(error) if error.is::<child::Stopped>() => {
                stopped = Some(error);
                break;
            }
            Err(error) => {
                let error = format!("{error:#}");
                eprintln!("the cell {} failed: {error}", cell.name);
                ("failed", Some(error.clone()), Vec::new(), State::Failed { error })
            }
        };
        if !stood {
            waiting -= 1;
            if status == "ran" {
                worked += 1;
                seconds += begun.elapsed().as_secs_f64();
            }
        }
        if let Some(i) = place.index(cell) {
            states[i] = state;
        }
        cells.push(Outcomes { cell: cell.name.clone(), status, error, steps });
        place.write(args, &states)?;
    }
    let written = place.write(args, &states)?;
    if let Some(stopped) = stopped {
        return Err(stopped);
    }
    let failed: Vec<&str> =
        cells.iter().filter(|cell| cell.status == "failed").map(|cell| cell.cell.as_str()).collect();
    let failure = (!failed.is_empty())
        .then(|| format!("{} of {} cells failed: {}", failed.len(), chosen.len(), failed.join(", ")));
    eprintln!("\n{}: {}", study.name, written.join(", "));
    if args.json {
        print(&Summary {
            study: &study.name,
            folder: paths::shown(&folder),
            dry_run: false,
            cells,
            written,
        })?;
    }
    match failure {
        Some(failure) => bail!("{failure}; the same command tries them again"),
        None => Ok(()),
    }
}

/// A study in its folder.
struct Place<'a> {
    study: &'a Study,
    folder: &'a Path,
}

impl Place<'_> {
    /// A cell's run, and the steps that its rows need.
    fn steps(&self, cell: &Cell) -> Result<(Run, Vec<Step>)> {
        let others = self.study.cells.iter().filter(|other| other.name != cell.name);
        let run = Run {
            config: cell.config.clone(),
            config_file: self.study.file.clone(),
            folder: self.folder.join(&cell.name),
            siblings: others.map(|other| self.folder.join(&other.name)).collect(),
        };
        let mut steps = stages::needed_for(stages::EVALUATE, stages::steps(&run)?);
        stages::check_memory_first(&run, &mut steps)?;
        Ok((run, steps))
    }

    fn look(&self, cell: &Cell) -> Result<Vec<Outcome>> {
        let (run, steps) = self.steps(cell)?;
        engine::dry_run(&run, &steps, SPAN)
    }

    /// How far each cell of the study is.
    fn states(&self) -> Result<Vec<State>> {
        let state = |cell| -> Result<State> {
            let stands = self.look(cell)?.iter().all(|step| step.status == "skipped");
            Ok(if stands { State::Done } else { State::Missing })
        };
        self.study.cells.iter().map(state).collect()
    }

    fn index(&self, cell: &Cell) -> Option<usize> {
        self.study.cells.iter().position(|other| other.name == cell.name)
    }

    fn stands(&self, cell: &Cell, states: &[State]) -> bool {
        self.index(cell).and_then(|i| states.get(i)) == Some(&State::Done)
    }

    /// Writes table and picture where they are not as they should be, and names them.
    fn write(&self, args: &Args, states: &[State]) -> Result<Vec<String>> {
        let mut command = format!("cargo xtask study {}", args.file.display());
        for assignment in &args.overrides {
            command.push_str(&format!(" --set {assignment}"));
        }
        let table = Table::read(self.study, self.folder, command, states)?;
        let mut files = vec![("table.json", table.json()?), ("table.md", table.markdown())];
        files.extend(svg(self.study, &table).map(|picture| ("plot.svg", picture)));
        let mut written = Vec::new();
        for (name, text) in files {
            let path = self.folder.join(name);
            if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
                write_atomic(&path, text.as_bytes())?;
            }
            written.push(paths::shown(&path));
        }
        Ok(written)
    }
}

fn dry_run(args: &Args, place: &Place<'_>, chosen: &[&Cell]) -> Result<()> {
    let mut cells = Vec::new();
    for cell in chosen {
        let steps = place.look(cell)?;
        let stands = steps.iter().all(|step| step.status == "skipped");
        let status = if stands { "stands" } else { "would_run" };
        cells.push(Outcomes { cell: cell.name.clone(), status, error: None, steps });
    }
    if args.json {
        let (study, folder) = (&place.study.name, paths::shown(place.folder));
        return print(&Summary { study, folder, dry_run: true, cells, written: Vec::new() });
    }
    let wide = cells.iter().map(|cell| cell.cell.len()).max().unwrap_or_default();
    for (cell, outcomes) in chosen.iter().zip(&cells) {
        let standing = outcomes.steps.iter().filter(|step| step.status == "skipped").count();
        let next = outcomes.steps.iter().find(|step| step.status == "would_run");
        println!(
            "{:<wide$}  {:<22} {:<26} {standing} of {} stages stand{}",
            cell.name,
            size(cell),
            format!("{} fine-tuning steps", cell.config.finetune_steps),
            outcomes.steps.len(),
            next.map_or(String::new(), |step| format!("; next {} ({})", step.folder, step.reason))
        );
    }
    let waiting = cells.iter().filter(|cell| cell.status == "would_run").count();
    println!("{} cells, {waiting} to run", cells.len());
    Ok(())
}

/// What a cell is asked to save.
fn size(cell: &Cell) -> String {
    match (cell.config.targets, cell.config.explicit.is_empty()) {
        (_, false) => format!("layers {}", cell.config.explicit),
        (0, true) => format!("saves {:.1} % or more", 100.0 * cell.config.remove),
        (targets, true) => format!("replaces {targets} MLPs"),
    }
}

fn print(summary: &Summary<'_>) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(summary).context("the outcome as JSON")?);
    Ok(())
}

fn minutes(seconds: f64) -> String {
    if seconds < 90.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) }
}
