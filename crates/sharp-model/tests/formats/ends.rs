//! Where text ends: every end that any file names is kept through every form, and turns end where llama.cpp
//! ends them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use sharp_model::gguf::{Gguf, GgufOptions, HfView, export_gguf};
use sharp_model::tokenizer::Tokenizer;
use sharp_model::{
    DType, ExportOptions, ModelConfig, ModelSource, Stored, export_compact, export_dense, import,
};
use sharp_progress::Silent;

use crate::golden;

/// A model whose config.json names one end, and generation_config.json `all`.
fn model(folder: &Path, all: &[u32]) -> PathBuf {
    let out = folder.join("model");
    import(golden("gguf/qwen2/model.gguf"), &out, DType::F32, &Silent).unwrap();
    let mut config = crate::json(out.join("config.json"));
    config["eos_token_id"] = json!(all[0]);
    fs::write(out.join("config.json"), config.to_string()).unwrap();
    let mut settings = crate::json(out.join("tokenizer_config.json"));
    settings["eos_token"] = json!(Tokenizer::load(&out).unwrap().token(all[0]));
    fs::write(out.join("tokenizer_config.json"), settings.to_string()).unwrap();
    fs::write(out.join("generation_config.json"), json!({ "eos_token_id": all }).to_string()).unwrap();
    out
}

/// The ends of a stored model, by its configuration and by its tokenizer.
fn ends(path: &Path) -> [Vec<u32>; 2] {
    let tokenizer = Tokenizer::load(path).unwrap();
    let mut all = [Stored::at(path).unwrap().config().unwrap().eos_token_ids, tokenizer.eos_ids().to_vec()];
    all.iter_mut().for_each(|ids| ids.sort_unstable());
    all
}

#[test]
fn ends_of_the_generation_config_are_kept_in_every_form() {
    for all in [&[9u32][..], &[9, 12, 3], &[9, 12, 3, 4, 5]] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let first = model(dir.path(), all);
        let source = ModelSource::open(&first).unwrap();
        let tokenizer = Tokenizer::load(&first).unwrap();
        let options = ExportOptions::new(DType::F32);
        export_dense(&source, at("dense"), &options, &Silent).unwrap();
        export_compact(&source, at("compact"), &options, &Silent).unwrap();
        import(&first, at("imported"), DType::F32, &Silent).unwrap();
        let gguf = GgufOptions::uniform(DType::F32);
        export_gguf(&source, Some(&tokenizer), &at("m.gguf"), gguf, &Silent).unwrap();
        import(at("m.gguf"), at("imported_gguf"), DType::F32, &Silent).unwrap();
        let again = ModelSource::open(at("m.gguf")).unwrap();
        export_gguf(&again, again.tokenizer().unwrap().as_ref(), &at("again.gguf"), gguf, &Silent).unwrap();
        export_dense(&again, at("dense_gguf"), &options, &Silent).unwrap();
        let mut sorted = all.to_vec();
        sorted.sort_unstable();
        for form in
            ["model", "dense", "compact", "imported", "m.gguf", "imported_gguf", "again.gguf", "dense_gguf"]
        {
            assert_eq!(ends(&at(form)), [sorted.clone(), sorted.clone()], "{form}");
        }
        // Without the second file the first alone says all of them.
        fs::remove_file(at("imported/generation_config.json")).unwrap();
        assert_eq!(ends(&at("imported"))[0], sorted);
        // The three keys of the format that llama.cpp reads.
        let file = Gguf::open(at("m.gguf")).unwrap();
        let key = |name: &str| file.integer(&format!("tokenizer.ggml.{name}_token_id")).unwrap();
        let named: Vec<u32> = ["eos", "eot", "eom"].into_iter().filter_map(key).map(|id| id as u32).collect();
        assert_eq!(named, all[..all.len().min(3)]);
    }
}

#[test]
fn an_end_without_a_row_is_never_chosen_and_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let folder = model(dir.path(), &[9, 4_000_000]);
    assert_eq!(ModelConfig::load(&folder).unwrap().eos_token_ids, [9]);
    fs::write(folder.join("generation_config.json"), "{").unwrap();
    let error = ModelConfig::load(&folder).unwrap_err().to_string();
    assert!(error.contains("generation_config.json"), "{error}");
}

#[test]
fn a_turn_ends_where_llama_cpp_ends_it_whatever_the_file_names() {
    let tokenizer = |special: &[(&str, bool)]| {
        let added: Vec<_> = (1..)
            .zip(special)
            .map(|(id, (text, special))| {
                json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": special})
            })
            .collect();
        let model = json!({"type": "BPE", "vocab": {"<|im_end|>": 0}, "merges": []});
        let json = json!({"version": "1.0", "added_tokens": added, "model": model}).to_string();
        let config = json!({"eos_token": special[0].0}).as_object().unwrap().clone();
        Tokenizer::from_parts("x".as_ref(), json.as_bytes(), config, &[7]).unwrap()
    };
    let found =
        tokenizer(&[("</s>", true), ("<|eot_id|>", true), ("<end_of_turn>", false), ("<|user|>", true)]);
    // A plain word that looks like one (token 0) is none.
    assert_eq!((found.eos_ids(), found.end_ids()), (&[1, 7][..], &[1, 7, 2, 3][..]));
    assert!(found.is_eos(3) && !found.is_eos(0) && !found.is_eos(4));
    let mut more = tokenizer(&[("</s>", true), ("<|over|>", true)]);
    more.add_end(2);
    more.add_end(2);
    assert_eq!(more.end_ids(), [1, 7, 2]);
}

#[test]
fn gguf_files_name_their_turns_end_or_list_it_as_a_word() {
    let bytes = fs::read(golden("gguf/qwen2/model.gguf")).unwrap();
    let gguf = Gguf::open(golden("gguf/qwen2/model.gguf")).unwrap();
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    // A word of the same length as a known end of turns takes the place of `<|turn|>`, as a plain word.
    let turn = tokens.iter().position(|t| *t == "<|turn|>").unwrap();
    let renamed = swap(&bytes, b"<|turn|>", b"<|call|>");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    fs::write(&file, plain_word(renamed, turn, tokens.len())).unwrap();
    let view = HfView::new(Gguf::open(&file).unwrap().into()).unwrap();
    let tokenizer = view.tokenizer().unwrap().unwrap();
    assert_eq!(tokenizer.encode("<|call|>", false).unwrap(), [turn as u32]);
    assert!(tokenizer.is_eos(turn as u32));
}

fn swap(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for at in 0..out.len() - from.len() {
        if out[at..].starts_with(from) {
            out[at..at + to.len()].copy_from_slice(to);
        }
    }
    out
}

/// Says that token `id` of `n` is a normal one.
fn plain_word(mut bytes: Vec<u8>, id: usize, n: usize) -> Vec<u8> {
    let key = b"tokenizer.ggml.token_type";
    let at = (0..bytes.len()).find(|&at| bytes[at..].starts_with(key)).unwrap() + key.len();
    // Kind, kind of the elements, their number, the elements.
    assert_eq!(u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap()), n as u64);
    bytes[at + 16 + 4 * id..at + 20 + 4 * id].copy_from_slice(&1i32.to_le_bytes());
    bytes
}
