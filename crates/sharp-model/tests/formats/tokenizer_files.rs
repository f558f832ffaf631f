//! Tokenizer files as people have them, read as transformers reads them
//! (`tests/golden/tokenizer_files/gen.py`).

use std::fs;

use serde_json::Value;
use sharp_model::tokenizer::Tokenizer;

use crate::raw::complaint;
use crate::{golden, json};

#[test]
fn files_give_the_tokens_that_transformers_gives() {
    let expected = json(golden("tokenizer_files/expected.json"));
    assert_eq!(expected.as_object().unwrap().len(), 7);
    for (case, rows) in expected.as_object().unwrap() {
        let tokenizer = Tokenizer::load(golden("tokenizer_files").join(case)).unwrap();
        // What a packed file keeps of it is the same tokenizer.
        let json = tokenizer.to_json().unwrap();
        let kept =
            Tokenizer::from_parts("x".as_ref(), json.as_bytes(), tokenizer.config().clone(), &[]).unwrap();
        for row in rows.as_array().unwrap() {
            let text = row[0].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(row[1].clone()).unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{case}: {text}");
            assert_eq!(tokenizer.encode_batch(&[text, "a"], true).unwrap()[0], ids, "{case}: {text}");
            assert_eq!(kept.encode(text, true).unwrap(), ids, "{case}: {text}");
        }
    }
}

#[test]
fn added_tokens_keep_ids_with_gaps_between_them() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden("tokenizer_files/added_tokens_json").join(file), dir.path().join(file)).unwrap();
    }
    let added = dir.path().join("added_tokens.json");
    fs::write(&added, r#"{"<|turn|>": 31, "<|call|>": 40}"#).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let ids = tokenizer.encode("a<|call|>b<|turn|>", false).unwrap();
    assert_eq!(ids, [2, 40, 3, 31]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a<|call|>b<|turn|>");
    // What a packed file keeps of it is the same tokenizer.
    let json = tokenizer.to_json().unwrap();
    let kept = Tokenizer::from_parts("x".as_ref(), json.as_bytes(), tokenizer.config().clone(), &[]).unwrap();
    assert_eq!(kept.encode("a<|call|>b<|turn|>", false).unwrap(), ids);
    // An id that another token has.
    fs::write(&added, r#"{"<|call|>": 2}"#).unwrap();
    let words = ["<|call|>", "id 2", "\"a\" has", "31", "added_tokens.json", "save_pretrained"];
    complaint(Tokenizer::load(dir.path()), "tokenizer.json", &words);
    // One that the file has already keeps its id there.
    fs::write(&added, r#"{"a": 2, "<|end|>": 77}"#).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.token_id("<|end|>"), tokenizer.vocab_size()), (Some(0), 31));
}

#[test]
fn a_gap_within_the_tokenizers_own_file_is_kept_too() {
    let mut file = json(golden("tokenizer_files/added_tokens_json/tokenizer.json"));
    let token = |id: u32, text: &str| {
        serde_json::json!({"id": id, "content": text, "special": true, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false})
    };
    let list = file["added_tokens"].as_array_mut().unwrap();
    list.extend([token(31, "<|turn|>"), token(35, "<|call|>")]);
    let load = |file: &Value| {
        Tokenizer::from_parts("x".as_ref(), file.to_string().as_bytes(), serde_json::Map::new(), &[])
    };
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.encode("<|call|><|turn|>", false).unwrap(), [35, 31]);
    assert_eq!(tokenizer.special_text(35), Some("<|call|>"));
    file["added_tokens"].as_array_mut().unwrap().push(token(4, "<|late|>"));
    complaint(load(&file), "x", &["<|late|>", "id 4", "\"c\" has"]);
}

#[test]
fn a_blank_template_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let from = golden("tokenizer_files/trained");
    fs::copy(from.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    for (template, jinja, found) in [
        (Value::Null, None, None),
        ("".into(), None, None),
        (" \n".into(), None, None),
        ("T".into(), Some(" "), Some("T")),
    ] {
        let config = serde_json::json!({ "chat_template": template });
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        if let Some(jinja) = jinja {
            fs::write(dir.path().join("chat_template.jinja"), jinja).unwrap();
        }
        assert_eq!(Tokenizer::load(dir.path()).unwrap().chat_template(), found, "{config}");
    }
}
