//! What `sharp-train finetune --check` forecasts, against what the program then takes.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sharp_infer::{Recipe, Synthetic, Team};
use sharp_model::{LayerChange, ModelConfig, ModelSource, Plan, Ranks, Recovery, Repair};
use sharp_progress::Silent;

/// A model of 19 M parameters, half of them trained; activations and logits count as well.
fn write_model(folder: &Path) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 10, "vocab_size": 40_000,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
    });
    let config = ModelConfig::from_json(&config.to_string()).unwrap();
    Synthetic::write(&config, None, 1, &folder.join("model"), &Silent).unwrap();
    write_plan(folder, vec![LayerChange::prune(1, 512)]);
    let text: String = (0..800).map(|i| format!("{{\"text\": \"line {i} of {}\"}}\n", i * i)).collect();
    std::fs::write(folder.join("text.jsonl"), text).unwrap();
}

fn write_plan(folder: &Path, changes: Vec<LayerChange>) {
    std::fs::write(folder.join("plan.toml"), Plan::new("explicit", changes).to_toml()).unwrap();
}

fn finetune(folder: &Path, steps: u32, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sharp-train"));
    command.current_dir(folder).args(["finetune", "--model", "model", "--plan", "plan.toml"]);
    command.args(["--data", "text.jsonl", "--seq-len", "256", "--batch-tokens", "512"]);
    command.args(["--validation-tokens", "512", "--threads", "2", "--steps", &steps.to_string()]);
    if !more.contains(&"--out") {
        command.args(["--out", "out"]);
    }
    if !more.contains(&"--bf16") {
        command.args(["--bf16", "off", "--train-mlps", "all", "--distill", "0.5"]);
    }
    command.args(more).stderr(Stdio::null());
    command
}

fn forecast(folder: &Path, steps: u32, more: &[&str]) -> Value {
    let output = finetune(folder, steps, &[&["--check", "--json"], more].concat()).output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Follows a program's anonymous memory to its end.
#[cfg(target_os = "linux")]
fn peak(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    let status = loop {
        let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let anonymous = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = anonymous.map_or(0, |rest| rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap());
        peak = peak.max(kib * 1024);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert!(status.success());
    peak
}

/// Holds what is said of two steps against what they take.
#[cfg(target_os = "linux")]
fn assert_said(folder: &Path, more: &[&str]) {
    let said = forecast(folder, 2, &[more, &["--untimed"]].concat())["memory_bytes"].as_u64().unwrap();
    let taken = peak(finetune(folder, 2, more));
    let ratio = said as f64 / taken as f64;
    assert!((0.8..1.25).contains(&ratio), "{more:?}: {said} bytes said, {taken} taken");
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_what_the_program_takes() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    assert_said(folder.path(), &[]);
}

/// The file's weights lie beside the original's, and rounded values beside the exact ones.
#[test]
#[cfg(target_os = "linux")]
fn memory_of_training_onto_a_runtime_file_is_what_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    assert!(finetune(folder.path(), 1, &["--out", "tuned"]).status().unwrap().success());
    let original = ModelSource::open(folder.path().join("model")).unwrap();
    let plan = Plan::load(folder.path().join("plan.toml")).unwrap();
    let recovery = Recovery::load(folder.path().join("tuned/recovery.safetensors")).unwrap();
    let tuned = ModelSource::overlay(&original, plan, Some(&recovery)).unwrap();
    let team = Team::new(1).unwrap();
    let file = folder.path().join("model.sharp");
    sharp_infer::quantize(&tuned, &Recipe::q4(), &file, &team, &Silent).unwrap();
    assert_said(folder.path(), &["--recovery", "tuned/recovery.safetensors", "--runtime", "model.sharp"]);
}

/// Layers of a pool run the neurons of all of them, and a second run keeps what a first one does.
#[test]
#[cfg(target_os = "linux")]
fn memory_of_weights_used_again_is_what_they_take() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    write_plan(folder.path(), (2..8).map(|layer| LayerChange::prune(layer, 768)).collect());
    assert!(finetune(folder.path(), 1, &["--out", "tuned"]).status().unwrap().success());
    let again = ["--recovery", "tuned/recovery.safetensors", "--pool", "3", "--run-twice", "1,2,3,8"];
    assert_said(folder.path(), &again);
}

/// The references of repaired layers are in float32 beside the bf16 that is multiplied.
#[test]
#[cfg(target_os = "linux")]
fn memory_of_references_is_what_they_take() {
    // Without instructions for it this would take minutes.
    if !sharp_host::multiplies_bf16() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let share = |layer| LayerChange::share(layer, layer - 1, Repair::low_rank(Ranks::uniform(32)));
    write_plan(folder.path(), [1, 3, 5, 7, 9].map(share).to_vec());
    assert_said(folder.path(), &["--bf16", "on", "--distill", "0.5"]);
}

#[test]
fn time_grows_with_the_steps() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let of = |steps| forecast(folder.path(), steps, &[]);
    let (few, many) = (of(2), of(2000));
    for forecast in [&few, &many] {
        assert!(forecast["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    // The same step measured twice, on a machine that may have other work.
    let ratio = many["seconds"].as_f64().unwrap() / few["seconds"].as_f64().unwrap();
    assert!(ratio > 50.0, "{few} {many}");
    assert_eq!(forecast(folder.path(), 2, &["--untimed"]).get("seconds"), None);
}
