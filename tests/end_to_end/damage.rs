//! Files that change, vanish or do not fit on the disk after or while they are written.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::fixture::{assert_same_results, copy_of_finished, finished, pipeline, step, steps, succeed};

/// Changes one byte in the middle of a file.
fn spoil(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_output_is_noticed_and_made_again() {
    let Some(copy) = copy_of_finished() else { return };
    spoil(&copy.path().join("07-quantize/model.sharp"));
    fs::remove_file(copy.path().join("02-analyze/similarity.html")).unwrap();
    let made = steps(&succeed(&mut pipeline(copy.path(), &["--json"]).unwrap()));
    let (status, reason) = step(&made, "07-quantize");
    assert_eq!(status, "ran");
    assert!(reason.contains("07-quantize/model.sharp is damaged"), "{reason}");
    assert_eq!(step(&made, "02-analyze"), ("ran", "02-analyze/similarity.html is gone"));
    for untouched in ["01-import", "03-plan", "04-warmup", "05-finetune", "06-export", "08-evaluate"] {
        assert_eq!(step(&made, untouched).0, "skipped", "{untouched}: made of the same bytes as before");
    }
    assert_same_results(finished().unwrap(), copy.path());
}

#[test]
fn a_spoilt_manifest_means_the_stage_is_made_again() {
    let Some(copy) = copy_of_finished() else { return };
    fs::write(copy.path().join("06-export/manifest.json"), "{\"stage\": \"06-exp").unwrap();
    let made = steps(&succeed(&mut pipeline(copy.path(), &["--json"]).unwrap()));
    assert_eq!(step(&made, "06-export"), ("ran", "its manifest is missing or unreadable"));
    assert_eq!(step(&made, "07-quantize").0, "skipped");
}

#[test]
fn an_edited_plan_is_used_and_not_overwritten() {
    let Some(copy) = copy_of_finished() else { return };
    let plan = copy.path().join("03-plan/plan.toml");
    let edited = format!("# looked over by a person\n{}", fs::read_to_string(&plan).unwrap());
    fs::write(&plan, &edited).unwrap();
    let output = succeed(&mut pipeline(copy.path(), &["--dry-run", "--json"]).unwrap());
    let would = steps(&output);
    assert_eq!(step(&would, "03-plan").0, "skipped");
    assert_eq!(step(&would, "04-warmup"), ("would_run", "03-plan/plan.toml changed"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("03-plan/plan.toml was edited"));
    assert_eq!(fs::read_to_string(&plan).unwrap(), edited);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_nothing_half_written() {
    let Some(copy) = copy_of_finished() else { return };
    let packed = copy.path().join("07-quantize/model.sharp");
    fs::remove_file(&packed).unwrap();
    // A limit on file size stands in for the full disk: the write fails in the middle of the file.
    let whole = pipeline(copy.path(), &["--until", "quantize"]).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; ulimit -f 40; exec \"$0\" \"$@\""])
        .arg(whole.get_program())
        .args(whole.get_args());
    command.current_dir(whole.get_current_dir().unwrap());
    for (name, value) in whole.get_envs() {
        command.env(name, value.unwrap());
    }
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("model.sharp") && !errors.contains("panicked"), "{errors}");
    assert!(!packed.exists());
    succeed(&mut pipeline(copy.path(), &[]).unwrap());
    assert_same_results(finished().unwrap(), copy.path());
}
