//! Files that somebody has damaged or made to do harm: tokenizers, settings, links and pipes.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sharp_model::tokenizer::Tokenizer;
use sharp_model::{DType, Error, HfCheckpoint, ModelConfig, Stored, import};
use sharp_progress::Silent;

use crate::golden;
use crate::raw::complaint;

/// A sound tokenizer of a few tokens.
fn sound() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "b"},
    })
}

fn load(text: &str) -> sharp_model::Result<Tokenizer> {
    Tokenizer::from_parts("tokenizer.json".as_ref(), text.as_bytes(), serde_json::Map::new(), &[])
}

#[test]
fn a_tokenizer_cut_anywhere_is_an_error() {
    let text = sound().to_string();
    assert_eq!(load(&text).unwrap().encode("a", false).unwrap(), [0]);
    for end in 0..text.len() {
        let error = load(&text[..end]).unwrap_err();
        assert!(matches!(&error, Error::Json { .. }), "cut at {end}: {error}");
    }
    for wrong in [json!([[]]), json!({"type": "Sequence"}), json!("BPE")] {
        let mut file = sound();
        file["decoder"] = wrong.clone();
        complaint(load(&file.to_string()), "tokenizer.json", &["tokenizer"]);
    }
}

#[test]
fn a_table_of_characters_is_no_longer_than_it_says() {
    let with = |table: &str| {
        let mut file = sound();
        file["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": table});
        load(&file.to_string())
    };
    // 4,294,967,295 bytes, of which 2 are there.
    complaint(with("////////"), "tokenizer.json", &["precompiled_charsmap", "4294967295", "2 are there"]);
    complaint(with("/"), "tokenizer.json", &["precompiled_charsmap", "base64"]);
    complaint(with("AAA="), "tokenizer.json", &["precompiled_charsmap", "length"]);
    // An empty table makes `spm_precompiled` look past its end.
    let empty = with("AAAAAA==").unwrap();
    complaint(empty.encode("a", false), "tokenizer.json", &["normalizer", "damaged"]);
}

#[test]
fn what_the_library_fails_on_is_an_error_and_not_its_panic() {
    let mut refused = Vec::new();
    for (part, wrong) in [
        ("normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"})),
        ("normalizer", json!({"type": "Prepend", "prepend": ""})),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
    ] {
        let mut file = sound();
        file[part] = wrong.clone();
        let tokenizer = load(&file.to_string()).unwrap();
        let ended = [
            tokenizer.encode("a \u{e9}b", true).err(),
            tokenizer.encode_with_starts("a \u{e9}b").err(),
            tokenizer.encode_batch(&["a \u{e9}b", "b"], true).err(),
        ];
        for error in ended.into_iter().flatten() {
            complaint::<()>(Err(error), "tokenizer.json", &["normalizer", "pre-tokenizer", "save it again"]);
            refused.push(part);
        }
    }
    assert!(refused.contains(&"pre_tokenizer"), "{refused:?}");
}

#[test]
fn settings_larger_than_any_sound_file_are_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let write = |name: &str, length: u64| fs::File::create(file(name)).unwrap().set_len(length).unwrap();
    fs::copy(golden("hf_llama/tied/config.json"), file("config.json")).unwrap();
    fs::write(file("tokenizer.json"), sound().to_string()).unwrap();
    Tokenizer::load(dir.path()).unwrap();
    for (name, length) in
        [("chat_template.jinja", 2 << 20), ("tokenizer_config.json", 20 << 20), ("tokenizer.json", 3 << 30)]
    {
        let before = fs::read(file(name)).ok();
        write(name, length);
        complaint(Tokenizer::load(dir.path()), name, &["too large"]);
        match before {
            Some(bytes) => fs::write(file(name), bytes).unwrap(),
            None => fs::remove_file(file(name)).unwrap(),
        }
    }
    Tokenizer::load(dir.path()).unwrap();
    write("config.json", 2 << 20);
    complaint(ModelConfig::load(dir.path()), "config.json", &["too large"]);
    // Short in the file, long in memory.
    let zeros = format!("{{\"a\": [{}0]}}", "0,".repeat(600_000));
    fs::write(file("tokenizer_config.json"), zeros).unwrap();
    complaint(Tokenizer::load(dir.path()), "tokenizer_config.json", &["524288 values", "line 1"]);
    let mut header = (17u64 << 20).to_le_bytes().to_vec();
    header.resize(18 << 20, b' ');
    fs::write(file("model.safetensors"), header).unwrap();
    complaint(HfCheckpoint::open(file("model.safetensors")), "model.safetensors", &["17825792", "16777216"]);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("model");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    complaint(Stored::at(&pipe), "model", &["regular file"]);
    complaint(HfCheckpoint::open(&pipe), "model", &["regular file"]);
    complaint(ModelConfig::load(&pipe), "model", &["regular file"]);
}

/// A checkpoint as the Hub's cache keeps it: a folder of links to blobs.
#[cfg(unix)]
fn hub_cache(root: &Path) -> std::path::PathBuf {
    let (blobs, snapshot) = (root.join("blobs"), root.join("snapshots").join("rev"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("hf_llama/tied").join(name), blobs.join(name)).unwrap();
    }
    fs::write(blobs.join("tokenizer.json"), sound().to_string()).unwrap();
    fs::write(blobs.join("LICENSE"), "free").unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "LICENSE"] {
        std::os::unix::fs::symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
    }
    snapshot
}

#[cfg(unix)]
#[test]
fn links_out_of_a_checkpoint_are_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = hub_cache(dir.path());
    let out = dir.path().join("out");
    let run = || import(&snapshot, &out, DType::F32, &Silent);
    run().unwrap();
    assert_eq!(fs::read_to_string(out.join("LICENSE")).unwrap(), "free");
    assert!(out.join("tokenizer.json").is_file());
    let secret = dir.path().join("secret");
    fs::write(&secret, "of the user").unwrap();
    let link = |name: &str, to: &Path| {
        let _ = fs::remove_file(snapshot.join(name));
        std::os::unix::fs::symlink(to, snapshot.join(name)).unwrap();
    };
    fs::remove_dir_all(&out).unwrap();
    link("LICENSE", &secret);
    link("merges.txt", Path::new("../../../secret"));
    run().unwrap();
    assert!(!out.join("LICENSE").exists());
    link("vocab.json", Path::new("LICENSE"));
    run().unwrap();
    assert!(!out.join("vocab.json").exists());
    // What the model is made of is not left out without a word.
    link("tokenizer_config.json", &secret);
    complaint(run(), "tokenizer_config.json", &["secret", "copy"]);
}
