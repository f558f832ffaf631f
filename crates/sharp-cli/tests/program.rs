//! The program as a shell sees it: conversations through a pipe, completions, manual pages, the server's end.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

fn sharp() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sharp"))
}

/// A small model with random weights, with a chat template.
fn model() -> &'static Path {
    static MODEL: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = MODEL.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small");
        assert!(
            sharp().args(["synth", "--out"]).arg(&path).stdout(Stdio::null()).status().unwrap().success()
        );
        let file = path.join("tokenizer_config.json");
        let mut settings: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        settings["chat_template"] = json!(TEMPLATE);
        fs::write(file, settings.to_string()).unwrap();
        (folder, path)
    });
    path
}

/// What `sharp chat` says to `typed`.
fn chat(typed: &str, more: &[&str]) -> (String, String) {
    let mut command = sharp();
    command.args(["chat", "--temperature", "0", "--max-tokens", "12", "--model"]).arg(model()).args(more);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), errors)
}

/// What `sharp generate` goes on with.
fn goes_on(prompt: &str) -> String {
    let output = sharp()
        .args(["--json", "generate", "--max-tokens", "12", "--prompt", prompt, "--model"])
        .arg(model())
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["text"].as_str().unwrap().to_owned()
}

#[test]
fn a_conversation_through_a_pipe_keeps_its_history() {
    let (said, _) = chat("Hello\nAnd you?\n", &["--json", "--system", "Be brief"]);
    let answers: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    let first = goes_on("<system>Be brief\n<user>Hello\n<assistant>");
    assert_eq!(answers[0]["content"], first);
    let second = goes_on(&format!(
        "<system>Be brief\n<user>Hello\n<assistant>{}\n<user>And you?\n<assistant>",
        first.trim()
    ));
    assert_eq!(answers[1]["content"], second);
    // As text: the answers and nothing else.
    let (said, _) = chat("Hello\nAnd you?\n", &["--system", "Be brief"]);
    assert_eq!(said, format!("{first}\n{second}\n"));
}

#[test]
fn commands_change_the_conversation() {
    let alone = goes_on("<user>Hello\n<assistant>");
    let (said, _) = chat("One\n/new\nHello\n", &["--json", "--commands"]);
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(last["content"], alone);
    let (said, _) = chat("One\n/undo\nHello\n/again\n/help\n", &["--json", "--commands"]);
    let texts: Vec<Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(texts.len(), 3);
    assert_eq!((&texts[1]["content"], &texts[2]["content"]), (&json!(alone), &json!(alone)));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.json");
    chat(&format!("/system Be kind\nTwo\\\nlines\n/save {}\n", file.display()), &["--commands"]);
    let saved: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(saved["messages"][0], json!({"role": "system", "content": "Be kind"}));
    assert_eq!(saved["messages"][1], json!({"role": "user", "content": "Two\nlines"}));
    assert_eq!(saved["messages"][2]["role"], "assistant");
}

#[test]
fn text_through_a_pipe_reaches_the_model_whatever_it_begins_with() {
    for (typed, answers) in [
        ("/etc/passwd - what is it?\n", 1),
        ("/quit smoking: how?\nHello\n", 2),
        ("/system prompts, what are they?\n/new\n\n/quit\n", 3),
    ] {
        let (said, _) = chat(typed, &["--json"]);
        let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), answers, "{typed:?}: {said}");
    }
}

#[test]
fn values_may_begin_with_a_dash() {
    for prompt in ["- [ ] buy milk", "-5 degrees", "--help me", "--"] {
        let with_equals = sharp()
            .args(["--json", "generate", "--max-tokens", "3", &format!("--prompt={prompt}"), "--model"])
            .arg(model())
            .output()
            .unwrap();
        let answer: Value = serde_json::from_slice(&with_equals.stdout).unwrap();
        let apart = result("generate", model(), &["--max-tokens", "3", "--stop", "---", "--prompt", prompt]);
        assert_eq!(apart["text"], answer["text"], "{prompt}");
        assert_eq!(apart["prompt_tokens"], answer["prompt_tokens"], "{prompt}");
    }
    let output =
        sharp().args(["generate", "--prompt", "a", "--temperature", "-1", "--model"]).arg(model()).output();
    let errors = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(errors.contains("temperature") && errors.contains("-1"), "{errors}");
    let none = result("generate", model(), &["--prompt", "a", "--max-tokens", "0"]);
    assert_eq!((&none["text"], &none["finish"]), (&json!(""), &json!("length")));
}

#[test]
fn where_a_result_is_to_go_is_checked_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("file"), "x").unwrap();
    let (here, text) = (at(""), at("file"));
    let (below, file) = (at("file/below"), at("file"));
    for (command, more, word) in [
        ("quantize", vec!["--out", &here], "is a folder"),
        ("quantize", vec!["--out", &below], "is a file"),
        ("quantize", vec!["--out", "x.sharp", "--report", &here], "is a folder"),
        ("evaluate", vec!["--text", &text, "--out", &here], "is a folder"),
        ("benchmark", vec!["--out", &below], "is a file"),
        ("plan", vec!["--out", &here], "is a folder"),
        ("analyze", vec!["--data", &text, "--out", &file], "is a file"),
        ("export", vec!["--gguf", &here], "is a folder"),
        ("export", vec!["--dense", &file], "is a file"),
    ] {
        // A model that is not there: its absence is what the work would stumble over first.
        let output = sharp().args([command, "--model", "/nowhere"]).args(&more).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(word), "{command} {more:?}: {errors}");
        assert!(!errors.contains("/nowhere"), "{command} {more:?}: {errors}");
    }
}

#[test]
fn a_broken_template_stops_only_what_needs_it() {
    for (name, template) in [
        ("typing error", "{% for m in messages %}{{ m.content }}{% end for %}"),
        ("of Ollama", "{{ if .System }}<|system|>{{ .System }}{{ end }}{{ .Prompt }}"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for file in fs::read_dir(model()).unwrap().map(|file| file.unwrap().path()) {
            fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny.txt");
        let text = text.to_str().unwrap();
        result("generate", folder.path(), &["--prompt", "It is ", "--max-tokens", "2"]);
        result("evaluate", folder.path(), &["--text", text, "--tokens", "64", "--window", "32"]);
        let output = sharp()
            .args(["generate", "--chat", "--prompt", "a", "--model"])
            .arg(folder.path())
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{name}");
        for word in ["chat template", "does not compile", "chat_template.jinja", "line 1"] {
            assert!(errors.contains(word), "{name}: {word}: {errors}");
        }
    }
}

#[test]
fn a_conversation_longer_than_the_context_loses_its_beginning() {
    let long = "x".repeat(60);
    let typed = format!("{long}\n{long}\n{long}\nHello\n");
    let (said, errors) = chat(&typed, &["--json", "--context", "160"]);
    assert_eq!(said.lines().count(), 4, "{said} {errors}");
    assert!(errors.contains("left out"), "{errors}");
    // One message that is too long alone is refused, and the conversation goes on.
    let (said, errors) = chat(&format!("{}\nHello\n", "y".repeat(300)), &["--json", "--context", "160"]);
    assert_eq!(said.lines().count(), 1);
    assert!(errors.contains("shorten it"), "{errors}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut command = sharp();
    command.args(["chat", "--max-tokens", "200", "--model"]).arg(model());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(b"Hello\nHello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn shells_and_man_learn_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = sharp().args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("quantize") && script.contains("max-batch"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    assert!(sharp().args(["man", "--out"]).arg(&out).stdout(Stdio::null()).status().unwrap().success());
    let serve = fs::read_to_string(out.join("sharp-serve.1")).unwrap();
    assert!(serve.starts_with(".ie") || serve.contains(".TH"), "{serve}");
    assert!(serve.contains("port") && out.join("sharp.1").is_file());
}

#[cfg(unix)]
#[test]
fn a_server_answers_and_ends_when_asked() {
    for signal in ["TERM", "INT"] {
        let mut command = sharp();
        command.args(["serve", "--port", "0", "--model"]).arg(model());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let at = line.find("http://").unwrap() + "http://".len();
        let address = line[at..].split('/').next().unwrap();
        assert!(address.starts_with("127.0.0.1:"), "{line}");
        let mut socket = TcpStream::connect(address).unwrap();
        write!(socket, "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(r#""status":"ok","model":"small","chat":true"#), "{answer}");
        // A connection that is left open and says nothing does not hold it up.
        let _idle = TcpStream::connect(address).unwrap();
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn calibrated_quantising_keeps_the_size_and_says_what_it_was_calibrated_on() {
    let folder = tempfile::tempdir().unwrap();
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny.txt");
    let quantise = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let mut command = sharp();
        command.args(["--json", "quantize", "--model"]).arg(model()).arg("--out").arg(&out).args(more);
        (command.output().unwrap(), out)
    };
    let report = |name: &str, more: &[&str]| -> (Value, Vec<u8>) {
        let (output, out) = quantise(name, more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (serde_json::from_slice(&output.stdout).unwrap(), fs::read(out).unwrap())
    };
    let text = text.to_str().unwrap();
    let given = ["--calibrate", text, "--calibration-tokens", "512", "--seq-len", "64"];
    let (plain, _) = report("plain.sharp", &[]);
    let (made, bytes) = report("made.sharp", &given);
    let train = [&given[..], &["--split", "train", "--held-out", "0.3"]].concat();
    let (_, trained) = report("train.sharp", &train);
    assert_eq!((&plain["calibration_tokens"], &made["calibration_tokens"]), (&json!(0), &json!(512)));
    assert_eq!(plain["weight_bytes"], made["weight_bytes"]);
    assert_ne!(bytes, trained, "another part of the text must matter");
    assert_eq!(report("again.sharp", &given).1, bytes);

    for (more, complaint) in [
        (vec!["--calibrate", "/nowhere.txt"], "/nowhere.txt"),
        (vec!["--calibrate", text, "--seq-len", "100000"], "fewer than one row of 100000"),
        (vec!["--calibrate", text, "--split", "train", "--held-out", "1.5"], "1.5"),
        (vec!["--calibration-tokens", "512"], "--calibrate"),
    ] {
        let (output, out) = quantise("refused.sharp", &more);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(complaint), "{more:?}: {errors}");
        assert!(!out.exists());
    }
}

/// A GGUF file of tests/golden/gguf.
fn gguf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf/llama_mixed/model.gguf")
}

/// The JSON result of a command on a model.
fn result(command: &str, model: &Path, more: &[&str]) -> Value {
    let output = sharp().args(["--json", command, "--model"]).arg(model).args(more).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_command_takes_a_gguf_file_as_it_takes_its_import() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (imported, file) = (PathBuf::from(at("imported")), gguf());
    assert!(
        sharp().arg("import").arg(&file).args(["--out", &at("imported")]).output().unwrap().status.success()
    );
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny.txt");
    let text = text.to_str().unwrap();
    // Quantising, calibrated or not, gives the weights that the import gives, to the bit.
    for (name, more) in [("plain", &[][..]), ("made", &["--calibrate", text, "--seq-len", "64"][..])] {
        let made = [(&file, "gguf"), (&imported, "folder")].map(|(model, from)| {
            let out = at(&format!("{name}-{from}.sharp"));
            result("quantize", model, &[&["--out", &out][..], more].concat());
            let bytes = fs::read(out).unwrap();
            let header = u64::from_le_bytes(bytes[8..16].try_into().unwrap()) as usize;
            bytes[(16 + header).next_multiple_of(4096)..].to_vec()
        });
        assert!(!made[0].is_empty() && made[0] == made[1], "{name}");
    }
    // So does measuring its layers, with the values as they are.
    let analysis = [(&file, "a"), (&imported, "b")].map(|(model, out)| {
        let out = at(out);
        result("analyze", model, &["--data", text, "--out", &out, "--tokens", "512", "--seq-len", "64"]);
        fs::read_to_string(Path::new(&out).join("similarity.json")).unwrap()
    });
    assert_eq!(analysis[0], analysis[1]);
    let similarity = at("a/similarity.json");
    let plan = ["--similarity", &similarity, "--targets", "1", "--form", "none", "--dry-run"];
    assert_eq!(result("plan", &file, &plan), result("plan", &imported, &plan));
    // What runs it.
    let written = result("generate", &file, &["--prompt", "The sum", "--max-tokens", "5"]);
    assert!(written["tokens"].as_u64().unwrap() > 0);
    let measured =
        result("benchmark", &file, &["--prompt-tokens", "8", "--decode-tokens", "4", "--repeats", "1"]);
    assert_eq!(measured["models"][0]["file_bytes"], fs::metadata(&file).unwrap().len());
    let more = ["--model", imported.to_str().unwrap(), "--text", text, "--tokens", "512", "--window", "64"];
    let rows = result("evaluate", &file, &more)["rows"].clone();
    // Of a model with such large random weights the same tokens are likeliest nine times of ten, and of
    // another one never.
    assert!(rows[1]["top1_agreement"]["tiny"].as_f64().unwrap() > 0.8, "{rows}");
}

// With the feature the Hub would be asked for it (tests/hub.rs).
#[cfg(not(feature = "hub"))]
#[test]
fn a_path_without_a_model_is_refused_by_every_command_alike() {
    for (command, more) in [
        ("generate", &["--prompt", "x"][..]),
        ("chat", &[]),
        ("serve", &[]),
        ("analyze", &["--data", "x", "--out", "x"]),
        ("plan", &["--dry-run"]),
        ("quantize", &["--dry-run"]),
        ("export", &["--out", "x"]),
        ("evaluate", &["--text", "x"]),
        ("benchmark", &[]),
    ] {
        let output = sharp().args([command, "--model", "no/such-model"]).args(more).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{command}");
        assert!(
            errors.contains("no/such-model: no such file or folder (a model is a"),
            "{command}: {errors}"
        );
        assert!(
            errors.contains("--features hub") && errors.contains("hf download no/such-model"),
            "{errors}"
        );
    }
}

/// What `sharp --json inspect` says of a model.
fn inspected(model: &[&std::ffi::OsStr]) -> Value {
    let output = sharp().args(["--json", "inspect"]).args(model).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn inspect_says_what_a_person_wants_to_know_of_a_model() {
    let path = model().as_os_str();
    let contents = inspected(&[path]);
    assert_eq!(contents, inspected(&["--model".as_ref(), path]));
    let config: Value =
        serde_json::from_str(&fs::read_to_string(model().join("config.json")).unwrap()).unwrap();
    assert_eq!(contents["config"]["max_position_embeddings"], config["max_position_embeddings"]);
    // A token for each byte, and an end; the vocabulary is rounded up.
    assert_eq!(contents["tokenizer"]["tokens"], 257);
    assert_eq!(contents["tokenizer"]["chat_template"], true);
    assert_eq!(contents["tokenizer"].get("chat_template_error"), None);
    assert_eq!(contents["training_refusal"], Value::Null);

    let spoilt = tempfile::tempdir().unwrap();
    for file in fs::read_dir(model()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), spoilt.path().join(file.file_name())).unwrap();
    }
    let mut other = config;
    (other["architectures"], other["model_type"]) = (json!(["MistralForCausalLM"]), json!("mistral"));
    (other["sliding_window"], other["max_position_embeddings"]) = (json!(20), json!(77));
    fs::write(spoilt.path().join("config.json"), other.to_string()).unwrap();
    fs::write(spoilt.path().join("chat_template.jinja"), "{% for %}").unwrap();
    let contents = inspected(&[spoilt.path().as_os_str()]);
    assert_eq!(contents["config"]["max_position_embeddings"], 77);
    assert!(contents["tokenizer"]["chat_template_error"].as_str().unwrap().contains("line 1"), "{contents}");
    assert!(contents["training_refusal"].as_str().unwrap().contains("sliding-window"), "{contents}");

    fs::write(spoilt.path().join("tokenizer.json"), "{").unwrap();
    let contents = inspected(&[spoilt.path().as_os_str()]);
    assert_eq!(contents["tokenizer"], Value::Null);
    assert!(contents["tokenizer_error"].as_str().unwrap().contains("tokenizer.json"), "{contents}");
    let twice = sharp().args(["inspect", "a", "--model", "b"]).output().unwrap();
    assert!(!twice.status.success());
}
