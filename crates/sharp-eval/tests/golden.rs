//! Against separate float64 passes in transformers: `tests/golden/eval/gen.py`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sharp_data::Task;
use sharp_eval::{Text, Windows, compare, perplexity, score_task, text_tokens};
use sharp_infer::{Model, Options};
use sharp_model::tokenizer::Tokenizer;
use sharp_progress::Silent;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/eval")
}

struct Golden {
    want: Value,
    tokenizer: Tokenizer,
    models: [Model; 2],
}

impl Golden {
    fn new() -> Self {
        let want: Value =
            serde_json::from_str(&std::fs::read_to_string(folder().join("want.json")).unwrap()).unwrap();
        let first =
            Model::open(folder().join("model"), &Options { threads: 2, ..Options::default() }).unwrap();
        let map = |i: usize| want["mlp_of"][i].as_u64().unwrap() as usize;
        let second = first.with_mlp_map(map).unwrap();
        let tokenizer = Tokenizer::load(folder().join("model")).unwrap();
        Golden { tokenizer, models: [first, second], want }
    }

    /// Opened once more from the same files: nothing is shared by address, everything by content.
    fn apart(&self) -> Model {
        let model =
            Model::open(folder().join("model"), &Options { threads: 1, ..Options::default() }).unwrap();
        model.with_mlp_map(|i| self.want["mlp_of"][i].as_u64().unwrap() as usize).unwrap()
    }

    fn tokens(&self) -> Vec<u32> {
        self.want["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
    }

    fn task(&self) -> Task {
        Task::load(&folder().join("requests.jsonl"), "own", None).unwrap()
    }
}

#[track_caller]
fn close(what: &str, got: f64, want: &Value, tolerance: f64) {
    let want = want.as_f64().unwrap();
    assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{what}: {got}, expected {want}");
}

#[test]
fn texts() {
    let golden = Golden::new();
    let text = std::fs::read_to_string(folder().join("text.txt")).unwrap();
    let tokens = text_tokens(&golden.tokenizer, &text, None).unwrap();
    assert_eq!(tokens, golden.tokens());
    let [first, second] = &golden.models;
    // Sharing work is not seen in the results, whether the layers are the same by address or by content.
    for second in [second, &golden.apart()] {
        for case in golden.want["texts"].as_array().unwrap() {
            let n = |name: &str| case[name].as_u64().unwrap() as usize;
            let cut = Windows { window: n("window"), stride: n("stride") };
            let got = compare(&[first, second], &tokens, cut, &Silent).unwrap();
            for (got, want) in got.iter().zip(case["want"].as_array().unwrap()) {
                assert_eq!(got.tokens as u64, want["tokens"].as_u64().unwrap(), "{cut:?}");
                for (name, value) in [
                    ("mean_loss", got.mean_loss),
                    ("loss_stderr", got.loss_stderr),
                    ("perplexity", got.perplexity),
                    ("delta_loss", got.delta_loss),
                    ("delta_stderr", got.delta_stderr),
                    ("kl", got.kl),
                    ("kl_stderr", got.kl_stderr),
                    ("top1_agreement", got.top1_agreement),
                ] {
                    close(name, value, &want[name], 2e-5);
                }
            }
            assert_eq!(perplexity(first, &tokens, cut, &Silent).unwrap(), got[0]);
        }
    }
}

#[test]
fn questions() {
    let golden = Golden::new();
    let task = golden.task();
    let [first, second] = &golden.models;
    let apart = golden.apart();
    let got = score_task(&[first, second, &apart], &golden.tokenizer, &task, &Silent).unwrap();
    assert_eq!(got[1], got[2]);
    for (got, want) in got.iter().zip(golden.want["task"].as_array().unwrap()) {
        for (question, want) in got.log_likelihoods.iter().zip(want["log_likelihoods"].as_array().unwrap()) {
            assert_eq!(question.len(), want.as_array().unwrap().len());
            for (got, want) in question.iter().zip(want.as_array().unwrap()) {
                close("log likelihood", *got, want, 2e-5);
            }
        }
        for (name, value) in [
            ("acc,none", got.acc),
            ("acc_stderr,none", got.acc_stderr),
            ("acc_norm,none", got.acc_norm),
            ("acc_norm_stderr,none", got.acc_norm_stderr),
            ("acc_bytes,none", got.acc_bytes),
            ("acc_bytes_stderr,none", got.acc_bytes_stderr),
        ] {
            close(name, value, &want[name], 1e-12);
        }
        assert_eq!(got.n, task.questions.len());
    }
    assert_eq!(got[0].same_answer, 1.0);
    assert!(got[1].same_answer < 1.0);
}

/// One question at a time gives what all in one batch give, to rounding.
#[test]
fn batches_do_not_matter() {
    let golden = Golden::new();
    let task = golden.task();
    let all = score_task(&[&golden.models[0]], &golden.tokenizer, &task, &Silent).unwrap();
    for (question, want) in task.questions.iter().zip(&all[0].log_likelihoods) {
        let one = Task { name: task.name.clone(), questions: vec![question.clone()] };
        let got = score_task(&[&golden.models[0]], &golden.tokenizer, &one, &Silent).unwrap();
        for (got, want) in got[0].log_likelihoods[0].iter().zip(want) {
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
    }
}

#[test]
fn too_long_a_context_loses_its_beginning() {
    let golden = Golden::new();
    let mut task = golden.task();
    task.questions.truncate(1);
    let long = "The cat sat on the mat. ".repeat(200);
    for choice in &mut task.questions[0].choices {
        choice.context = format!("{long}{}", choice.context);
    }
    let a = score_task(&[&golden.models[0]], &golden.tokenizer, &task, &Silent).unwrap();
    for choice in &mut task.questions[0].choices {
        choice.context = format!("one two three{}", choice.context);
    }
    let b = score_task(&[&golden.models[0]], &golden.tokenizer, &task, &Silent).unwrap();
    assert_eq!(a, b);
}

#[test]
fn results_are_the_same_bytes_every_time() {
    let golden = Golden::new();
    let [first, second] = &golden.models;
    let texts = [Text { name: "own".into(), tokens: golden.tokens() }];
    let measure = || {
        let models = [("original", first), ("direct", second)];
        let cut = Windows { window: 40, stride: 24 };
        sharp_eval::measure(&models, &golden.tokenizer, &texts, cut, &[golden.task()], &Silent).unwrap()
    };
    let results = measure();
    let json = results.to_json().unwrap();
    assert_eq!(json, measure().to_json().unwrap());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    sharp_eval::save(&results, &path).unwrap();
    let loaded = sharp_eval::load(&path).unwrap();
    assert_eq!(loaded.to_json().unwrap(), json);
    std::fs::write(&path, "{}").unwrap();
    let said = sharp_eval::load(&path).unwrap_err().to_string();
    assert!(said.contains("results.json") && said.contains("rows"), "{said}");

    // The contract of the file.
    let value: Value = serde_json::from_str(&json).unwrap();
    let row = &value["rows"][1];
    assert_eq!(row["name"], "direct");
    assert_eq!(row["mlp_parameters"], 3 * 3 * 32 * 72);
    for key in ["perplexity", "mean_loss", "kl", "top1_agreement"] {
        assert!(row[key]["own"].is_f64(), "{key}");
    }
    for key in ["acc,none", "acc_stderr,none", "acc_norm,none", "acc_norm_stderr,none"] {
        assert!(row["tasks"]["own"][key].is_f64(), "{key}");
    }
    assert_eq!(row["tasks"]["own"]["n"], 9);
    assert!(value["rows"][0]["kl"].as_object().unwrap().is_empty());
    assert_eq!(value["settings"]["compared_with"], "original");
}

#[test]
fn long_texts_are_tokenised_only_as_far_as_needed() {
    let golden = Golden::new();
    let text = "The cat sat on the mat, and\nthe dog did not: one two three.\n".repeat(300);
    let all = text_tokens(&golden.tokenizer, &text, None).unwrap();
    for limit in [0, 1, 7, 100, 1000, all.len() - 1, all.len(), all.len() + 5] {
        let got = text_tokens(&golden.tokenizer, &text, Some(limit)).unwrap();
        assert_eq!(got, all[..limit.min(all.len())], "{limit}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let golden = Golden::new();
    let [first, _] = &golden.models;
    let cut = Windows::default();
    assert!(compare(&[], &[1, 2, 3], cut, &Silent).is_err());
    assert!(compare(&[first], &[1], cut, &Silent).unwrap_err().to_string().contains("1 tokens"));
    assert!(compare(&[first], &[1, 2, 3], Windows { window: 8, stride: 9 }, &Silent).is_err());
    let said = compare(&[first], &[1, 999, 3], cut, &Silent).unwrap_err().to_string();
    assert!(said.contains("token 999"), "{said}");

    let config = sharp_model::ModelConfig::llama(64, 160, 4, 4, 2, 300).unwrap();
    let source = sharp_infer::Synthetic::in_memory(&config, None, 1).unwrap();
    let other = Model::from_source(&source, &Options::default()).unwrap();
    let said = compare(&[first, &other], &[1, 2, 3], cut, &Silent).unwrap_err().to_string();
    assert!(said.contains("300") && said.contains("360"), "{said}");
    let text = Text { name: "a".into(), tokens: vec![1, 2] };
    let texts = [text.clone(), text];
    let said =
        sharp_eval::measure(&[("m", first)], &golden.tokenizer, &texts, cut, &[], &Silent).unwrap_err();
    assert!(said.to_string().contains("two texts"), "{said}");
}
