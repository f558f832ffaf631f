//! What to do about a step: compares what it would be made from with what it was made from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sharp_schema::manifest::{Digest, Manifest, Recorded, Status};
use sharp_schema::run::StageFolder;

use super::span::Span;
use crate::error::{Result, bail};
use crate::event::{Event, Observer};
use crate::manifest::{self, Look, OutputState};
use crate::provision::pins::PinnedFile;
use crate::run_folder::Run;
use crate::stages::{Input, Step};

/// Manifests of the steps before, by folder; `None` for a step that is yet to be made.
pub(super) type Made = BTreeMap<StageFolder, Option<Manifest>>;

/// What to do about a step.
#[derive(Debug)]
pub(super) enum Action {
    /// Its outputs are up to date.
    Skip(Box<Manifest>),
    /// Make them from the start, for this reason.
    Start(String),
    /// Go on with what an interrupted run left.
    Resume,
    /// Take over what the run in this folder has made from the same inputs.
    Reuse(Box<Manifest>, PathBuf),
}

impl Action {
    /// Says why, for a person.
    pub(super) fn reason(&self, run: &Run) -> String {
        match self {
            Self::Skip(old) => format!("made in {:.1} s from the same inputs", old.wall_s),
            Self::Start(reason) => reason.clone(),
            Self::Resume => "goes on where it was interrupted".to_owned(),
            Self::Reuse(_, from) => format!("the same as in {}", run.workspace.shown(from)),
        }
    }
}

/// Compares what a step would be made from with what it was made from.
pub(super) fn decide(
    run: &Run,
    step: &Step,
    span: Span,
    made: &Made,
    observer: Observer<'_>,
) -> Result<Action> {
    let folder = run.path(step.folder);
    let old = manifest::read(&folder);
    if span.forces(step.stage) {
        return Ok(Action::Start("asked for".to_owned()));
    }
    let old_inputs = old.as_ref().map_or(&[][..], |old| &old.inputs);
    let inputs = match inputs(run, step, made, old_inputs, span.look)? {
        Inputs::All(inputs) => inputs,
        Inputs::Pending(folder) => return Ok(Action::Start(format!("{folder} comes first"))),
    };
    let fingerprint =
        manifest::fingerprint(step.folder.name(), step.version, step.settings.values(), &inputs)?;
    match state_of_folder(
        run,
        step,
        old,
        &Wanted { inputs: &inputs, fingerprint: &fingerprint, look: span.look },
        observer,
    )? {
        Action::Start(reason) => Ok(match finished_sibling(run, step, &fingerprint, span.look) {
            Some((manifest, from)) => Action::Reuse(Box::new(manifest), from),
            None => Action::Start(reason),
        }),
        action => Ok(action),
    }
}

/// What a step would be made from, and how closely what it has written is looked at.
struct Wanted<'a> {
    inputs: &'a [Recorded],
    fingerprint: &'a str,
    look: Look,
}

/// Decides about a step whose inputs are known by what is in its own folder.
fn state_of_folder(
    run: &Run,
    step: &Step,
    old: Option<Manifest>,
    wanted: &Wanted<'_>,
    observer: Observer<'_>,
) -> Result<Action> {
    let Wanted { inputs, fingerprint, look } = *wanted;
    let folder = run.path(step.folder);
    let Some(mut old) = old else {
        let reason = if folder.exists() { "its manifest is missing or unreadable" } else { "not made yet" };
        return Ok(Action::Start(reason.to_owned()));
    };
    if old.fingerprint != fingerprint {
        return Ok(Action::Start(difference(&old, step, inputs)));
    }
    if old.status == Status::Running {
        return Ok(if step.resumable {
            Action::Resume
        } else {
            Action::Start("it was interrupted".to_owned())
        });
    }
    if let Some(missing) = unrecorded(step, &old) {
        return Ok(Action::Start(format!("its manifest does not list {missing}")));
    }
    for recorded in &mut old.outputs {
        match manifest::output_state(recorded, &run.folder.join(&recorded.path), look)? {
            OutputState::Intact => {}
            OutputState::Missing => return Ok(Action::Start(format!("{} is gone", recorded.path))),
            OutputState::Changed(now) if step.editable => {
                observer(&Event::Edited { path: &now.path, stage: step.stage.name() });
                *recorded = now;
            }
            OutputState::Changed(_) => {
                return Ok(Action::Start(format!(
                    "{} is damaged: it changed after it was written",
                    recorded.path
                )));
            }
        }
    }
    Ok(Action::Skip(Box::new(old)))
}

/// Finds a file that a finished step has to have written, and that its manifest does not list.
fn unrecorded(step: &Step, made: &Manifest) -> Option<String> {
    let inside = step.must_write.iter().map(|name| step.folder.file(name));
    let beside = step.outputs_in_run.iter().map(|name| (*name).to_owned());
    inside.chain(beside).find(|path| !made.outputs.iter().any(|output| output.path == *path))
}

/// Finds a sibling's finished step with this fingerprint whose files are as they were written.
fn finished_sibling(run: &Run, step: &Step, fingerprint: &str, look: Look) -> Option<(Manifest, PathBuf)> {
    run.siblings.iter().filter(|_| step.outputs_in_run.is_empty()).find_map(|other| {
        let made = manifest::read(&other.join(step.folder))?;
        let stands = made.fingerprint == fingerprint
            && made.status == Status::Done
            && unrecorded(step, &made).is_none()
            && made.outputs.iter().all(|output| {
                matches!(
                    manifest::output_state(output, &other.join(&output.path), look),
                    Ok(OutputState::Intact)
                )
            });
        stands.then(|| (made, other.clone()))
    })
}

/// Says which ingredient of a fingerprint changed.
fn difference(old: &Manifest, step: &Step, inputs: &[Recorded]) -> String {
    if old.version != step.version {
        return format!("version {} of the stage, made by {}", step.version, old.version);
    }
    let settings = step.settings.values();
    let changed: Vec<String> = settings
        .iter()
        .filter(|(key, value)| old.config.get(*key) != Some(value))
        .map(|(key, value)| changed_key(key, old.config.get(key), value))
        .chain(old.config.keys().filter(|key| !settings.contains_key(*key)).cloned())
        .collect();
    if !changed.is_empty() {
        return format!("the configuration or the machine changed: {}", changed.join(", "));
    }
    let other = inputs
        .iter()
        .find(|input| {
            !old.inputs.iter().any(|before| before.path == input.path && before.digest == input.digest)
        })
        .or_else(|| old.inputs.iter().find(|before| !inputs.iter().any(|input| input.path == before.path)));
    match other {
        Some(input) => format!("{} changed", input.path),
        None => "its inputs changed".to_owned(),
    }
}

/// Names a key with its values before and now; those of lists are too long for one line.
fn changed_key(key: &str, before: Option<&Value>, now: &Value) -> String {
    match before {
        Some(before) if !(before.is_array() || now.is_array()) => format!("{key} (was {before}, is {now})"),
        _ => key.to_owned(),
    }
}

/// The inputs of a step, or the first earlier step that is yet to be made.
pub(super) enum Inputs {
    All(Vec<Recorded>),
    Pending(StageFolder),
}

pub(super) fn inputs(run: &Run, step: &Step, made: &Made, old: &[Recorded], look: Look) -> Result<Inputs> {
    let mut all = Vec::new();
    for input in &step.inputs {
        match input {
            Input::From(folder, prefixes) => {
                let Some(Some(earlier)) = made.get(folder) else { return Ok(Inputs::Pending(*folder)) };
                let before = all.len();
                all.extend(
                    earlier
                        .outputs
                        .iter()
                        .filter(|output| {
                            let inside = output
                                .path
                                .strip_prefix(folder.name())
                                .map_or("", |rest| rest.trim_start_matches('/'));
                            prefixes.is_empty() || prefixes.iter().any(|prefix| inside.starts_with(prefix))
                        })
                        .cloned(),
                );
                if all.len() == before {
                    bail!("{folder} holds nothing of {prefixes:?}, which {} reads", step.folder);
                }
            }
            Input::Pinned(file) => all.push(pinned_input(file)),
            Input::Outside(path) => record_outside(run, path, old, look, &mut all)?,
        }
    }
    Ok(Inputs::All(all))
}

/// Records a pinned file by its published hash, before it is even downloaded.
fn pinned_input(file: &PinnedFile) -> Recorded {
    Recorded {
        path: format!("pinned:{}", file.name),
        bytes: file.bytes,
        modified_ns: 0,
        digest: published_digest(file),
    }
}

/// Returns the digest that a file is published with.
fn published_digest(file: &PinnedFile) -> Digest {
    format!("sha256:{}", file.sha256).parse().expect("a pinned file has 64 hexadecimal digits")
}

/// Records the user's own file, or every file in the user's folder.
fn record_outside(
    run: &Run,
    path: &Path,
    old: &[Recorded],
    look: Look,
    all: &mut Vec<Recorded>,
) -> Result<()> {
    let files = if path.is_dir() { manifest::written(path, &[])? } else { vec![path.to_path_buf()] };
    for file in files {
        all.push(manifest::record(&file, run.workspace.shown(&file), old, look)?);
    }
    Ok(())
}
