//! Runs the cells of a study one after another, and lays their results side by side.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::file::{Cell, Study, Until};
use super::plot::svg;
use super::table::{State, Table};
use crate::atomic::write_atomic;
use crate::error::{Context as _, Error, Result, chain};
use crate::event::{Event, Observer};
use crate::executor::{Outcome, Span, StepStatus, dry_run, execute};
use crate::lock::lock;
use crate::programs::Programs;
use crate::run_folder::Run;
use crate::stages::{self, Stage, Step};
use crate::workspace::Workspace;

/// Says what became of a cell, or would become of it in a run that is not dry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CellStatus {
    /// Some of its stages ran.
    Ran,
    /// Every stage was up to date.
    Stands,
    /// One of its stages failed.
    Failed,
    /// Some of its stages would run.
    WouldRun,
}

/// What happened, or would happen, to a cell.
#[derive(Debug, Serialize)]
pub struct CellOutcome {
    /// Name of the cell.
    pub cell: String,
    /// What became of it.
    pub status: CellStatus,
    /// The message, where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its steps.
    pub steps: Vec<Outcome>,
}

/// A study in its folder.
#[derive(Debug)]
pub struct Runner<'a> {
    workspace: &'a Workspace,
    study: &'a Study,
    folder: PathBuf,
    command: String,
}

/// What [`Runner::run`] did.
#[derive(Debug)]
pub struct StudyOutcome {
    /// The cells that were asked for, in order.
    pub cells: Vec<CellOutcome>,
    /// The files that hold the table and the picture.
    pub written: Vec<String>,
}

impl<'a> Runner<'a> {
    /// Puts a study into a folder: `out`, or the study's name in `runs/`. The table names `command` as what
    /// makes it.
    ///
    /// # Errors
    /// Where there is no current folder.
    pub fn new(
        workspace: &'a Workspace,
        study: &'a Study,
        out: Option<&Path>,
        command: String,
    ) -> Result<Self> {
        let folder = match out {
            Some(path) => {
                std::path::absolute(path).with_context(|| format!("the folder {}", path.display()))?
            }
            None => workspace.runs().join(&study.name),
        };
        Ok(Self { workspace, study, folder, command })
    }

    /// Returns the folder of the study.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Says what [`Runner::run`] would do, and changes nothing.
    ///
    /// # Errors
    /// Where a file that a step reads or has written cannot be read.
    pub fn dry_run(&self, chosen: &[&Cell], observer: Observer<'_>) -> Result<Vec<CellOutcome>> {
        let cell = |cell: &&Cell| {
            let steps = self.look(cell, observer)?;
            let status = if all_up_to_date(&steps) { CellStatus::Stands } else { CellStatus::WouldRun };
            Ok(CellOutcome { cell: cell.name.clone(), status, error: None, steps })
        };
        chosen.iter().map(cell).collect()
    }

    /// Runs the cells and writes the table after each of them. A cell that fails is reported, and the others
    /// go on.
    ///
    /// # Errors
    /// [`Error::Stopped`] after [`request_stop`](crate::request_stop); others where the study's own files
    /// cannot be written.
    pub fn run(
        &self,
        chosen: &[&Cell],
        programs: &dyn Programs,
        observer: Observer<'_>,
    ) -> Result<StudyOutcome> {
        let _lock = lock(&self.folder)?;
        let mut cells: Vec<CellOutcome> = Vec::new();
        let mut states = self.states()?;
        let mut waiting = chosen.iter().filter(|cell| !self.is_done(cell, &states)).count();
        let (mut worked, mut seconds) = (0u32, 0.0);
        for (index, cell) in chosen.iter().enumerate() {
            let stood = self.is_done(cell, &states);
            if !stood {
                let seconds_left = (worked > 0).then(|| seconds / f64::from(worked) * waiting as f64);
                let (number, of, name) = (index + 1, chosen.len(), cell.name.as_str());
                observer(&Event::CellBegins { number, of, name, waiting, seconds_left });
            }
            let begun = Instant::now();
            let outcome = match self.run_cell(cell, stood, programs, observer) {
                Err(Error::Stopped) => {
                    self.write(&states)?;
                    return Err(Error::Stopped);
                }
                outcome => outcome?,
            };
            if !stood {
                waiting -= 1;
                if outcome.status == CellStatus::Ran {
                    worked += 1;
                    seconds += begun.elapsed().as_secs_f64();
                }
            }
            if let Some(i) = self.index(cell) {
                states[i] = match outcome.error.clone() {
                    Some(error) => State::Failed { error },
                    None => State::Done,
                };
            }
            cells.push(outcome);
            self.write(&states)?;
        }
        Ok(StudyOutcome { cells, written: self.write(&states)? })
    }

    /// Runs one cell; only a stop is an error, a failure is an outcome.
    fn run_cell(
        &self,
        cell: &Cell,
        stood: bool,
        programs: &dyn Programs,
        observer: Observer<'_>,
    ) -> Result<CellOutcome> {
        let made =
            self.steps(cell).and_then(|(run, steps)| execute(&run, &steps, self.span(), programs, observer));
        let (status, error, steps) = match made {
            Ok(steps) => (if stood { CellStatus::Stands } else { CellStatus::Ran }, None, steps),
            Err(Error::Stopped) => return Err(Error::Stopped),
            Err(error) => {
                let error = chain(&error);
                observer(&Event::CellFailed { name: &cell.name, error: &error });
                (CellStatus::Failed, Some(error), Vec::new())
            }
        };
        Ok(CellOutcome { cell: cell.name.clone(), status, error, steps })
    }

    /// Returns a cell's run, and the steps that its rows need.
    fn steps(&self, cell: &Cell) -> Result<(Run, Vec<Step>)> {
        let others = self.study.cells.iter().filter(|other| other.name != cell.name);
        let run = Run {
            workspace: self.workspace.clone(),
            config: cell.config.clone(),
            config_file: self.study.file.clone(),
            folder: self.folder.join(&cell.name),
            siblings: others.map(|other| self.folder.join(&other.name)).collect(),
        };
        let mut steps = match self.study.until {
            Until::Evaluate => stages::steps_to_evaluate(&run)?,
            Until::Finetune => stages::steps_to_finetune(&run)?,
        };
        stages::check_model_first(&run, &mut steps)?;
        stages::check_memory_first(&run, &mut steps)?;
        for note in steps.iter_mut().flat_map(|step| &mut step.notes) {
            *note = format!("{}: {note}", cell.name);
        }
        Ok((run, steps))
    }

    /// How far every cell goes.
    fn span(&self) -> Span {
        let until = match self.study.until {
            Until::Evaluate => Stage::Evaluate,
            Until::Finetune => Stage::Finetune,
        };
        Span { until: Some(until), ..Span::default() }
    }

    fn look(&self, cell: &Cell, observer: Observer<'_>) -> Result<Vec<Outcome>> {
        let (run, steps) = self.steps(cell)?;
        dry_run(&run, &steps, self.span(), observer)
    }

    /// Looks how far each cell of the study is; notes about it come when it runs.
    fn states(&self) -> Result<Vec<State>> {
        let state = |cell| -> Result<State> {
            Ok(if all_up_to_date(&self.look(cell, &|_| {})?) { State::Done } else { State::Missing })
        };
        self.study.cells.iter().map(state).collect()
    }

    fn index(&self, cell: &Cell) -> Option<usize> {
        self.study.cells.iter().position(|other| other.name == cell.name)
    }

    fn is_done(&self, cell: &Cell, states: &[State]) -> bool {
        self.index(cell).is_some_and(|i| states[i] == State::Done)
    }

    /// Writes table and picture where they are not as they should be, and names them.
    fn write(&self, states: &[State]) -> Result<Vec<String>> {
        let table = Table::read(self.study, &self.folder, self.command.clone(), states)?;
        let mut files = vec![("table.json", table.json()?), ("table.md", table.markdown())];
        files.extend(svg(self.study, &table).map(|picture| ("plot.svg", picture)));
        let mut written = Vec::new();
        for (name, text) in files {
            let path = self.folder.join(name);
            if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
                write_atomic(&path, text.as_bytes())?;
            }
            written.push(self.workspace.shown(&path));
        }
        Ok(written)
    }
}

/// Returns true where no step has to be made.
fn all_up_to_date(steps: &[Outcome]) -> bool {
    steps.iter().all(|step| step.status == StepStatus::Skipped)
}
