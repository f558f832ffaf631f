//! Decides for each step whether its outputs are up to date, and makes those that are not.

mod decision;
mod making;
mod outcome;
mod span;

use crate::error::{Error, Result};
use crate::event::{Event, Observer};
use crate::process;
use crate::programs::Programs;
use crate::run_folder::Run;
use crate::stages::Step;
use decision::{Action, Made, decide};
use making::Making;

pub use outcome::{Outcome, StepStatus};
pub use span::Span;

/// Says what [`execute`] would do, and changes nothing.
///
/// # Errors
/// Where a file that a step reads or has written cannot be read.
pub fn dry_run(run: &Run, steps: &[Step], span: Span, observer: Observer<'_>) -> Result<Vec<Outcome>> {
    announce_notes(steps, span, observer);
    forecast(run, steps, span, observer)
}

/// Says what the configuration of these steps asks for and cannot have.
fn announce_notes(steps: &[Step], span: Span, observer: Observer<'_>) {
    for text in steps.iter().filter(|step| span.contains(step.stage)).flat_map(|step| &step.notes) {
        observer(&Event::Note { text });
    }
}

/// Looks at every step and changes nothing.
fn forecast(run: &Run, steps: &[Step], span: Span, observer: Observer<'_>) -> Result<Vec<Outcome>> {
    let mut made = Made::new();
    let mut outcomes = Vec::new();
    for step in steps.iter().filter(|step| span.contains(step.stage)) {
        let action = decide(run, step, span, &made, observer)?;
        let reason = action.reason(run);
        let (status, manifest) = match action {
            Action::Skip(old) => (StepStatus::Skipped, Some(old)),
            Action::Start(_) | Action::Resume => (StepStatus::WouldRun, None),
            Action::Reuse(manifest, _) => (StepStatus::WouldReuse, Some(manifest)),
        };
        outcomes.push(Outcome::new(step, status, reason, manifest.as_deref()));
        made.insert(step.folder, manifest.map(|manifest| *manifest));
    }
    Ok(outcomes)
}

/// Makes every step whose outputs are not up to date.
///
/// # Errors
/// [`Error::Stopped`] after [`request_stop`](crate::request_stop); [`Error::StageFailed`] where a program
/// fails; others where something that the steps need is missing.
pub fn execute(
    run: &Run,
    steps: &[Step],
    span: Span,
    programs: &dyn Programs,
    observer: Observer<'_>,
) -> Result<Vec<Outcome>> {
    let lock = run.lock()?;
    let forecast = forecast(run, steps, span, observer)?;
    if forecast.iter().all(|outcome| outcome.status == StepStatus::Skipped) {
        observer(&Event::NothingToDo { run: &run.workspace.shown(&run.folder) });
        return Ok(forecast);
    }
    announce_notes(steps, span, observer);
    let wanted: Vec<&Step> = steps.iter().filter(|step| span.contains(step.stage)).collect();
    let would_run =
        forecast.iter().zip(&wanted).filter(|(outcome, _)| outcome.status == StepStatus::WouldRun);
    let to_run: Vec<&Step> = would_run.map(|(_, step)| *step).collect();
    let making = Making::begin(run, &to_run, lock, programs, observer)?;
    run.write_config()?;
    let mut made = Made::new();
    let mut outcomes = Vec::new();
    for (index, step) in wanted.iter().enumerate() {
        if process::stop_requested() {
            return Err(Error::Stopped);
        }
        let action = decide(run, step, span, &made, observer)?;
        let reason = action.reason(run);
        if !matches!(action, Action::Skip(_)) {
            let (number, of) = (index + 1, wanted.len());
            observer(&Event::Begins { number, of, folder: step.folder.name(), reason: &reason });
        }
        let (status, manifest) = match action {
            Action::Skip(old) => (StepStatus::Skipped, *old),
            Action::Reuse(manifest, from) => (StepStatus::Reused, making.reuse(step, *manifest, &from)?),
            Action::Start(_) => (StepStatus::Ran, making.make(step, &made, false)?),
            Action::Resume => (StepStatus::Ran, making.make(step, &made, true)?),
        };
        outcomes.push(Outcome::new(step, status, reason, Some(&manifest)));
        made.insert(step.folder, Some(manifest));
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use sharp_schema::manifest::{Manifest, Status};

    use super::*;
    use crate::config::Config;
    use crate::manifest::{self, Look};
    use crate::workspace::Workspace;

    use crate::programs::InFolder;
    use crate::stages::{Settings, Stage};

    fn silent(_: &Event<'_>) {}

    /// A run beside which another one has finished a step with the outputs `plan.toml` and, linked,
    /// `large.bin`.
    fn beside_a_finished_one(folder: &Path) -> (Run, Step) {
        let run = |name: &str| Run {
            workspace: Workspace::new(folder).unwrap(),
            config: Config::default(),
            config_file: "x.toml".into(),
            folder: folder.join(name),
            siblings: Vec::new(),
        };
        let step = || Step {
            stage: Stage::Plan,
            folder: sharp_schema::run::PLAN,
            command_lines: Vec::new(),
            version: 1,
            settings: Settings::default(),
            inputs: Vec::new(),
            must_write: vec!["plan.toml"],
            outputs_in_run: Vec::new(),
            scratch: &[],
            editable: true,
            resumable: false,
            files: vec![("plan.toml", "a plan".to_owned())],
            notes: Vec::new(),
        };
        let other = run("other");
        fs::create_dir_all(&other.folder).unwrap();
        let lock = other.lock().unwrap();
        let making = Making::begin(&other, &[], lock, &InFolder(folder.into()), &silent).unwrap();
        let mut made = making.make(&step(), &Made::new(), false).unwrap();
        let large = other.path("03-plan/large.bin");
        fs::write(&large, vec![7u8; manifest::ALWAYS_HASHED as usize + 1]).unwrap();
        made.outputs.push(manifest::record(&large, "03-plan/large.bin".into(), &[], Look::Quick).unwrap());
        manifest::write(&made, &other.path("03-plan")).unwrap();
        (Run { siblings: vec![run("none").folder, other.folder], ..run("mine") }, step())
    }

    #[test]
    fn what_a_sibling_made_from_the_same_is_taken_over_and_then_stands() {
        let folder = tempfile::tempdir().unwrap();
        let (run, step) = beside_a_finished_one(folder.path());
        let steps = [step];
        assert_eq!(
            dry_run(&run, &steps, Span::default(), &silent).unwrap()[0].status,
            StepStatus::WouldReuse
        );
        assert!(!run.folder.exists(), "a dry run writes nothing");
        assert_eq!(
            execute(&run, &steps, Span::default(), &InFolder(folder.path().into()), &silent).unwrap()[0]
                .status,
            StepStatus::Reused
        );
        assert_eq!(dry_run(&run, &steps, Span::default(), &silent).unwrap()[0].status, StepStatus::Skipped);
        // A plan is a person's to edit: in one run, not in all.
        fs::write(run.path("03-plan/plan.toml"), "an edit").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("other/03-plan/plan.toml")).unwrap(), "a plan");
        let forced = Span { again: Some(Stage::Plan), ..Span::default() };
        assert_eq!(
            dry_run(&run, &steps, forced, &silent).unwrap()[0].status,
            StepStatus::WouldRun,
            "asked for is made"
        );
    }

    #[test]
    fn a_manifest_that_is_a_folder_or_lists_nothing_means_the_step_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let (mut run, step) = beside_a_finished_one(folder.path());
        run.siblings.clear();
        let (steps, programs) = ([step], InFolder(folder.path().into()));
        let make = || execute(&run, &steps, Span::default(), &programs, &silent).unwrap().remove(0);
        assert_eq!(make().status, StepStatus::Ran);
        assert_eq!(make().status, StepStatus::Skipped);
        let made = manifest::read(&run.path("03-plan")).unwrap();
        manifest::write(&Manifest { outputs: Vec::new(), ..made }, &run.path("03-plan")).unwrap();
        let again = make();
        assert_eq!(again.status, StepStatus::Ran);
        assert_eq!(again.reason, "its manifest does not list 03-plan/plan.toml");
        let path = run.path("03-plan/manifest.json");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "").unwrap();
        assert_eq!(make().reason, "its manifest is missing or unreadable");
        assert_eq!(make().status, StepStatus::Skipped);
    }

    #[test]
    fn a_large_file_that_rots_is_made_again_where_all_is_verified() {
        let folder = tempfile::tempdir().unwrap();
        let (run, mut step) = beside_a_finished_one(folder.path());
        step.editable = false;
        let (steps, programs) = ([step], InFolder(folder.path().into()));
        execute(&run, &steps, Span::default(), &programs, &silent).unwrap();
        let large = run.path("03-plan/large.bin");
        let time = fs::metadata(&large).unwrap().modified().unwrap();
        let mut bytes = fs::read(&large).unwrap();
        bytes[99] ^= 1;
        fs::write(&large, bytes).unwrap();
        fs::File::options().append(true).open(&large).unwrap().set_modified(time).unwrap();
        let look = |look| dry_run(&run, &steps, Span { look, ..Span::default() }, &silent).unwrap().remove(0);
        assert_eq!(look(Look::Quick).status, StepStatus::Skipped);
        // The sibling's is the same file by a link: it is not taken over.
        assert_eq!(look(Look::Whole).status, StepStatus::WouldRun);
    }

    #[test]
    fn a_run_that_is_moved_says_what_is_another_there() {
        let folder = tempfile::tempdir().unwrap();
        let (run, mut step) = beside_a_finished_one(folder.path());
        let number_type = |name: &str| Settings::default().key("training.bf16", &name);
        let look = |step: &Step| {
            dry_run(&run, std::slice::from_ref(step), Span::default(), &silent).unwrap().remove(0)
        };
        step.settings = number_type("bf16");
        let programs = InFolder(folder.path().into());
        execute(&run, std::slice::from_ref(&step), Span::default(), &programs, &silent).unwrap();
        assert_eq!(look(&step).status, StepStatus::Skipped);
        step.settings = number_type("f32");
        let moved = look(&step);
        assert_eq!(moved.status, StepStatus::WouldRun);
        assert!(moved.reason.ends_with("training.bf16 (was \"bf16\", is \"f32\")"), "{}", moved.reason);
    }

    #[test]
    fn nothing_damaged_unfinished_or_of_other_inputs_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let (run, mut step) = beside_a_finished_one(folder.path());
        let status = |step: &Step| {
            dry_run(&run, std::slice::from_ref(step), Span::default(), &silent).unwrap()[0].status
        };
        step.version = 2;
        assert_eq!(status(&step), StepStatus::WouldRun);
        step.version = 1;
        assert_eq!(status(&step), StepStatus::WouldReuse);
        let other = folder.path().join("other/03-plan");
        let finished = manifest::read(&other).unwrap();
        manifest::write(&Manifest { status: Status::Running, ..finished.clone() }, &other).unwrap();
        assert_eq!(status(&step), StepStatus::WouldRun);
        manifest::write(&finished, &other).unwrap();
        fs::write(other.join("plan.toml"), "an edit").unwrap();
        assert_eq!(status(&step), StepStatus::WouldRun);
    }
}
