//! What a person may type or hand over wrongly, and how it is refused.

use std::fs;

use crate::fixture::{copy_of_finished, fail, pipeline, program, repository, sharp, succeed, xtask};

#[test]
fn misspelt_keys_values_and_names_are_refused_with_a_suggestion() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = fs::read_to_string(repository().join("configs/tiny.toml")).unwrap();
    let base = repository().join("configs/smollm2-135m.toml");
    let tiny = tiny.replace("\"smollm2-135m.toml\"", &format!("{base:?}"));
    let refused = |text: &str| {
        let file = folder.path().join("mine.toml");
        fs::write(&file, text).unwrap();
        let mut command = xtask()?;
        command.args(["pipeline", "--config"]).arg(&file).arg("--out").arg(folder.path().join("run"));
        Some(fail(&mut command))
    };
    let Some(errors) = refused(&tiny.replace("strategy =", "stratgey =")) else { return };
    assert!(errors.contains("did you mean `strategy`?") && errors.contains("mine.toml"), "{errors}");
    let errors = refused(&tiny.replace("\"optimal\"", "\"optimum\"")).unwrap();
    assert!(errors.contains("did you mean `optimal`?"), "{errors}");
    let errors = refused(&tiny.replace("synth:tiny", "pinned:smollm-135m-instruct")).unwrap();
    assert!(errors.contains("did you mean `smollm2-135m-instruct`?"), "{errors}");
    let errors = refused(&tiny.replace("data/tiny.txt", "data/tiny.text")).unwrap();
    assert!(errors.contains("no such file"), "{errors}");
    let errors = refused(&tiny.replace("[plan]", "[plna]")).unwrap();
    assert!(errors.contains("did you mean `plan`?"), "{errors}");
    let errors = refused("model = \"synth:tiny\"\nfinetune_steps = 8\n").unwrap();
    assert!(errors.contains("finetune_steps is now finetune.steps"), "{errors}");
    let errors = refused("extends = \"mine.toml\"").unwrap();
    assert!(errors.contains("extends itself"), "{errors}");
    let errors = refused("model = [").unwrap();
    assert!(errors.contains("not TOML"), "{errors}");
    assert!(!folder.path().join("run").exists(), "nothing starts before the configuration is right");
}

#[test]
fn a_stage_that_does_not_exist_is_refused_with_a_suggestion() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut command) = pipeline(folder.path(), &["--from", "finetun"]) else { return };
    let errors = fail(&mut command);
    assert!(errors.contains("finetune"), "{errors}");
    let errors = fail(&mut pipeline(folder.path(), &["--set", "analyze.windw=3"]).unwrap());
    assert!(errors.contains("did you mean `window`?"), "{errors}");
    let errors = fail(&mut pipeline(folder.path(), &["--set", "finetune_steps=8"]).unwrap());
    assert!(errors.contains("finetune_steps is now finetune.steps"), "{errors}");
}

#[test]
fn a_broken_checkpoint_is_refused_by_name_and_nothing_is_imported() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cut.gguf");
    fs::write(&file, b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f").unwrap();
    let run = folder.path().join("run");
    let model = format!("model={}", file.display());
    let Some(mut command) = pipeline(&run, &["--until", "import", "--set", &model]) else { return };
    let errors = fail(&mut command);
    assert!(errors.contains("cut.gguf") && errors.contains("stage import failed"), "{errors}");
    assert!(!run.join("01-import/model.safetensors").exists());
}

/// Gemma's norms and activation are not trained: said before the import, and by a dry run as well.
#[test]
fn a_model_that_cannot_be_trained_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let model =
        |case: &str| format!("model={}", repository().join("tests/golden/hf_families").join(case).display());
    let Some(mut dry) = pipeline(&run, &["--dry-run", "--set", &model("gemma3")]) else { return };
    let wanted = "training a Gemma3ForCausalLM is not supported: it has an activation other than SiLU";
    let errors = fail(&mut dry);
    assert!(errors.contains(wanted) && !run.exists(), "{errors}");
    let errors = fail(&mut pipeline(&run, &["--set", &model("gemma3")]).unwrap());
    assert!(errors.contains(wanted) && errors.contains("stage import failed"), "{errors}");
    assert!(!run.join("01-import/config.json").exists());
    // What does not train takes it, and what can be trained passes.
    succeed(&mut pipeline(&run, &["--dry-run", "--until", "plan", "--set", &model("gemma3")]).unwrap());
    succeed(&mut pipeline(&run, &["--dry-run", "--set", &model("qwen3")]).unwrap());
}

#[test]
fn trainings_look_at_their_output_before_they_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("taken");
    fs::write(&file, "x").unwrap();
    for training in ["warmup", "finetune"] {
        let Some(mut command) = program("sharp-train") else { return };
        command.args([training, "--model", "none", "--plan", "none", "--data", "none", "--out"]).arg(&file);
        let errors = fail(&mut command);
        assert!(errors.contains("taken") && errors.contains("is a file"), "{errors}");
    }
}

#[test]
fn a_cut_off_runtime_file_is_refused_by_name() {
    let Some(copy) = copy_of_finished() else { return };
    let path = copy.path().join("07-quantize/model.sharp");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 64, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let mut command = sharp().unwrap();
        command.args(["generate", "--prompt", "x", "--model"]).arg(&path);
        let errors = fail(&mut command);
        assert!(errors.contains("model.sharp"), "cut to {length} bytes: {errors}");
    }
}
