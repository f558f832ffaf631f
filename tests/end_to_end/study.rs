//! A study of the tiny model: killed, gone on with, done; and what happens where one of its cells cannot be
//! made.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::fixture::{assert_same_results, fail, files, repository, succeed, xtask};
use crate::stopped::kill_as_soon_as;

const TINY: &str = "configs/studies/tiny.toml";

fn study(file: &str, out: &Path, arguments: &[&str]) -> Option<Command> {
    let mut command = xtask()?;
    command.args(["study", file, "--out"]).arg(out).args(arguments);
    Some(command)
}

/// The tiny study, run once without a stop and only read; `None` where it cannot be run here.
fn finished() -> Option<&'static Path> {
    static STUDY: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
    STUDY
        .get_or_init(|| {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny-study");
            if folder.exists() {
                fs::remove_dir_all(&folder).unwrap();
            }
            succeed(&mut study(TINY, &folder, &[])?);
            Some(folder)
        })
        .as_deref()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error} in {}", String::from_utf8_lossy(&output.stdout)))
}

fn table(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("table.json")).unwrap()).unwrap()
}

/// The status of every cell, by name.
fn cells(summary: &Value) -> Vec<(&str, &str)> {
    let cells = summary["cells"].as_array().unwrap();
    cells.iter().map(|cell| (cell["cell"].as_str().unwrap(), cell["status"].as_str().unwrap())).collect()
}

#[test]
fn every_cell_is_measured_and_what_cells_have_in_common_is_computed_once() {
    let Some(folder) = finished() else { return };
    let table = table(folder);
    let cells = table["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 12);
    for cell in cells {
        assert_eq!(cell["state"], "done", "{cell}");
        let rows = cell["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 3);
        for row in rows {
            assert!(row["perplexity"]["tiny_held_out"].as_f64().unwrap() > 1.0, "{row}");
            assert!(row["bytes"].as_u64().unwrap() > 0 && row["accuracy"]["tiny_questions"].is_object());
            let trained = row["name"] == "slw_sft";
            assert_eq!(row["training_wall_s"].as_f64().unwrap() > 0.0, trained, "{row}");
            assert_eq!(row["kl"].as_object().unwrap().is_empty(), row["name"] == "original", "{row}");
        }
    }
    let means = table["means"].as_array().unwrap();
    assert_eq!(means.len(), 1 + 2 * 3 * 2, "the original once, and two rows for each size and method");
    let mean = |values: [&str; 2], row: &str| {
        let found =
            means.iter().find(|mean| mean["values"] == serde_json::json!(values) && mean["row"] == row);
        found.unwrap_or_else(|| panic!("no {values:?} {row}")).clone()
    };
    for size in ["one", "two"] {
        let (sharing, drop) = (mean([size, "sharing"], "slw_sft"), mean([size, "drop"], "slw_sft"));
        assert_eq!(sharing["seeds"], 2);
        let spread = &sharing["perplexity"]["tiny_held_out"];
        assert!(spread["deviation"].as_f64().unwrap() > 0.0, "seeds train differently: {spread}");
        assert!(drop["mlp_parameters"].as_f64() < sharing["mlp_parameters"].as_f64());
    }
    // Nothing before the training depends on the seed or, for what sharing and low rank have in common, on
    // the method.
    let commands = |stage: &str| {
        let made = files(folder).into_iter().filter(|path| path.ends_with(format!("{stage}/manifest.json")));
        let manifests = made.map(|path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap());
        let mut times: Vec<String> = manifests.map(|manifest| manifest["wall_s"].to_string()).collect();
        times.sort();
        times.dedup();
        times.len()
    };
    assert_eq!((commands("01-import"), commands("02-analyze"), commands("03-plan")), (1, 1, 6));
    assert_eq!(commands("05-finetune"), 12);

    let page = fs::read_to_string(folder.join("table.md")).unwrap();
    assert!(
        page.contains("12 of 12 cells") && page.contains(&format!("`cargo xtask study {TINY}`")),
        "{page}"
    );
    let picture = fs::read_to_string(folder.join("plot.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("low-rank-alone"));
    for outside in ["href", "url(", "@import", "<script"] {
        assert!(!picture.contains(outside), "the picture must stand alone, and it has {outside}");
    }
}

#[test]
fn a_killed_study_goes_on_and_then_there_is_nothing_to_do() {
    let Some(reference) = finished() else { return };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = folder.path();
    let mut command = study(TINY, out, &[]).unwrap();
    // In the middle of the third cell's fine-tuning.
    kill_as_soon_as(&mut command, || {
        let Ok(entries) = fs::read_dir(out.join("one-low-rank-alone-s1/05-finetune")) else { return false };
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
    });
    let looked = json(&succeed(&mut study(TINY, out, &["--dry-run", "--json"]).unwrap()));
    let before = cells(&looked);
    assert_eq!(before[..2], [("one-sharing-s1", "stands"), ("one-sharing-s2", "stands")]);
    assert_eq!(before.last(), Some(&("two-drop-s2", "would_run")));

    let went_on = json(&succeed(&mut study(TINY, out, &["--json"]).unwrap()));
    let status = cells(&went_on);
    assert_eq!(status[..2], [("one-sharing-s1", "stands"), ("one-sharing-s2", "stands")]);
    assert_eq!(status.last(), Some(&("two-drop-s2", "ran")));
    for cell in fs::read_dir(reference).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        assert_same_results(&cell.path(), &out.join(cell.file_name()));
    }

    let times = || -> Vec<_> {
        let written = files(out).into_iter().filter(|path| !path.ends_with(".lock"));
        written.map(|path| (fs::metadata(&path).unwrap().modified().unwrap(), path)).collect()
    };
    let before = times();
    let again = json(&succeed(&mut study(TINY, out, &["--json"]).unwrap()));
    assert!(cells(&again).iter().all(|(_, status)| *status == "stands"), "{again}");
    assert_eq!(before, times(), "a study that does nothing writes nothing");
}

#[test]
fn a_cell_that_fails_is_reported_and_the_others_go_on() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join("broken.toml");
    let text = "base = \"configs/tiny.toml\"\n[set]\nfinetune.cold = false\nevaluate.rows = [\"original\", \"slw_sft\"]\n\
                [[axes]]\nname = \"layers\"\n[[axes.values]]\nname = \"none-such\"\n\
                set = { plan.strategy = \"explicit\", plan.explicit = \"99<-98\" }\n\
                [[axes.values]]\nname = \"chosen\"\n";
    fs::write(&file, text).unwrap();
    let out = folder.path().join("out");
    let Some(mut command) = study(file.to_str().unwrap(), &out, &[]) else { return };
    let errors = fail(&mut command);
    assert!(errors.contains("1 of 2 cells failed: none-such-s1"), "{errors}");
    let cells = table(&out)["cells"].clone();
    assert_eq!((&cells[0]["state"], &cells[1]["state"]), (&"failed".into(), &"done".into()));
    assert!(cells[0]["error"].as_str().unwrap().contains("stage plan failed"), "{cells}");
    let page = fs::read_to_string(out.join("table.md")).unwrap();
    assert!(
        page.contains("1 of 2 cells") && page.contains("- none-such-s1: failed: stage plan failed"),
        "{page}"
    );
    // One cell alone: the one that stands is no failure.
    let name = file.to_str().unwrap();
    succeed(&mut study(name, &out, &["--only", "chosen-s1"]).unwrap());
}

#[test]
fn a_dry_run_lists_the_cells_and_writes_nothing_and_typing_errors_are_refused() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = folder.path().join("out");
    let Some(mut command) = study(TINY, &out, &["--dry-run"]) else { return };
    let text = String::from_utf8(succeed(&mut command).stdout).unwrap();
    assert!(text.contains("two-drop-s2") && text.contains("replaces 2 MLPs"), "{text}");
    assert!(text.contains("12 cells, 12 to run"), "{text}");
    let errors = fail(&mut study(TINY, &out, &["--only", "two-drop-s3"]).unwrap());
    assert!(errors.contains("did you mean `two-drop-s"), "{errors}");
    let errors = fail(&mut study("configs/studies/tinny.toml", &out, &[]).unwrap());
    assert!(errors.contains("there are: ") && errors.contains(TINY), "{errors}");
    let file = folder.path().join("mine.toml");
    let tiny = fs::read_to_string(repository().join(TINY)).unwrap();
    fs::write(&file, tiny.replacen("warmup.start", "warmup.strat", 1)).unwrap();
    let errors = fail(study(file.to_str().unwrap(), &out, &[]).unwrap().stdout(Stdio::null()));
    assert!(errors.contains("mine.toml") && errors.contains("did you mean `start`?"), "{errors}");
    assert!(!out.exists(), "nothing starts before the study is right");
}

/// What no file can hold is measured by the training; what a file can hold comes out as `sharp evaluate`
/// measures it.
#[test]
fn a_study_that_stops_after_fine_tuning_measures_as_the_evaluation_does() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let make = |name: &str, head: &str, arms: &str| -> Option<Value> {
        let file = folder.path().join(format!("{name}.toml"));
        let text = format!(
            "base = \"configs/tiny.toml\"\n{head}\n[set]\nfinetune.cold = false\nfinetune.distill = 0.5\nfinetune.norms = true\n\
             plan.form = \"pruned\"\nplan.strategy = \"even\"\nplan.targets = \"none\"\nplan.remove = 0.3\nexport.dtype = \"f32\"\n\
             evaluate.tasks = []\nevaluate.stride = 64\nevaluate.rows = [\"original\", \"slw_sft\"]\n\
             [[axes]]\nname = \"arm\"\n[[axes.values]]\nname = \"own-neurons\"\n{arms}"
        );
        fs::write(&file, text).unwrap();
        let out = folder.path().join(name);
        succeed(&mut study(file.to_str().unwrap(), &out, &[])?);
        Some(table(&out))
    };
    let reuse = "[[axes.values]]\nname = \"pools\"\nset = { finetune.pool = 2 }\n\
                 [[axes.values]]\nname = \"second-pass\"\nset = { finetune.run_twice = [2] }\n[plot]\nx = \"tokens\"\n";
    let Some(trained) = make("trained", "until = \"finetune\"", reuse) else { return };
    let evaluated = make("evaluated", "", "").unwrap();

    let row = |table: &Value, cell: usize, row: usize| table["cells"][cell]["rows"][row].clone();
    let (own, written) = (row(&trained, 0, 0), row(&evaluated, 0, 1));
    assert_eq!((&own["name"], &written["name"]), (&"slw_sft".into(), &"slw_sft".into()));
    assert_eq!(own["mlp_parameters"], written["mlp_parameters"]);
    for text in ["tiny_held_out", "tiny"] {
        for measure in ["perplexity", "kl"] {
            let [ours, theirs] = [&own, &written].map(|row| row[measure][text].as_f64().unwrap());
            assert!((ours - theirs).abs() < 0.01 * theirs, "{measure} of {text}: {ours} and {theirs}");
        }
    }
    for cell in [1, 2] {
        let row = row(&trained, cell, 0);
        assert!(
            row["mlp_parameters"].as_u64() > own["mlp_parameters"].as_u64(),
            "gains and gates count: {row}"
        );
        assert_ne!(row["perplexity"], own["perplexity"], "gains and gates are trained");
        assert!(row.get("bytes").is_none(), "nothing was written: {row}");
        let cell = folder.path().join("trained").join(trained["cells"][cell]["cell"].as_str().unwrap());
        assert!(!cell.join("05-finetune/recovery.safetensors").exists() && !cell.join("06-export").exists());
    }
    let picture = fs::read_to_string(folder.path().join("trained/plot.svg")).unwrap();
    assert!(picture.contains("tokens of fine-tuning, thousands"), "{picture}");
}
