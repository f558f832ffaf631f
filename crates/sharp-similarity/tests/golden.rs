//! Every measure against NumPy's, on a small model whose activations come from transformers.

use std::path::PathBuf;

use serde_json::Value;
use sharp_infer::Model;
use sharp_progress::Silent;
use sharp_similarity::{Error, Metric, Options, Report, analyze};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/similarity")
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder().join("expected.json")).unwrap()).unwrap()
}

fn sequences(expected: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(expected["sequences"].clone()).unwrap()
}

fn model(threads: usize) -> Model {
    Model::open(folder(), &sharp_infer::Options { threads, ..Default::default() }).unwrap()
}

fn options(expected: &Value) -> Options {
    Options {
        window: expected["window"].as_u64().unwrap() as usize,
        delta_nll_tokens: expected["delta_tokens"].as_u64().unwrap() as usize,
        model: Some("<golden> & co".into()),
        screen: false,
        ..Options::default()
    }
}

fn near(what: &str, found: f64, expected: &Value, relative: f64, absolute: f64) {
    let expected = expected.as_f64().unwrap_or_else(|| panic!("{what}: not expected"));
    let allowed = absolute + relative * expected.abs();
    assert!((found - expected).abs() <= allowed, "{what}: found {found}, expected {expected}");
}

#[test]
fn every_measure_agrees_with_numpy() {
    let expected = expected();
    let report = analyze(&model(2), &sequences(&expected), &options(&expected), &Silent).unwrap();
    assert_eq!((report.tokens, report.sequences, report.window), (340, 3, 2));
    near("nll", report.nll.unwrap(), &expected["nll"], 1e-5, 0.0);
    for (layer, e) in report.layers.iter().zip(expected["layers"].as_array().unwrap()) {
        let name = |what| format!("layer {}: {what}", layer.layer);
        near(&name("block influence"), layer.block_influence, &e["block_influence"], 1e-4, 1e-6);
        near(&name("MLP share"), layer.mlp_share, &e["mlp_share"], 1e-4, 0.0);
        near(&name("RMS"), layer.mlp_output_rms, &e["mlp_output_rms"], 1e-4, 0.0);
        near(&name("removal"), layer.removal_nll.unwrap(), &e["removal_nll"], 1e-4, 1e-5);
    }
    let pairs = expected["pairs"].as_array().unwrap();
    assert_eq!(report.pairs.len(), pairs.len());
    for (pair, e) in report.pairs.iter().zip(pairs) {
        assert_eq!(
            (Some(pair.target as u64), Some(pair.reference as u64)),
            (e["target"].as_u64(), e["reference"].as_u64())
        );
        for metric in Metric::ALL {
            let name = format!("{} <- {}: {metric}", pair.target, pair.reference);
            // The median comes from a histogram; it says half a percent.
            let relative = if metric == Metric::TokenError { 0.012 } else { 1e-4 };
            near(&name, metric.of(pair).unwrap(), &e[metric.name()], relative, 1e-5);
        }
        near("stderr", pair.delta_nll_stderr.unwrap(), &e["delta_nll_stderr"], 1e-3, 1e-5);
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let expected = expected();
    let run =
        |threads| analyze(&model(threads), &sequences(&expected), &options(&expected), &Silent).unwrap();
    assert_eq!(run(1).to_json().unwrap(), run(3).to_json().unwrap());
}

#[test]
fn the_page_escapes_and_holds_every_map() {
    let expected = expected();
    let report = analyze(&model(2), &sequences(&expected), &options(&expected), &Silent).unwrap();
    let page = sharp_similarity::html_page(&report);
    assert!(page.contains("&lt;golden&gt; &amp; co") && !page.contains("<golden>"));
    assert_eq!(page.matches("<svg").count(), Metric::ALL.len());
    assert!(!page.contains("NaN") && !page.contains("http://www.w3.org/1999") && !page.contains("<script"));
    let again = Report::from_json(&report.to_json().unwrap()).unwrap();
    assert_eq!(again, report);
    assert_eq!(report.costs(None).unwrap().metric, Metric::PredictedNll);
    assert_eq!(report.costs(Some(Metric::DeltaNll)).unwrap().importance.len(), 5);
    assert_eq!(report.costs(None).unwrap().importance.len(), 5);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let expected = expected();
    let model = model(1);
    let try_with = |sequences: &[Vec<u32>], window| {
        analyze(&model, sequences, &Options { window, ..Options::default() }, &Silent)
    };
    assert!(matches!(try_with(&[vec![1]], 1), Err(Error::NoText(_))));
    assert!(matches!(try_with(&[], 1), Err(Error::NoText(_))));
    assert!(matches!(try_with(&sequences(&expected), 0), Err(Error::InvalidOption { .. })));
    let error = try_with(&[vec![1, 50]], 1).unwrap_err().to_string();
    assert!(error.contains("token 50 at position 1"), "{error}");
    // A window wider than the model is all of it.
    assert_eq!(try_with(&[vec![1, 2, 3, 4, 5]], 99).unwrap().pairs.len(), 20);
    let report = try_with(&[vec![1, 2, 3]], 1).unwrap();
    assert_eq!((report.pairs[0].cka, report.pairs[0].delta_nll), (None, None));
    assert_eq!(report.costs(None).unwrap().metric, Metric::ResidualError);
    assert!(report.costs(Some(Metric::DeltaNll)).unwrap_err().to_string().contains("no delta_nll"));
    assert!(
        "relativ_error".parse::<Metric>().unwrap_err().to_string().contains("did you mean `relative_error`")
    );
    let mut broken = report.clone();
    broken.layers.pop();
    assert!(
        Report::from_json(&broken.to_json().unwrap())
            .unwrap_err()
            .to_string()
            .contains("4 layers listed of 5")
    );
    let mut broken = report;
    broken.pairs[0].reference = 7;
    assert!(Report::from_json(&broken.to_json().unwrap()).is_err());
}

#[test]
fn screening_spends_tokens_on_the_better_half() {
    let sequences: Vec<Vec<u32>> =
        (0..4).map(|s| (0..200).map(|i| (i * 31 + s * 7) % 50).collect()).collect();
    let run = |screen| {
        let options = Options { window: 1, delta_nll_tokens: 800, screen, ..Options::default() };
        analyze(&model(2), &sequences, &options, &Silent).unwrap()
    };
    let (all, screened) = (run(false), run(true));
    assert_eq!(all.nll, screened.nll);
    let same = all.pairs.iter().zip(&screened.pairs).filter(|(a, s)| a.delta_nll == s.delta_nll).count();
    // Of eight pairs the better four reach the second round, the better two of those the last.
    assert_eq!(same, 2);
    assert!(screened.pairs.iter().all(|p| p.delta_nll.is_some()));
}
