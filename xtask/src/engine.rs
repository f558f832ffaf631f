//! Decides for each step whether its outputs still stand, and makes those that do not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::build::Programs;
use crate::child::{self, Stopped, Usage};
use crate::manifest::{self, Fate, Host, Manifest, Recorded, Status};
use crate::paths;
use crate::provision::pins::PinnedFile;
use crate::provision::{self, libtorch, write_atomic};
use crate::run_folder::Run;
use crate::stages::{Input, Program, Stage, Step};

/// Which part of the way to go.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Span {
    /// Make this stage and all after it again.
    pub(crate) from: Option<Stage>,
    /// Stop after this stage.
    pub(crate) until: Option<Stage>,
    /// Make this one stage again.
    pub(crate) again: Option<Stage>,
}

impl Span {
    fn holds(self, stage: Stage) -> bool {
        self.until.is_none_or(|until| stage <= until)
    }

    fn forces(self, stage: Stage) -> bool {
        self.from.is_some_and(|from| stage >= from) || self.again == Some(stage)
    }
}

/// What happened, or would happen, to a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Outcome {
    /// Stage name.
    pub(crate) stage: String,
    /// Folder inside the run.
    pub(crate) folder: String,
    /// `ran`, `skipped` or `shared`; in a dry run `would_run` or `would_share`.
    pub(crate) status: &'static str,
    /// Why.
    pub(crate) reason: String,
    /// Wall time in seconds, now or when it was made.
    pub(crate) wall_s: Option<f64>,
    /// Largest resident memory of its programs, in bytes.
    pub(crate) peak_memory_bytes: Option<u64>,
}

/// What to do about a step.
#[derive(Debug)]
enum Decision {
    /// Its outputs stand.
    Skip(Box<Manifest>),
    /// Make them, from the start.
    Start(String),
    /// Go on with what an interrupted run left.
    Resume,
    /// Take over what the run in this folder has made from the same inputs.
    Share(Box<Manifest>, PathBuf),
}

/// Looks at every step and changes nothing.
pub(crate) fn dry_run(run: &Run, steps: &[Step], span: Span) -> Result<Vec<Outcome>> {
    let mut known = BTreeMap::new();
    let mut outcomes = Vec::new();
    for step in steps.iter().filter(|step| span.holds(step.stage)) {
        let (status, reason, old) = match decide(run, step, span, &known)? {
            Decision::Skip(old) => ("skipped", skip_reason(&old), Some(old)),
            Decision::Start(reason) => ("would_run", reason, None),
            Decision::Resume => ("would_run", "goes on where it was interrupted".to_owned(), None),
            Decision::Share(made, from) => ("would_share", share_reason(&from), Some(made)),
        };
        outcomes.push(outcome(step, status, reason, old.as_deref()));
        known.insert(step.folder, old.map(|old| *old));
    }
    Ok(outcomes)
}

/// Makes every step whose outputs do not stand.
pub(crate) fn execute(run: &Run, steps: &[Step], span: Span) -> Result<Vec<Outcome>> {
    let lock = run.lock()?;
    let forecast = dry_run(run, steps, span)?;
    let to_run: Vec<&Step> = steps
        .iter()
        .filter(|step| forecast.iter().any(|made| made.folder == step.folder && made.status == "would_run"))
        .collect();
    if forecast.iter().all(|made| made.status == "skipped") {
        eprintln!("{}: nothing to do, every stage stands", paths::shown(&run.folder));
        return Ok(forecast);
    }
    // Everything that may be missing is brought first: not found after an hour of work.
    let programs = provide(&to_run)?;
    run.write_config()?;
    let mut known = BTreeMap::new();
    let mut outcomes = Vec::new();
    let wanted: Vec<&Step> = steps.iter().filter(|step| span.holds(step.stage)).collect();
    for (index, step) in wanted.iter().enumerate() {
        if child::stop_requested() {
            return Err(Stopped.into());
        }
        let decision = decide(run, step, span, &known)?;
        let (made, outcome) = match decision {
            Decision::Skip(old) => {
                let outcome = outcome(step, "skipped", skip_reason(&old), Some(&old));
                (*old, outcome)
            }
            Decision::Share(made, from) => {
                let reason = share_reason(&from);
                announce(index, wanted.len(), step, &reason);
                let made = take_over(run, step, *made, &from)?;
                let outcome = outcome(step, "shared", reason, Some(&made));
                (made, outcome)
            }
            Decision::Start(reason) => {
                announce(index, wanted.len(), step, &reason);
                let made = make(run, step, &known, &programs, &lock, false)?;
                let outcome = outcome(step, "ran", reason, Some(&made));
                (made, outcome)
            }
            Decision::Resume => {
                announce(index, wanted.len(), step, "going on where it was interrupted");
                let made = make(run, step, &known, &programs, &lock, true)?;
                let outcome =
                    outcome(step, "ran", "went on where it was interrupted".to_owned(), Some(&made));
                (made, outcome)
            }
        };
        known.insert(step.folder, Some(made));
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

fn announce(index: usize, of: usize, step: &Step, why: &str) {
    eprintln!("\n[{}/{of}] {} ({why})", index + 1, step.folder);
}

fn skip_reason(old: &Manifest) -> String {
    format!("made in {:.1} s from the same inputs", old.wall_s)
}

fn share_reason(from: &Path) -> String {
    format!("the same as in {}", paths::shown(from))
}

fn outcome(step: &Step, status: &'static str, reason: String, made: Option<&Manifest>) -> Outcome {
    Outcome {
        stage: step.stage.name(),
        folder: step.folder.to_owned(),
        status,
        reason,
        wall_s: made.map(|made| made.wall_s),
        peak_memory_bytes: made.and_then(|made| made.peak_memory_bytes),
    }
}

/// Manifests of the steps before, by folder; `None` for a step that is yet to be made.
type Known = BTreeMap<&'static str, Option<Manifest>>;

/// Compares what a step would be made from with what it was made from.
fn decide(run: &Run, step: &Step, span: Span, known: &Known) -> Result<Decision> {
    let folder = run.path(step.folder);
    let old = Manifest::read(&folder);
    if span.forces(step.stage) {
        return Ok(Decision::Start("asked for".to_owned()));
    }
    let old_inputs = old.as_ref().map_or(&[][..], |old| &old.inputs);
    let inputs = match inputs(step, known, old_inputs)? {
        Gathered::All(inputs) => inputs,
        Gathered::Pending(folder) => return Ok(Decision::Start(format!("{folder} comes first"))),
    };
    let fingerprint = manifest::fingerprint(step.folder, step.version, &step.config, &inputs)?;
    match own(run, step, old, &inputs, &fingerprint)? {
        Decision::Start(reason) => Ok(match made_elsewhere(run, step, &fingerprint) {
            Some((made, from)) => Decision::Share(Box::new(made), from),
            None => Decision::Start(reason),
        }),
        decision => Ok(decision),
    }
}

/// What to do about a step whose inputs are known, by what lies in its own folder.
fn own(
    run: &Run,
    step: &Step,
    old: Option<Manifest>,
    inputs: &[Recorded],
    fingerprint: &str,
) -> Result<Decision> {
    let folder = run.path(step.folder);
    let Some(mut old) = old else {
        let reason = if folder.exists() { "its manifest is missing or unreadable" } else { "not made yet" };
        return Ok(Decision::Start(reason.to_owned()));
    };
    if old.fingerprint != fingerprint {
        return Ok(Decision::Start(difference(&old, step, inputs)));
    }
    if old.status == Status::Running {
        return Ok(if step.resumable {
            Decision::Resume
        } else {
            Decision::Start("it was interrupted".to_owned())
        });
    }
    for recorded in &mut old.outputs {
        match manifest::fate(recorded, &run.folder.join(&recorded.path))? {
            Fate::Intact => {}
            Fate::Missing => return Ok(Decision::Start(format!("{} is gone", recorded.path))),
            Fate::Changed(now) if step.editable => {
                eprintln!(
                    "{} was edited: the edit is used (--from {} makes it anew)",
                    now.path,
                    step.stage.name()
                );
                *recorded = now;
            }
            Fate::Changed(_) => {
                return Ok(Decision::Start(format!(
                    "{} is damaged: it changed after it was written",
                    recorded.path
                )));
            }
        }
    }
    Ok(Decision::Skip(Box::new(old)))
}

/// A sibling's finished step with this fingerprint whose files are as they were written.
fn made_elsewhere(run: &Run, step: &Step, fingerprint: &str) -> Option<(Manifest, PathBuf)> {
    run.siblings.iter().filter(|_| step.beside.is_empty()).find_map(|other| {
        let made = Manifest::read(&other.join(step.folder))?;
        let stands = made.fingerprint == fingerprint
            && made.status == Status::Done
            && made
                .outputs
                .iter()
                .all(|output| matches!(manifest::fate(output, &other.join(&output.path)), Ok(Fate::Intact)));
        stands.then(|| (made, other.clone()))
    })
}

/// Makes a step's folder from a sibling's. Large files are linked, which costs no space; small ones are copied, so that an edit
/// stays in its own run.
fn take_over(run: &Run, step: &Step, mut made: Manifest, from: &Path) -> Result<Manifest> {
    let folder = run.path(step.folder);
    clear(&folder)?;
    for output in &mut made.outputs {
        let (source, place) = (from.join(&output.path), run.path(&output.path));
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        // Not every file system has links, and none has them to another one.
        if output.bytes <= manifest::ALWAYS_HASHED || fs::hard_link(&source, &place).is_err() {
            fs::copy(&source, &place)
                .with_context(|| format!("copying {} to {}", source.display(), place.display()))?;
        }
        let now = manifest::record(&place, output.path.clone(), std::slice::from_ref(output))?;
        if now.blake3 != output.blake3 {
            bail!("{} changed while it was taken over; the same command tries again", source.display());
        }
        *output = now;
    }
    made.write(&folder)?;
    Ok(made)
}

/// Says which ingredient of a fingerprint changed.
fn difference(old: &Manifest, step: &Step, inputs: &[Recorded]) -> String {
    if old.version != step.version {
        return format!("version {} of the stage, made by {}", step.version, old.version);
    }
    let changed: Vec<&str> = step
        .config
        .iter()
        .filter(|(key, value)| old.config.get(*key) != Some(value))
        .map(|(key, _)| key.as_str())
        .chain(old.config.keys().filter(|key| !step.config.contains_key(*key)).map(String::as_str))
        .collect();
    if !changed.is_empty() {
        return format!("the configuration changed: {}", changed.join(", "));
    }
    let other = inputs
        .iter()
        .find(|input| {
            !old.inputs.iter().any(|before| before.path == input.path && before.blake3 == input.blake3)
        })
        .or_else(|| old.inputs.iter().find(|before| !inputs.iter().any(|input| input.path == before.path)));
    match other {
        Some(input) => format!("{} changed", input.path),
        None => "its inputs changed".to_owned(),
    }
}

/// The inputs of a step, or the first earlier step that is yet to be made.
enum Gathered {
    All(Vec<Recorded>),
    Pending(&'static str),
}

fn inputs(step: &Step, known: &Known, old: &[Recorded]) -> Result<Gathered> {
    let mut all = Vec::new();
    for input in &step.inputs {
        match input {
            Input::From(folder, prefixes) => {
                let Some(Some(earlier)) = known.get(folder) else { return Ok(Gathered::Pending(folder)) };
                let before = all.len();
                all.extend(
                    earlier
                        .outputs
                        .iter()
                        .filter(|output| {
                            let inside = output
                                .path
                                .strip_prefix(folder)
                                .map_or("", |rest| rest.trim_start_matches('/'));
                            prefixes.is_empty() || prefixes.iter().any(|prefix| inside.starts_with(prefix))
                        })
                        .cloned(),
                );
                if all.len() == before {
                    bail!("{folder} holds nothing of {prefixes:?}, which {} reads", step.folder);
                }
            }
            Input::Pinned(file) => all.push(of_pinned(file)),
            Input::Outside(path) => outside(path, old, &mut all)?,
        }
    }
    Ok(Gathered::All(all))
}

/// A pinned file is known by its published hash, before it is even downloaded.
fn of_pinned(file: &PinnedFile) -> Recorded {
    Recorded {
        path: format!("pinned:{}", file.name),
        bytes: file.bytes,
        modified_ns: 0,
        blake3: format!("sha256:{}", file.sha256),
    }
}

/// Records the user's own file, or every file in the user's folder.
fn outside(path: &Path, old: &[Recorded], all: &mut Vec<Recorded>) -> Result<()> {
    let files = if path.is_dir() { manifest::written(path, &[])? } else { vec![path.to_path_buf()] };
    for file in files {
        all.push(manifest::record(&file, paths::shown(&file), old)?);
    }
    Ok(())
}

/// Fetches and builds all that the steps need.
fn provide(steps: &[&Step]) -> Result<Programs> {
    let mut wanted: Vec<&'static PinnedFile> = Vec::new();
    for input in steps.iter().flat_map(|step| &step.inputs) {
        if let Input::Pinned(file) = input
            && !wanted.iter().any(|other| other.name == file.name)
        {
            wanted.push(file);
        }
    }
    provision::files(&wanted, false)?;
    let mut programs: Vec<Program> =
        steps.iter().flat_map(|step| step.invocations.iter().map(|invocation| invocation.program)).collect();
    programs.sort();
    programs.dedup();
    if programs.contains(&Program::SharpTrain) {
        libtorch::provide()?;
    }
    Programs::provide(&programs)
}

/// Makes a step: its manifest says `running` first and `done` last.
fn make(
    run: &Run,
    step: &Step,
    known: &Known,
    programs: &Programs,
    lock: &File,
    resume: bool,
) -> Result<Manifest> {
    let folder = run.path(step.folder);
    let old = Manifest::read(&folder);
    let old_inputs = old.as_ref().map_or(&[][..], |old| &old.inputs);
    let Gathered::All(inputs) = inputs(step, known, old_inputs)? else {
        bail!("{} was started before the steps it reads", step.folder)
    };
    let mut manifest = Manifest {
        stage: step.folder.to_owned(),
        version: step.version,
        status: Status::Running,
        fingerprint: manifest::fingerprint(step.folder, step.version, &step.config, &inputs)?,
        config: step.config.clone(),
        seed: run.config.seed,
        commands: step.invocations.iter().map(|invocation| shown_command(run, invocation)).collect(),
        inputs,
        outputs: Vec::new(),
        host: Host::here(),
        wall_s: 0.0,
        peak_memory_bytes: None,
    };
    if resume {
        drop_partial(&folder)?;
    } else {
        clear(&folder)?;
    }
    manifest.write(&folder)?;
    for (name, contents) in &step.prepared {
        write_atomic(&folder.join(name), contents.as_bytes())?;
    }
    for invocation in &step.invocations {
        let usage = invoke(run, step, invocation, programs, lock)?;
        manifest.wall_s += usage.wall_s;
        manifest.peak_memory_bytes = manifest.peak_memory_bytes.max(usage.peak_memory_bytes);
    }
    manifest.outputs = outputs(run, step)?;
    manifest.status = Status::Done;
    manifest.write(&folder)?;
    let memory = manifest.peak_memory_bytes.map_or(String::new(), |bytes| format!(", {} MiB", bytes >> 20));
    eprintln!("      done in {:.1} s{memory}", manifest.wall_s);
    Ok(manifest)
}

/// Starts one program and waits for it.
fn invoke(
    run: &Run,
    step: &Step,
    invocation: &crate::stages::Invocation,
    programs: &Programs,
    lock: &File,
) -> Result<Usage> {
    let mut command = Command::new(programs.path(invocation.program)?);
    command.args(&invocation.arguments).current_dir(&run.folder);
    // Read by libtorch's thread pool before any code of ours could set it.
    command.env("OMP_WAIT_POLICY", "passive");
    let (status, usage) = child::run(&mut command, lock)?;
    if !status.success() {
        bail!(
            "stage {} failed ({status}); its message is above. It ran:\n  {}\nWhat is done is kept: the same command \
             goes on from here",
            step.stage.name(),
            shown_command(run, invocation).join(" ")
        );
    }
    Ok(usage)
}

/// A command line with the run's folder and the repository shortened.
pub(crate) fn shown_command(run: &Run, invocation: &crate::stages::Invocation) -> Vec<String> {
    let run_folder = format!("{}/", run.folder.display());
    let shorten = |argument: &std::ffi::OsString| {
        let text = argument.to_string_lossy().replace(&run_folder, "");
        match paths::repository() {
            Ok(root) => text.replace(&format!("{}/", root.display()), ""),
            Err(_) => text,
        }
    };
    std::iter::once(invocation.program.names().0.to_owned())
        .chain(invocation.arguments.iter().map(shorten))
        .collect()
}

/// Empties a step's folder: what is in it belongs to other inputs.
fn clear(folder: &Path) -> Result<()> {
    // The manifest goes first, so that a kill in between never leaves a manifest without its files.
    let manifest = folder.join(manifest::FILE);
    if manifest.exists() {
        fs::remove_file(&manifest).with_context(|| format!("removing {}", manifest.display()))?;
    }
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

/// Removes files that a killed program had not finished; with the run locked, nobody is writing them.
fn drop_partial(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
        if entry.file_name().to_string_lossy().starts_with(".sharp-partial-") {
            let path = entry.path();
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Records what a step wrote, and insists on what it had to write.
fn outputs(run: &Run, step: &Step) -> Result<Vec<Recorded>> {
    let folder = run.path(step.folder);
    let inside = |path: &Path| path.strip_prefix(&run.folder).unwrap_or(path).to_string_lossy().into_owned();
    for name in &step.must_write {
        if !folder.join(name).exists() {
            bail!("stage {} ended well, but did not write {}/{name}", step.stage.name(), step.folder);
        }
    }
    let mut files: Vec<PathBuf> = manifest::written(&folder, step.scratch)?;
    for name in &step.beside {
        let path = run.path(name);
        if !path.is_file() {
            bail!("stage {} ended well, but did not write {name}", step.stage.name());
        }
        files.push(path);
    }
    files.iter().map(|path| manifest::record(path, inside(path), &[])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// A run beside which another one has finished a step with the outputs `plan.toml` and, linked, `large.bin`.
    fn beside_a_finished_one(folder: &Path) -> (Run, Step) {
        let run = |name: &str| Run {
            config: Config::default(),
            config_file: "x.toml".into(),
            folder: folder.join(name),
            siblings: Vec::new(),
        };
        let step = || Step {
            stage: Stage::Plan,
            folder: "03-plan",
            version: 1,
            config: BTreeMap::new(),
            inputs: Vec::new(),
            invocations: Vec::new(),
            must_write: vec!["plan.toml"],
            beside: Vec::new(),
            scratch: &[],
            editable: true,
            resumable: false,
            prepared: vec![("plan.toml", "a plan".to_owned())],
        };
        let other = run("other");
        fs::create_dir_all(&other.folder).unwrap();
        let lock = other.lock().unwrap();
        let mut made = make(&other, &step(), &Known::new(), &Programs::default(), &lock, false).unwrap();
        let large = other.path("03-plan/large.bin");
        fs::write(&large, vec![7u8; manifest::ALWAYS_HASHED as usize + 1]).unwrap();
        made.outputs.push(manifest::record(&large, "03-plan/large.bin".into(), &[]).unwrap());
        made.write(&other.path("03-plan")).unwrap();
        (Run { siblings: vec![run("none").folder, other.folder], ..run("mine") }, step())
    }

    #[test]
    fn what_a_sibling_made_from_the_same_is_taken_over_and_then_stands() {
        let folder = tempfile::tempdir().unwrap();
        let (run, step) = beside_a_finished_one(folder.path());
        let steps = [step];
        assert_eq!(dry_run(&run, &steps, Span::default()).unwrap()[0].status, "would_share");
        assert!(!run.folder.exists(), "a dry run writes nothing");
        assert_eq!(execute(&run, &steps, Span::default()).unwrap()[0].status, "shared");
        assert_eq!(dry_run(&run, &steps, Span::default()).unwrap()[0].status, "skipped");
        // A plan is a person's to edit: in one run, not in all.
        fs::write(run.path("03-plan/plan.toml"), "an edit").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("other/03-plan/plan.toml")).unwrap(), "a plan");
        let forced = Span { again: Some(Stage::Plan), ..Span::default() };
        assert_eq!(dry_run(&run, &steps, forced).unwrap()[0].status, "would_run", "asked for is made");
    }

    #[test]
    fn nothing_damaged_unfinished_or_of_other_inputs_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let (run, mut step) = beside_a_finished_one(folder.path());
        let status =
            |step: &Step| dry_run(&run, std::slice::from_ref(step), Span::default()).unwrap()[0].status;
        step.version = 2;
        assert_eq!(status(&step), "would_run");
        step.version = 1;
        assert_eq!(status(&step), "would_share");
        let other = folder.path().join("other/03-plan");
        let manifest = Manifest::read(&other).unwrap();
        Manifest { status: Status::Running, ..manifest.clone() }.write(&other).unwrap();
        assert_eq!(status(&step), "would_run");
        manifest.write(&other).unwrap();
        fs::write(other.join("plan.toml"), "an edit").unwrap();
        assert_eq!(status(&step), "would_run");
    }
}
