//! Makes the outputs of a step: empties its folder, starts its programs, writes its manifest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sharp_schema::manifest::{Manifest, Recorded, Status};
use sharp_schema::run::{MANIFEST_FILE, UNFINISHED_PREFIX};

use super::decision::{Inputs, Made, inputs};
use crate::atomic::write_atomic;
use crate::error::{Context as _, Error, Result, bail};
use crate::event::{Event, Observer};
use crate::lock::Lock;
use crate::manifest::{self, Look};
use crate::process::{self, Usage};
use crate::programs::{Program, ProgramPaths, Programs};
use crate::provision;
use crate::provision::pins::PinnedFile;
use crate::run_folder::Run;
use crate::stages::{CommandLine, Input, Step};

/// A run at work: the lock of its folder and the programs that its steps need.
pub(super) struct Making<'a> {
    run: &'a Run,
    lock: Lock,
    programs: ProgramPaths,
    observer: Observer<'a>,
}

impl<'a> Making<'a> {
    /// Fetches and builds all that the steps need, so that nothing is found missing after an hour of work.
    pub(super) fn begin(
        run: &'a Run,
        steps: &[&Step],
        lock: Lock,
        programs: &dyn Programs,
        observer: Observer<'a>,
    ) -> Result<Self> {
        let mut wanted: Vec<&'static PinnedFile> = Vec::new();
        for input in steps.iter().flat_map(|step| &step.inputs) {
            if let Input::Pinned(file) = input
                && !wanted.iter().any(|other| other.name == file.name)
            {
                wanted.push(file);
            }
        }
        provision::files(&wanted, false, observer)?;
        let lines = steps.iter().flat_map(|step| &step.command_lines);
        let mut started: Vec<Program> = lines.map(|line| line.program).collect();
        started.sort();
        started.dedup();
        Ok(Self { run, lock, programs: programs.provide(&started)?, observer })
    }

    /// Makes a step: its manifest says `running` first and `done` last.
    pub(super) fn make(&self, step: &Step, made: &Made, resume: bool) -> Result<Manifest> {
        let run = self.run;
        let folder = run.path(step.folder);
        let old = manifest::read(&folder);
        let old_inputs = old.as_ref().map_or(&[][..], |old| &old.inputs);
        let Inputs::All(inputs) = inputs(run, step, made, old_inputs, Look::Quick)? else {
            bail!("{} was started before the steps it reads", step.folder)
        };
        let mut manifest = Manifest {
            stage: step.folder.to_string(),
            version: step.version,
            status: Status::Running,
            fingerprint: manifest::fingerprint(
                step.folder.name(),
                step.version,
                step.settings.values(),
                &inputs,
            )?,
            config: step.settings.values().clone(),
            seed: run.config.seed,
            commands: step.command_lines.iter().map(|line| line.shown(run)).collect(),
            inputs,
            outputs: Vec::new(),
            host: manifest::this_machine(),
            wall_s: 0.0,
            peak_memory_bytes: None,
        };
        if resume {
            drop_partial(&folder)?;
        } else {
            clear(&folder)?;
        }
        manifest::write(&manifest, &folder)?;
        for (name, contents) in &step.files {
            write_atomic(&folder.join(name), contents.as_bytes())?;
        }
        for line in &step.command_lines {
            let usage = self.start(step, line)?;
            manifest.wall_s += usage.wall_s;
            manifest.peak_memory_bytes = manifest.peak_memory_bytes.max(usage.peak_memory_bytes);
        }
        manifest.outputs = outputs(run, step)?;
        manifest.status = Status::Done;
        manifest::write(&manifest, &folder)?;
        let (wall_s, peak_memory_bytes) = (manifest.wall_s, manifest.peak_memory_bytes);
        (self.observer)(&Event::Done { wall_s, peak_memory_bytes });
        Ok(manifest)
    }

    /// Starts one program and waits for it.
    fn start(&self, step: &Step, line: &CommandLine) -> Result<Usage> {
        let run = self.run;
        let mut command = Command::new(self.programs.path(line.program)?);
        command.args(&line.arguments).current_dir(&run.folder);
        // Read by libtorch's thread pool before any code of ours could set it.
        command.env("OMP_WAIT_POLICY", "passive");
        let (status, usage) = process::run(&mut command, self.lock.to_pass_on())?;
        if !status.success() {
            return Err(Error::StageFailed {
                stage: step.stage.name().to_owned(),
                status,
                command: line.for_shell(run),
            });
        }
        Ok(usage)
    }

    /// Makes a step's folder from a sibling's. Large files are linked, which costs no space; small ones are
    /// copied, so that an edit stays in its own run.
    pub(super) fn reuse(&self, step: &Step, mut made: Manifest, from: &Path) -> Result<Manifest> {
        let run = self.run;
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
            let now =
                manifest::record(&place, output.path.clone(), std::slice::from_ref(output), Look::Quick)?;
            if now.digest != output.digest {
                bail!("{} changed while it was taken over; the same command tries again", source.display());
            }
            *output = now;
        }
        manifest::write(&made, &folder)?;
        Ok(made)
    }
}

/// Empties a step's folder: what is in it belongs to other inputs.
fn clear(folder: &Path) -> Result<()> {
    // The manifest goes first, so that a kill in between never leaves a manifest without its files.
    let manifest = folder.join(MANIFEST_FILE);
    let removed = match manifest.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(&manifest),
        Ok(_) => fs::remove_file(&manifest),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("removing {}", manifest.display()))?;
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
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED_PREFIX) {
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
    let not_written = |file| Err(Error::NotWritten { stage: step.stage.name().to_owned(), file });
    for name in &step.must_write {
        if !folder.join(name).exists() {
            return not_written(format!("{}/{name}", step.folder));
        }
    }
    let mut files: Vec<PathBuf> = manifest::written(&folder, step.scratch)?;
    for name in &step.outputs_in_run {
        let path = run.path(name);
        if !path.is_file() {
            return not_written((*name).to_owned());
        }
        files.push(path);
    }
    files.iter().map(|path| manifest::record(path, inside(path), &[], Look::Quick)).collect()
}
