//! Killed anywhere, the next run goes on from there and ends with the same bytes.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixture::{assert_same_results, copy_of_finished, fail, finished, pipeline, step, steps, succeed};

/// Kills a process and all that it started, without warning.
fn kill_group(mut child: Child) {
    let group = format!("-{}", child.id());
    Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status().unwrap();
    child.wait().unwrap();
}

/// Starts the pipeline and kills it as soon as `reached` is true.
fn kill_when(run: &Path, reached: impl Fn() -> bool) {
    kill_as_soon_as(&mut pipeline(run, &[]).unwrap(), reached);
}

/// Starts a program in a process group of its own and kills the group as soon as `reached` is true.
pub(crate) fn kill_as_soon_as(command: &mut Command, reached: impl Fn() -> bool) {
    let mut child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !reached() {
        if child.try_wait().unwrap().is_some() {
            // Quicker than the eye: the whole rest was done before it could be killed.
            return;
        }
        assert!(Instant::now() < deadline, "never got there");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill_group(child);
}

/// True where the folder holds a file or folder whose name begins so.
fn holds(folder: &Path, beginning: &str) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(beginning))
}

#[test]
fn killed_in_every_stage_it_ends_with_the_same_bytes() {
    let Some(reference) = finished() else { return };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let run = folder.path();
    // In the middle of a stage where a file tells that the middle is reached, otherwise at its start.
    for (stage, sign) in [
        ("01-import", "manifest.json"),
        ("02-analyze", "manifest.json"),
        ("03-plan", "manifest.json"),
        ("04-warmup", "manifest.json"),
        ("04-warmup", "layer-"),
        ("05-finetune", "manifest.json"),
        ("05-finetune", "step-"),
        ("05-finetune-cold", "step-"),
        ("06-export", "manifest.json"),
        ("07-quantize", "unrepaired.sharp"),
        ("07-quantize/repair", "step-"),
        ("07-quantize", "model.sharp"),
        ("08-evaluate", "manifest.json"),
        ("09-benchmark", "manifest.json"),
        ("10-report", "manifest.json"),
    ] {
        kill_when(run, || holds(&run.join(stage), sign));
    }
    succeed(&mut pipeline(run, &[]).unwrap());
    assert_same_results(reference, run);
    let again = steps(&succeed(&mut pipeline(run, &["--json"]).unwrap()));
    assert!(again.iter().all(|(_, status, _)| status == "skipped"), "{again:?}");
}

#[test]
fn finished_layers_and_saved_steps_are_not_made_twice() {
    let Some(_) = finished() else { return };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let run = folder.path();
    kill_when(run, || holds(&run.join("04-warmup"), "layer-"));
    let layers = || -> Vec<_> {
        let entries = fs::read_dir(run.join("04-warmup")).unwrap().flatten();
        let files = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("layer-"));
        files.map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap())).collect()
    };
    let before = layers();
    assert!(!before.is_empty());
    let output = succeed(&mut pipeline(run, &["--until", "warmup", "--json"]).unwrap());
    let made = steps(&output);
    assert_eq!(step(&made, "01-import").0, "skipped");
    let after = layers();
    for layer in before {
        assert!(after.contains(&layer), "{} was written again", layer.0.display());
    }
}

#[test]
fn one_run_at_a_time_works_in_a_folder() {
    let Some(copy) = copy_of_finished() else { return };
    let lock = fs::File::options().write(true).open(copy.path().join(".lock")).unwrap();
    lock.try_lock().unwrap();
    let errors = fail(&mut pipeline(copy.path(), &[]).unwrap());
    assert!(errors.contains("another run works in"), "{errors}");
    lock.unlock().unwrap();
    succeed(&mut pipeline(copy.path(), &[]).unwrap());
}
