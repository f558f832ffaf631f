//! The whole way, and what the driver says about it.

use std::fs;

use serde_json::Value;

use crate::fixture::{copy_of_finished, fail, files, finished, pipeline, step, steps, succeed, xtask};

#[test]
fn the_tiny_pipeline_leaves_a_report_and_honest_rows() {
    let Some(run) = finished() else { return };
    let results: Value =
        serde_json::from_slice(&fs::read(run.join("08-evaluate/results.json")).unwrap()).unwrap();
    let rows = results["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["original", "direct", "slw", "sft", "slw_sft", "unrepaired_q4", "slw_sft_q4", "original_q4"]
    );
    for row in rows {
        for text in ["tiny_held_out", "tiny"] {
            let perplexity = row["perplexity"][text].as_f64().unwrap_or_else(|| panic!("{row}"));
            assert!(perplexity.is_finite() && perplexity > 1.0, "{row}");
        }
        for field in ["acc,none", "acc_stderr,none", "acc_norm,none", "acc_norm_stderr,none"] {
            assert!(row["tasks"]["tiny_questions"][field].is_number(), "no {field} in {row}");
        }
        assert!(row["bytes"].as_u64().unwrap() > 0);
    }
    let stored =
        |name: &str| rows.iter().find(|row| row["name"] == name).unwrap()["mlp_parameters"].as_u64().unwrap();
    assert!(stored("slw_sft") < stored("original"), "sharing must save MLP parameters");
    assert!(stored("direct") < stored("slw_sft"), "recovery parameters must be counted");

    let html = fs::read_to_string(run.join("report.html")).unwrap();
    let markdown = fs::read_to_string(run.join("report.md")).unwrap();
    for page in [&html, &markdown] {
        assert!(page.contains("perplexity") || page.contains("Perplexity"));
    }
    for outside in ["src=\"http", "href=\"http", "url(", "@import"] {
        assert!(!html.contains(outside), "the page must stand alone, and it has {outside}");
    }
}

#[test]
fn every_manifest_tells_what_the_stage_read_wrote_and_cost() {
    let Some(run) = finished() else { return };
    let manifests: Vec<_> = files(run).into_iter().filter(|path| path.ends_with("manifest.json")).collect();
    assert_eq!(manifests.len(), 11);
    for path in manifests {
        let manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let shown = path.display();
        assert_eq!(manifest["status"], "done", "{shown}");
        assert_eq!(manifest["fingerprint"].as_str().unwrap().len(), 64, "{shown}");
        assert!(manifest["wall_s"].as_f64().unwrap() > 0.0, "{shown}");
        assert!(manifest["seed"].is_u64() && manifest["host"]["cpu"].is_string(), "{shown}");
        assert!(!manifest["outputs"].as_array().unwrap().is_empty(), "{shown}");
        if cfg!(target_os = "linux") {
            assert!(manifest["peak_memory_bytes"].as_u64().unwrap() > 0, "{shown}");
        }
        for output in manifest["outputs"].as_array().unwrap() {
            let file = run.join(output["path"].as_str().unwrap());
            assert_eq!(
                fs::metadata(&file).unwrap().len(),
                output["bytes"].as_u64().unwrap(),
                "{}",
                file.display()
            );
        }
    }
}

#[test]
fn the_second_run_does_nothing() {
    let Some(run) = finished() else { return };
    let times = || -> Vec<_> {
        let written = files(run).into_iter().filter(|path| !path.ends_with(".lock"));
        written.map(|path| (fs::metadata(&path).unwrap().modified().unwrap(), path)).collect()
    };
    let before = times();
    let output = succeed(&mut pipeline(run, &["--json"]).unwrap());
    let steps = steps(&output);
    assert_eq!(steps.len(), 11);
    assert!(steps.iter().all(|(_, status, _)| status == "skipped"), "{steps:?}");
    assert_eq!(before, times(), "a run that does nothing writes nothing");
}

#[test]
fn a_dry_run_says_what_would_run_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let Some(mut command) = pipeline(&run, &["--dry-run", "--json"]) else { return };
    let output = succeed(&mut command);
    assert!(steps(&output).iter().all(|(_, status, _)| status == "would_run"));
    assert!(!run.exists());

    let output = succeed(&mut pipeline(&run, &["--dry-run", "--until", "plan"]).unwrap());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("$ sharp plan --model 01-import"), "{text}");
    assert!(!text.contains("warmup"), "{text}");
}

#[test]
fn a_changed_configuration_remakes_what_depends_on_it_and_no_more() {
    let Some(run) = finished() else { return };
    let asked = |more: &[&str]| {
        let mut arguments = vec!["--dry-run", "--json"];
        arguments.extend(more);
        steps(&succeed(&mut pipeline(run, &arguments).unwrap()))
    };
    let changed = asked(&["--set", "finetune.lr=0.5"]);
    assert_eq!(step(&changed, "04-warmup").0, "skipped");
    let (status, reason) = step(&changed, "05-finetune");
    assert_eq!(status, "would_run");
    assert!(reason.contains("finetune.lr"), "{reason}");
    assert_eq!(step(&changed, "06-export"), ("would_run", "05-finetune comes first"));

    let output =
        succeed(&mut pipeline(run, &["--dry-run", "--json", "--set", "finetune.cold=false"]).unwrap());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the row sft is left out: finetune.cold = false"), "{said}");
    let without = steps(&output);
    assert!(!without.iter().any(|step| step.0 == "05-finetune-cold"), "{without:?}");
    assert_eq!(step(&without, "05-finetune").0, "skipped");
    assert_eq!(step(&without, "08-evaluate").0, "would_run");

    let forced = asked(&["--from", "evaluate"]);
    assert_eq!(step(&forced, "07-quantize").0, "skipped");
    assert_eq!(step(&forced, "08-evaluate"), ("would_run", "asked for"));
    assert_eq!(step(&forced, "10-report").0, "would_run");

    assert_eq!(
        asked(&["--set", "threads=1"]).iter().filter(|step| step.1 == "would_run").count(),
        2,
        "threads matter to the benchmark, and so to the report, and to nothing else"
    );
    let errors = fail(&mut pipeline(run, &["--from", "report", "--until", "plan"]).unwrap());
    assert!(errors.contains("--from report comes after --until plan"), "{errors}");
}

#[test]
fn text_comes_out_of_the_compressed_model() {
    let Some(run) = finished() else { return };
    let mut command = xtask().unwrap();
    command
        .args(["generate", "--config", "configs/tiny.toml", "--out"])
        .arg(run)
        .args(["--prompt", "The lighthouse"]);
    command.args(["--", "--max-tokens", "8"]);
    let output = succeed(&mut command);
    assert!(!output.stdout.is_empty());
}

#[test]
fn layers_of_fewer_neurons_go_the_whole_way() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut asked = vec!["--set", "plan.strategy=even", "--set", "plan.form=pruned"];
    asked.extend(["--set", "analyze.delta_nll_tokens=none"]);
    asked.extend(["--set", "plan.targets=none", "--set", "plan.remove=0.3"]);
    let Some(mut command) = pipeline(&run, &asked) else { return };
    succeed(&mut command);
    let results: Value =
        serde_json::from_slice(&fs::read(run.join("08-evaluate/results.json")).unwrap()).unwrap();
    let row =
        |name: &str| results["rows"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    let number = |row: &Value, field: &str| row[field].as_f64().unwrap();
    let saved = 1.0 - number(row("slw_sft"), "mlp_parameters") / number(row("original"), "mlp_parameters");
    assert!((0.3..0.5).contains(&saved), "{saved}");
    // A pruned plan stores the same whatever was trained, and its 4-bit file is smaller than the original's.
    assert_eq!(number(row("direct"), "mlp_parameters"), number(row("slw_sft"), "mlp_parameters"));
    assert!(number(row("slw_sft_q4"), "bytes") < number(row("original_q4"), "bytes"));
    for name in ["direct", "slw", "sft", "slw_sft", "slw_sft_q4"] {
        assert!(row(name)["perplexity"]["tiny"].as_f64().unwrap().is_finite(), "{name}");
    }
    let plan = fs::read_to_string(run.join("03-plan/plan.toml")).unwrap();
    assert!(plan.contains("neurons = ") && !plan.contains("reference = "), "{plan}");
    let config: Value =
        serde_json::from_slice(&fs::read(run.join("06-export/compact/config.json")).unwrap()).unwrap();
    assert_eq!(config["sharp_config"]["targets"][0]["form"], "pruned");
    assert!(fs::read_to_string(run.join("report.html")).unwrap().contains("neurons"));
}

#[test]
fn the_report_sets_other_runs_beside_this_one_where_they_compare() {
    let Some(run) = copy_of_finished() else { return };
    let run = run.path();
    let other = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let beside = format!("report.compare_with=[\"the other way={}\"]", other.path().display());
    let reported = || {
        let output = succeed(&mut pipeline(run, &["--json", "--set", &beside]).unwrap());
        let made: Vec<_> = steps(&output).into_iter().filter(|(_, status, _)| status == "ran").collect();
        assert!(made.iter().all(|(folder, ..)| folder == "10-report"), "{made:?}");
        (made.len(), fs::read_to_string(run.join("report.md")).unwrap())
    };
    let (made, page) = reported();
    assert_eq!(made, 1);
    assert!(page.contains("not there; this stage has not run"), "{page}");

    // The same measurements, but that every row is twice as far from the original, on the other side: this
    // run is better than it.
    let mut results: Value =
        serde_json::from_slice(&fs::read(run.join("08-evaluate/results.json")).unwrap()).unwrap();
    let original = results["rows"][0]["mean_loss"].clone();
    for row in results["rows"].as_array_mut().unwrap() {
        for (text, loss) in row["mean_loss"].as_object_mut().unwrap() {
            let least = original[text].as_f64().unwrap();
            *loss = (least + 2.0 * (least - loss.as_f64().unwrap())).into();
        }
    }
    let place = other.path().join("08-evaluate/results.json");
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(&place, results.to_string()).unwrap();
    let (made, page) = reported();
    assert_eq!(made, 1, "new results of the other run make a new report");
    let line = page
        .lines()
        .find(|line| line.starts_with("| the other way | SLW + SFT |"))
        .unwrap_or_else(|| panic!("{page}"));
    assert!(line.contains("| -50.0 % |"), "{line}");
    assert_eq!(reported().0, 0, "and nothing new none");

    results["rows"][0]["tokens"]["tiny"] = 17.into();
    fs::write(&place, results.to_string()).unwrap();
    let (_, page) = reported();
    assert!(page.contains("or tiny is another text or another number of tokens"), "{page}");
    assert!(!page.contains("| the other way |"), "{page}");
}
