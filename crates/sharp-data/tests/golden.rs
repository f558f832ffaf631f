//! Against transformers' chat templates, Hugging Face's tokenizers and plain Python:
//! `tests/golden/data/gen.py`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sharp_data::{Chat, Document, PackOptions, encode_pair, pack, shuffle, windows};
use sharp_model::tokenizer::Tokenizer;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data")
}

fn cases() -> Value {
    let path = folder().join("cases.json");
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

fn numbers<T: TryFrom<u64>>(value: &Value) -> Vec<T>
where
    T::Error: std::fmt::Debug,
{
    value.as_array().unwrap().iter().map(|n| T::try_from(n.as_u64().unwrap()).unwrap()).collect()
}

fn chat(cases: &Value, name: &str) -> Chat {
    let tokens: Map<String, Value> = cases["tokens"].as_object().unwrap().clone();
    Chat::new(cases["templates"][name].as_str().unwrap(), tokens).unwrap().with_now(cases["now"].as_i64())
}

#[test]
fn chats_read_as_transformers_writes_them() {
    let cases = cases();
    for case in cases["chat"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let more = case["more"].as_object().unwrap();
        let got =
            chat(&cases, name).render_json(&case["messages"], case["generate"].as_bool().unwrap(), more);
        match case.get("error") {
            Some(error) => {
                let got = got.unwrap_err().to_string();
                assert!(got.ends_with(error.as_str().unwrap()), "{name}: {got}");
            }
            None => assert_eq!(got.unwrap(), case["want"].as_str().unwrap(), "{name}"),
        }
    }
}

#[test]
fn conversations_become_documents() {
    let cases = cases();
    let talk: Value = serde_json::json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"},
    ]);
    let doc = chat(&cases, "plain").document(&talk).unwrap();
    assert_eq!(
        doc.prompt,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(doc.completion, "b<|im_end|>\n");
    assert_eq!(doc.turns.len(), 1);
    assert_eq!(doc.turns[0].prompt, "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(doc.turns[0].completion, "d<|im_end|>\n");
    assert!(doc.chat);

    // A template that writes an answer differently once another follows: only the last is counted.
    let rewriting = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and not loop.last %}..{% else %}\
                     {{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let doc = Chat::new(rewriting, Map::new()).unwrap().document(&talk).unwrap();
    assert_eq!(
        (doc.prompt.as_str(), doc.completion.as_str()),
        ("[user]a[assistant]..[user]c[assistant]", "d")
    );
    assert!(doc.turns.is_empty());

    // An answer that comes first has nothing before it.
    let first = serde_json::json!([{"role": "assistant", "content": "b"}]);
    let doc = chat(&cases, "plain").document(&first).unwrap();
    assert_eq!(doc.prompt, "");
    assert!(doc.completion.ends_with("assistant\nb<|im_end|>\n"));

    for (bad, what) in [
        (serde_json::json!([{"role": "user", "content": "a"}]), "assistant"),
        (serde_json::json!([]), "empty"),
        (serde_json::json!("hello"), "a string"),
        (serde_json::json!([{"content": "a"}]), "role"),
    ] {
        let error = chat(&cases, "plain").document(&bad).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn hostile_templates_end() {
    assert!(Chat::new("{% for x in %}", Map::new()).unwrap_err().to_string().contains("line 1"));
    let endless = "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}x{% endfor %}\
                   {% endfor %}{% endfor %}";
    assert!(Chat::new(endless, Map::new()).unwrap().render(&[], false).is_err());
    // An unclosed tag is the template engine's to complain about.
    assert!(Chat::new("{% generation", Map::new()).is_err());
}

#[test]
fn pairs_split_as_lm_evaluation_harness_does() {
    let cases = cases();
    let tokenizer = Tokenizer::load(folder()).unwrap();
    for case in cases["pairs"].as_array().unwrap() {
        let (context, continuation) =
            (case["context"].as_str().unwrap(), case["continuation"].as_str().unwrap());
        let (head, tail) = encode_pair(&tokenizer, context, continuation).unwrap();
        let want: (Vec<u32>, Vec<u32>) = (numbers(&case["want"][0]), numbers(&case["want"][1]));
        if want.1.is_empty() {
            // The harness would score nothing; here the continuation alone is scored.
            assert_eq!(head, tokenizer.encode(context, false).unwrap());
            assert_eq!(tail, tokenizer.encode(continuation, false).unwrap());
        } else {
            assert_eq!(head, want.0, "{context:?} {continuation:?}");
            assert_eq!(tail, want.1, "{context:?} {continuation:?}");
        }
    }
}

#[test]
fn order_follows_from_the_seed() {
    for case in cases()["shuffle"].as_array().unwrap() {
        let mut items: Vec<u64> = (0..case["n"].as_u64().unwrap()).collect();
        shuffle(&mut items, case["seed"].as_u64().unwrap());
        assert_eq!(items, numbers::<u64>(&case["want"]));
    }
}

#[test]
fn windows_are_those_of_the_guide() {
    for case in cases()["windows"].as_array().unwrap() {
        let n = |name: &str| case[name].as_u64().unwrap() as usize;
        let got = windows(n("total"), n("len"), n("stride"), n("begin")).unwrap();
        let want = case["want"].as_array().unwrap();
        assert_eq!(got.len(), want.len(), "{case}");
        for (got, want) in got.iter().zip(want) {
            assert_eq!(got.tokens.start as u64, want[0].as_u64().unwrap());
            assert_eq!(got.tokens.end as u64, want[1].as_u64().unwrap());
            assert_eq!(got.scored.clone().collect::<Vec<_>>(), numbers::<usize>(&want[2]), "{case}");
        }
    }
    assert!(windows(10, 4, 0, 0).is_err() && windows(10, 4, 5, 0).is_err() && windows(10, 1, 1, 0).is_err());
}

#[test]
fn packed_rows_and_masks() {
    let tokenizer = Tokenizer::load(folder()).unwrap();
    for case in cases()["packed"].as_array().unwrap() {
        let docs: Vec<Document> = case["docs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| Document::pair(d[0].as_str().unwrap(), d[1].as_str().unwrap()))
            .collect();
        let n = case["seq_len"].as_u64().unwrap() as usize;
        let (begin, eos) = (numbers(&case["begin"]), case["eos"].as_u64().map(|n| n as u32));
        let options = PackOptions::new(n).with_ends(begin, eos);
        let got = pack(&docs, &tokenizer, &options).unwrap();
        let want: Vec<u32> = numbers(&case["tokens"]);
        assert_eq!(got.tokens, want);
        let mask: Vec<bool> = case["mask"].as_array().unwrap().iter().map(|b| b.as_bool().unwrap()).collect();
        assert_eq!(got.mask, mask);

        // Filled up, the last row holds the rest of the same stream.
        let padded = pack(&docs, &tokenizer, &options.clone().padded()).unwrap();
        assert_eq!(padded.rows(), got.rows() + 1);
        assert_eq!(padded.tokens[..want.len()], want);
        assert!(!padded.mask.last().unwrap() && padded.tokens.last() == Some(&eos.unwrap()));
        // A budget takes the first rows, though less of the text is tokenised.
        let part = pack(&docs, &tokenizer, &options.with_budget(Some(2 * n - 1))).unwrap();
        assert_eq!(part.tokens, want[..2 * n]);
    }
}
