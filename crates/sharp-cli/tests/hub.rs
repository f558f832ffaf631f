//! A model named as on the Hugging Face Hub, from a server on this machine that behaves as the Hub does.

#![cfg(feature = "hub")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A Hub with one model, `org/tiny`, whose files lie in a folder.
struct Hub {
    address: String,
    /// Each request's first line, and its token after it.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// With `cut`, the first answer with weights ends in the middle.
    fn start(folder: PathBuf, token: Option<&'static str>, cut: bool) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut cut = cut;
            for socket in listener.incoming() {
                answer(socket.unwrap(), &folder, token, &mut cut, &log);
            }
        });
        Hub { address, asked }
    }

    fn sharp(&self, home: &Path, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sharp"));
        for name in [
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.address).env("HF_HOME", home).args(args).output().unwrap()
    }
}

fn answer(
    mut socket: TcpStream,
    folder: &Path,
    token: Option<&str>,
    cut: &mut bool,
    log: &Mutex<Vec<String>>,
) {
    let mut lines = BufReader::new(socket.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let head: Vec<(String, String)> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())))
        .collect();
    let header = |name: &str| head.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
    let sent = header("authorization").unwrap_or("");
    log.lock().unwrap().push(format!("{request} {sent}"));
    let path = request.split(' ').nth(1).unwrap();
    let mut say = |status: &str, more: &str, length: usize, body: &[u8]| {
        let head =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n");
        let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(body));
    };
    if token.is_some_and(|token| sent != format!("Bearer {token}")) {
        return say("401 Unauthorized", "", 0, b"");
    }
    let all = || fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    if let Some(revision) = path.strip_prefix("/api/models/org/tiny/revision/") {
        if !["main", "v1"].contains(&revision) {
            return say("404 Not Found", "", 0, b"");
        }
        let mut names: Vec<Value> = all().map(|name| json!({"rfilename": name})).collect();
        names.push(json!({"rfilename": "../outside.safetensors"}));
        names.push(json!({"rfilename": "onnx/model.safetensors"}));
        let body = json!({"sha": COMMIT, "siblings": names}).to_string();
        return say("200 OK", "Content-Type: application/json\r\n", body.len(), body.as_bytes());
    }
    let file = path
        .strip_prefix("/org/tiny/resolve/")
        .and_then(|p| p.split_once('/'))
        .map(|(_, name)| name.to_owned());
    let Some(name) = file.filter(|name| all().any(|n| n == *name)) else {
        return say("404 Not Found", "", 0, b"");
    };
    let bytes = fs::read(folder.join(&name)).unwrap();
    let range = header("range").and_then(|r| r.strip_prefix("bytes=")?.split_once('-')).unwrap_or(("0", ""));
    let from: usize = range.0.parse().unwrap();
    let to = range.1.parse().map_or(bytes.len(), |to: usize| (to + 1).min(bytes.len()));
    let part = &bytes[from.min(to)..to];
    let more = format!(
        "Content-Range: bytes {from}-{}/{}\r\nETag: \"{name}-etag\"\r\nX-Repo-Commit: {COMMIT}\r\nAccept-Ranges: bytes\r\n",
        to.saturating_sub(1),
        bytes.len()
    );
    let short = if *cut && name.ends_with(".safetensors") && part.len() > 1 {
        *cut = false;
        part.len() / 2
    } else {
        part.len()
    };
    say("206 Partial Content", &more, part.len(), &part[..short]);
}

fn model(folder: &Path) -> PathBuf {
    let path = folder.join("small");
    let made =
        Command::new(env!("CARGO_BIN_EXE_sharp")).args(["synth", "--out"]).arg(&path).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    path
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["text"].as_str().unwrap().to_owned()
}

fn generate(model: &str) -> Vec<&str> {
    vec![
        "--json",
        "generate",
        "--temperature",
        "0",
        "--max-tokens",
        "8",
        "--prompt",
        "Once",
        "--model",
        model,
    ]
}

#[test]
fn a_model_is_brought_here_once_and_runs_as_its_folder_does() {
    let dir = tempfile::tempdir().unwrap();
    let (original, home) = (model(dir.path()), dir.path().join("home"));
    let hub = Hub::start(original.clone(), Some("secret"), true);
    // The token is in the file that `hf auth login` writes.
    fs::create_dir(&home).unwrap();
    fs::write(home.join("token"), "secret\n").unwrap();
    let want = text(&hub.sharp(&home, &generate(original.to_str().unwrap())));
    assert!(hub.asked.lock().unwrap().is_empty(), "a folder asks nobody");

    assert_eq!(text(&hub.sharp(&home, &generate("org/tiny"))), want);
    let snapshot = home.join("hub/models--org--tiny/snapshots").join(COMMIT);
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert_eq!(fs::read(snapshot.join(name)).unwrap(), fs::read(original.join(name)).unwrap(), "{name}");
    }
    assert_eq!(fs::read_to_string(home.join("hub/models--org--tiny/refs/main")).unwrap(), COMMIT);
    let weights = hub.asked.lock().unwrap().iter().filter(|r| r.contains("model.safetensors")).count();
    assert!(weights >= 3, "its size, the part before the cut and the rest, not {weights} requests");

    // Once it is here, only its commit is asked for; offline nothing is.
    hub.asked.lock().unwrap().clear();
    assert_eq!(text(&hub.sharp(&home, &generate("org/tiny"))), want);
    let asked = std::mem::take(&mut *hub.asked.lock().unwrap());
    assert!(asked.len() == 1 && asked[0].contains("/api/models/org/tiny/revision/main"), "{asked:?}");
    let mut offline = Command::new(env!("CARGO_BIN_EXE_sharp"));
    let offline = offline.env("HF_HUB_OFFLINE", "1").env("HF_HOME", &home).env("HF_ENDPOINT", &hub.address);
    assert_eq!(text(&offline.args(generate("org/tiny")).output().unwrap()), want);
    assert!(hub.asked.lock().unwrap().is_empty());

    assert_eq!(text(&hub.sharp(&home, &generate("org/tiny@v1"))), want);
}

#[test]
fn what_the_hub_does_not_give_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let original = model(dir.path());
    let hub = Hub::start(original, Some("secret"), false);
    let home = dir.path().join("home");
    let said = |args: &[&str]| {
        let output = hub.sharp(&home, args);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let errors = said(&["inspect", "org/tiny"]);
    assert!(
        errors.contains("org/tiny@main") && errors.contains("HF_TOKEN") && errors.contains("401"),
        "{errors}"
    );
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("token"), "secret").unwrap();
    let errors = said(&["inspect", "org/tiny@v9"]);
    assert!(errors.contains("org/tiny@v9") && errors.contains("404"), "{errors}");
    let errors = said(&["inspect", "org/tiny/a.gguf"]);
    assert!(errors.contains("org/tiny has no a.gguf"), "{errors}");
}
