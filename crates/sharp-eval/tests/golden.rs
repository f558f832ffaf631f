//! Against separate float64 passes in transformers: `tests/golden/eval/gen.py`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sharp_data::Task;
use sharp_eval::{Bootstrap, LossDifference, Text, Windows, compare, perplexity, score_task};
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

fn named(name: &str, tokens: &[u32]) -> Text {
    Text { name: name.into(), tokens: tokens.to_vec(), ..Text::default() }
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
    let text = Text::new("own", &golden.tokenizer, &[text], None).unwrap();
    assert_eq!(text.tokens, golden.tokens());
    let [first, second] = &golden.models;
    // Sharing work is not seen in the results, whether the layers are the same by address or by content.
    for second in [second, &golden.apart()] {
        for case in golden.want["texts"].as_array().unwrap() {
            let n = |name: &str| case[name].as_u64().unwrap() as usize;
            let cut = Windows { window: n("window"), stride: n("stride") };
            let begin = serde_json::from_value(case["begin"].clone()).unwrap();
            let text = Text { begin, ..text.clone() };
            let got = compare(&[first, second], &text, cut, &Silent).unwrap();
            for (got, want) in got.iter().zip(case["want"].as_array().unwrap()) {
                assert_eq!(got.tokens as u64, want["tokens"].as_u64().unwrap(), "{cut:?}");
                for (name, value) in [
                    ("mean_loss", got.mean_loss),
                    ("perplexity", got.perplexity),
                    ("delta_loss", got.delta_loss),
                    ("kl", got.kl),
                    ("top1_agreement", got.top1_agreement),
                ] {
                    close(name, value, &want[name], 2e-5);
                }
            }
            assert_eq!(perplexity(first, &text, cut, &Silent).unwrap(), got[0]);
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
    let texts = [Text { documents: vec![0, 40, 90], ..named("own", &golden.tokens()) }];
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
    assert_eq!(value["settings"]["units"]["own"], serde_json::json!({"unit": "document", "count": 3}));
    let over = results.rows[1].differences["own"]["original"];
    assert!((over.mean - results.rows[1].delta_loss["own"]).abs() < 1e-12);
    assert!(over.low <= over.mean && over.mean <= over.high && over.low < over.high, "{over:?}");
    assert!(results.rows[0].differences.is_empty() && results.rows[0].loss_stderr["own"] > 0.0);
}

/// Of two documents a quarter of the draws is one of them twice, so the interval ends at their own
/// differences.
#[test]
fn each_token_counts_for_its_own_document() {
    let golden = Golden::new();
    let [first, second] = &golden.models;
    let tokens = golden.tokens()[..60].to_vec();
    let delta = |tokens: &[u32]| {
        compare(&[first, second], &named("own", tokens), Windows::default(), &Silent).unwrap()[1]
    };
    let (one, both) = (delta(&tokens[..30]), delta(&tokens));
    let sum = |score: sharp_eval::TextScore| score.delta_loss * score.tokens as f64;
    let other = (sum(both) - sum(one)) / (both.tokens - one.tokens) as f64;

    let texts = [Text { documents: vec![0, 30], ..named("own", &tokens) }];
    let models = [("original", first), ("direct", second)];
    let results =
        sharp_eval::measure(&models, &golden.tokenizer, &texts, Windows::default(), &[], &Silent).unwrap();
    let over = results.rows[1].differences["own"]["original"];
    let [low, high] = [one.delta_loss.min(other), one.delta_loss.max(other)];
    assert!(
        (over.low - low).abs() < 1e-5 && (over.high - high).abs() < 1e-5,
        "{over:?}, not {low} to {high}"
    );
}

/// Against numpy, which draws with a generator of its own: `tests/golden/bootstrap/gen.py`.
#[test]
fn the_bootstrap_is_that_of_numpy() {
    let path = folder().with_file_name("bootstrap").join("want.json");
    let want: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let tokens: Vec<usize> = serde_json::from_value(want["tokens"].clone()).unwrap();
    let losses: Vec<Vec<f64>> = serde_json::from_value(want["losses"].clone()).unwrap();
    let quantities: Vec<&[f64]> = losses.iter().map(Vec::as_slice).collect();
    let bootstrap = Bootstrap::new(&tokens, &quantities, 20_000).unwrap();
    for (i, stderr) in want["stderr"].as_array().unwrap().iter().enumerate() {
        let (got, want) = (bootstrap.stderr(i, None), stderr.as_f64().unwrap());
        assert!((got / want - 1.0).abs() < 0.03, "quantity {i}: {got}, numpy {want}");
    }
    for (i, j) in [(1, 0), (2, 0), (2, 1)] {
        let pair = &want["pairs"][format!("{i}-{j}")];
        let [stderr, low, high] = ["stderr", "low", "high"].map(|key| pair[key].as_f64().unwrap());
        let got = bootstrap.stderr(i, Some(j));
        assert!((got / stderr - 1.0).abs() < 0.03, "{i} over {j}: {got}, numpy {stderr}");
        let got: LossDifference = bootstrap.difference(i, j, 0.0);
        let apart = (got.low - low).abs().max((got.high - high).abs());
        assert!(apart < 0.1 * stderr, "{i} over {j}: {got}, numpy [{low}, {high}]");
    }
}

#[test]
fn documents_begin_where_their_first_token_is() {
    let golden = Golden::new();
    let documents = ["The cat sat on the mat.", "", "The dog did not.", "one two three"].map(str::to_owned);
    let text = Text::new("own", &golden.tokenizer, &documents, None).unwrap();
    let whole = documents.join("\n\n");
    assert_eq!(text.tokens, Text::new("own", &golden.tokenizer, &[whole], None).unwrap().tokens);
    assert_eq!(text.documents.first(), Some(&0));
    let of = |from: usize, to: usize| golden.tokenizer.decode(&text.tokens[from..to]).unwrap();
    let [.., dog, one] = text.documents[..] else { panic!("{:?}", text.documents) };
    assert!(
        of(0, dog).starts_with("The cat") && of(dog, one).trim_start().starts_with("The dog"),
        "{text:?}"
    );
    assert!(of(one, text.tokens.len()).trim_start().starts_with("one two"), "{text:?}");
    let cut = Text::new("own", &golden.tokenizer, &documents, Some(dog)).unwrap();
    assert!(cut.documents.iter().all(|&at| at < dog) && cut.tokens.len() == dog);
}

#[test]
fn long_texts_are_tokenised_only_as_far_as_needed() {
    let golden = Golden::new();
    let text = "The cat sat on the mat, and\nthe dog did not: one two three.\n".repeat(300);
    let tokens =
        |limit| Text::new("own", &golden.tokenizer, std::slice::from_ref(&text), limit).unwrap().tokens;
    let all = tokens(None);
    for limit in [0, 1, 7, 100, 1000, all.len() - 1, all.len(), all.len() + 5] {
        let got = tokens(Some(limit));
        assert_eq!(got, all[..limit.min(all.len())], "{limit}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let golden = Golden::new();
    let [first, _] = &golden.models;
    let cut = Windows::default();
    assert!(compare(&[], &named("a", &[1, 2, 3]), cut, &Silent).is_err());
    assert!(compare(&[first], &named("a", &[1]), cut, &Silent).unwrap_err().to_string().contains("1 tokens"));
    assert!(compare(&[first], &named("a", &[1, 2, 3]), Windows { window: 8, stride: 9 }, &Silent).is_err());
    let said = compare(&[first], &named("a", &[1, 999, 3]), cut, &Silent).unwrap_err().to_string();
    assert!(said.contains("token 999"), "{said}");

    let config = sharp_model::ModelConfig::llama(64, 160, 4, 4, 2, 300).unwrap();
    let source = sharp_infer::Synthetic::in_memory(&config, None, 1).unwrap();
    let other = Model::from_source(&source, &Options::default()).unwrap();
    let said = compare(&[first, &other], &named("a", &[1, 2, 3]), cut, &Silent).unwrap_err().to_string();
    assert!(said.contains("300") && said.contains("360"), "{said}");
    let text = named("a", &[1, 2]);
    let texts = [text.clone(), text];
    let said =
        sharp_eval::measure(&[("m", first)], &golden.tokenizer, &texts, cut, &[], &Silent).unwrap_err();
    assert!(said.to_string().contains("two texts"), "{said}");
}
