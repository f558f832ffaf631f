//! Tokenizers: SmolLM2's against independent ids, streams against whole decodings, folders that are not
//! right.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use sharp_model::gguf::{Gguf, tokenizer_config_json, tokenizer_json};
use sharp_model::tokenizer::Tokenizer;

use crate::raw::complaint;
use crate::{golden, json};

fn from_gguf(path: &Path) -> Tokenizer {
    let gguf = Gguf::open(path).unwrap();
    let text = tokenizer_json(&gguf).unwrap().to_string();
    Tokenizer::from_parts(path, text.as_bytes(), tokenizer_config_json(&gguf).unwrap(), &[]).unwrap()
}

fn small(case: &str) -> Tokenizer {
    from_gguf(&golden("gguf").join(case).join("model.gguf"))
}

#[test]
fn smollm2_tokens_are_the_independent_ones() {
    let Some(path) = sharp_tests::smollm2() else { return };
    let tokenizer = from_gguf(&path);
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids()), (Some(1), &[2][..]));
    assert!(tokenizer.chat_template().unwrap().contains("<|im_start|>"));
    let rows = json(golden("smollm2_tokens").join("expected.json"));
    let rows: Vec<(String, Vec<u32>)> = serde_json::from_value(rows).unwrap();
    assert!(rows.len() > 300);
    for (text, ids) in &rows {
        assert_eq!(&tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        let lost = ids.len() < text.len() && tokenizer.decode(ids).unwrap() != *text;
        // Bytes that occur in no token of this vocabulary are all that may be lost.
        assert!(!lost || text.chars().any(|c| c.is_control() || c as u32 > 0xFFFF), "{text:?}");
        streams_like_whole(&tokenizer, ids);
    }
    let texts: Vec<&str> = rows.iter().map(|(t, _)| t.as_str()).collect();
    let together = tokenizer.encode_batch(&texts, true).unwrap();
    assert!(together.iter().zip(&rows).all(|(a, (_, b))| a == b));
}

/// Pieces put together are the whole, and no piece shows half a character.
fn streams_like_whole(tokenizer: &Tokenizer, ids: &[u32]) {
    let whole = tokenizer.decode(ids).unwrap();
    let mut stream = tokenizer.stream(&[], false);
    let mut text = String::new();
    for &id in ids {
        let piece = stream.push(id).unwrap();
        assert!(whole[text.len()..].starts_with(&piece), "{piece:?} after {text:?} of {whole:?}");
        text += &piece;
    }
    text += &stream.finish().unwrap();
    assert_eq!(text, whole);
}

#[test]
fn a_character_of_several_tokens_appears_at_once() {
    for case in ["llama_mixed", "sentencepiece"] {
        let tokenizer = small(case);
        let ids = tokenizer.encode("ok \u{1F44D}\u{1F3FD}!", false).unwrap();
        let mut stream = tokenizer.stream(&[], false);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert!(pieces.contains(&"\u{1F44D}".to_owned()), "{case}: {pieces:?}");
        assert!(pieces.concat().ends_with('!') && stream.finish().unwrap().is_empty());
    }
}

#[test]
fn an_unfinished_character_is_given_out_at_the_end() {
    let tokenizer = small("llama_mixed");
    let ids = tokenizer.encode("a\u{1F44D}", false).unwrap();
    let mut stream = tokenizer.stream(&[], false);
    let mut text = String::new();
    for &id in &ids[..ids.len() - 1] {
        text += &stream.push(id).unwrap();
    }
    assert_eq!(text, "a");
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn bytes_that_never_become_text_do_not_pile_up() {
    let tokenizer = small("llama_mixed");
    // A lone continuation byte, over and over.
    let id = tokenizer.token_id("\u{0142}").unwrap();
    let mut stream = tokenizer.stream(&[], false);
    let given: usize = (0..200).map(|_| stream.push(id).unwrap().chars().count()).sum();
    assert!(given > 150, "{given}");
}

#[test]
fn a_stream_goes_on_from_its_context() {
    let tokenizer = small("sentencepiece");
    let ids = tokenizer.encode("The reference layer lends", false).unwrap();
    let (context, rest) = ids.split_at(3);
    let mut stream = tokenizer.stream(context, true);
    let mut text = tokenizer.decode(context).unwrap();
    rest.iter().for_each(|&id| text += &stream.push(id).unwrap());
    // Without the context the first piece would lose its space.
    assert_eq!(text + &stream.finish().unwrap(), "The reference layer lends");
}

#[test]
fn special_tokens_can_be_left_out_of_a_stream() {
    let tokenizer = small("qwen2");
    let ids = tokenizer.encode("a<|turn|>b<|end|>", false).unwrap();
    let mut stream = tokenizer.stream(&[], true);
    let text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(text + &stream.finish().unwrap(), "ab");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_text_survives_and_streams(text in "\\PC{0,40}|[a-z \\n]{0,60}|[\u{1F300}-\u{1FAFF}é一-龥 ]{0,20}") {
        thread_local!(static BOTH: [Tokenizer; 2] = [small("llama_mixed"), small("sentencepiece")]);
        BOTH.with(|both| {
            for tokenizer in both.iter().filter(|_| !text.contains('\u{2581}')) {
                let ids = tokenizer.encode(&text, false).unwrap();
                // These vocabularies have every byte, so nothing is lost.
                assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_str());
                streams_like_whole(tokenizer, &ids);
            }
        });
    }

    #[test]
    fn any_ids_decode_and_stream(ids in prop::collection::vec(0u32..400, 0..24)) {
        thread_local!(static ONE: Tokenizer = small("llama_mixed"));
        ONE.with(|tokenizer| streams_like_whole(tokenizer, &ids));
    }
}

#[test]
fn a_folder_without_a_tokenizer_says_so() {
    let dir = tempfile::tempdir().unwrap();
    complaint(Tokenizer::load(dir.path()), dir.path().to_str().unwrap(), &["no `tokenizer.json`"]);
    fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
    complaint(Tokenizer::load(dir.path()), dir.path().to_str().unwrap(), &["SentencePiece"]);
}

#[test]
fn broken_tokenizer_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let gguf = Gguf::open(golden("gguf/qwen2/model.gguf")).unwrap();
    let sound = tokenizer_json(&gguf).unwrap();
    for bad in ["", "{", "[]", "{\"version\": \"1.0\"}", "\u{0}\u{1}"] {
        put("tokenizer.json", bad);
        complaint(Tokenizer::load(dir.path()), "tokenizer.json", &["tokenizer"]);
    }
    let mut merges = sound.clone();
    merges["model"]["merges"][0] = serde_json::json!(["no such", "tokens"]);
    put("tokenizer.json", &merges.to_string());
    complaint(Tokenizer::load(dir.path()), "tokenizer.json", &[]);

    put("tokenizer.json", &sound.to_string());
    put("tokenizer_config.json", "{ not json");
    complaint(Tokenizer::load(dir.path()), "tokenizer_config.json", &[]);
    put("tokenizer_config.json", r#"{"eos_token": "<|nowhere|>"}"#);
    complaint(Tokenizer::load(dir.path()), "tokenizer.json", &["eos_token", "<|nowhere|>"]);
}

#[test]
fn special_tokens_templates_and_ends_are_found_wherever_they_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let gguf = Gguf::open(golden("gguf/qwen2/model.gguf")).unwrap();
    put("tokenizer.json", &tokenizer_json(&gguf).unwrap().to_string());
    put(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "<|end|>", "lstrip": false},
            "chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]}"#,
    );
    put("config.json", r#"{"eos_token_id": 7}"#);
    put("generation_config.json", r#"{"eos_token_id": [8, 7]}"#);
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let end = tokenizer.token_id("<|end|>").unwrap();
    assert_eq!(tokenizer.eos_ids(), [end, 8, 7]);
    assert!(tokenizer.is_eos(8) && !tokenizer.is_eos(9));
    assert_eq!(tokenizer.chat_template(), Some("D"));
    put("chat_template.jinja", "J");
    assert_eq!(Tokenizer::load(dir.path()).unwrap().chat_template(), Some("J"));
}
