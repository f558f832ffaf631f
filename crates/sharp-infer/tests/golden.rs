//! The forward pass against transformers, on the small random models of tests/golden/hf_llama.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sharp_infer::{LayerView, Model, Options, Session, generate};
use sharp_model::ModelSource;

const CASES: [&str; 5] = ["gqa_untied", "tied", "rope_linear", "rope_llama3", "biases"];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama").join(case)
}

struct Expected(Vec<u8>);

impl Expected {
    fn load(case: &str) -> Self {
        Self(std::fs::read(folder(case).join("expected.safetensors")).unwrap())
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn tokens(&self, name: &str) -> Vec<u32> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    }
}

fn open(case: &str, threads: usize) -> Model {
    let options = Options { threads, ..Options::default() };
    Model::from_source(&ModelSource::open(folder(case)).unwrap(), &options).unwrap()
}

/// Relative to the largest magnitude, so that values near zero do not ask for the impossible.
fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let top = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= 2e-5 * top, "{what}[{i}]: {f} instead of {e}");
    }
}

#[test]
fn logits_and_layers_agree_with_transformers() {
    for case in CASES {
        let expected = Expected::load(case);
        let tokens = expected.tokens("tokens");
        let model = open(case, 2);
        let mut seen = 0;
        let logits = model
            .forward(&tokens, &mut |view: LayerView<'_>| {
                let at = |part: &str| expected.f32(&format!("layer.{}.{part}", view.layer));
                close(&format!("{case} residual_in {}", view.layer), view.residual_in, &at("residual_in"));
                close(&format!("{case} mlp_input {}", view.layer), view.mlp_input, &at("mlp_input"));
                close(&format!("{case} mlp_output {}", view.layer), view.mlp_output, &at("mlp_output"));
                close(&format!("{case} residual_out {}", view.layer), view.residual_out, &at("residual_out"));
                seen += 1;
            })
            .unwrap();
        assert_eq!(seen, model.layers().len());
        close(case, &logits, &expected.f32("logits"));
    }
}

#[test]
fn every_way_through_the_model_gives_the_same_logits() {
    for case in CASES {
        let expected = Expected::load(case);
        let (tokens, logits) = (expected.tokens("tokens"), expected.f32("logits"));
        let model = open(case, 2);
        let vocab = model.config().vocab_size;
        let last = &logits[logits.len() - vocab..];

        let mut session = Session::new(&model, tokens.len()).unwrap();
        close(case, session.prefill(&tokens).unwrap(), last);
        // One by one, after forgetting half of them.
        session.truncate(tokens.len() / 2);
        for (i, &t) in tokens.iter().enumerate().skip(tokens.len() / 2) {
            close(case, session.decode(t).unwrap(), &logits[i * vocab..(i + 1) * vocab]);
        }
        // With the logits of every token.
        session.truncate(5);
        let mut rows = 0;
        session
            .prefill_each(&tokens[5..], &mut |i, row| {
                close(case, row, &logits[(5 + i) * vocab..(6 + i) * vocab]);
                rows += 1;
            })
            .unwrap();
        assert_eq!(rows, tokens.len() - 5);
        close(case, session.logits(), last);

        // From the second layer on, and layer by layer with another sequence alongside.
        let second = expected.f32("layer.1.residual_in");
        close(case, &model.forward_from(1, second).unwrap(), &logits);
        let hidden = model.stream(&[&tokens, &tokens[..7], &[]], &mut |_, _| {}).unwrap();
        close(case, &model.logits(&hidden[0]).unwrap(), &logits);
        close(case, &model.logits(&hidden[1]).unwrap(), &logits[..7 * vocab]);
        assert!(hidden[2].is_empty());

        for layer in 0..model.layers().len() {
            let at = |part: &str| expected.f32(&format!("layer.{layer}.{part}"));
            close(case, &model.mlp(layer, &at("mlp_input")).unwrap(), &at("mlp_output"));
        }

        let losses = model.losses(&tokens).unwrap();
        for (i, loss) in losses.iter().enumerate() {
            let row = &logits[i * vocab..(i + 1) * vocab];
            let total: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
            assert!(
                (loss - (total.ln() - f64::from(row[tokens[i + 1] as usize]))).abs() < 1e-4,
                "{case} {i}"
            );
        }
    }
}

#[test]
fn segments_are_texts_and_continuations_of_their_own() {
    for case in CASES {
        let expected = Expected::load(case);
        let tokens = expected.tokens("tokens");
        let model = open(case, 2);
        let (vocab, d) = (model.config().vocab_size, model.config().hidden_size);
        // A text of 9 tokens, two ways to go on after 7 of them, and another text.
        let (text, other) = (&tokens[..9], &tokens[20..25]);
        let (one, two) = (&tokens[9..12], &tokens[12..16]);
        let all = [text, one, two, other].concat();
        let segment = |at, tokens: &[u32]| sharp_infer::Segment { at, tokens: tokens.len() };
        let segments = [segment(0, text), segment(7, one), segment(7, two), segment(0, other)];
        let hidden = model.embed_tokens(&all).unwrap();
        let hidden = model.hidden_segments(0, hidden, &segments, &mut ()).unwrap();
        let alone = |tokens: &[u32], from: usize| {
            let logits = model.forward(tokens, &mut ()).unwrap();
            logits[from * vocab..].to_vec()
        };
        let found = model.logits(&hidden).unwrap();
        let expected = [
            alone(text, 0),
            alone(&[&text[..7], one].concat(), 7),
            alone(&[&text[..7], two].concat(), 7),
            alone(other, 0),
        ];
        close(case, &found, &expected.concat());
        let rows = vec![0.0; 3 * d];
        assert!(model.hidden_segments(0, rows.clone(), &[segment(0, &[1, 2])], &mut ()).is_err());
        assert!(model.hidden_segments(0, rows, &[segment(1, &[1, 2, 3])], &mut ()).is_err());
    }
}

#[test]
fn greedy_continuation_agrees_with_transformers() {
    for case in CASES {
        let expected = Expected::load(case);
        let (tokens, greedy) = (expected.tokens("tokens"), expected.tokens("greedy"));
        let model = open(case, 1);
        let mut session = Session::new(&model, 64).unwrap();
        let mut sampler = sharp_infer::Sampler::new(Default::default()).unwrap();
        let mut logits = session.prefill(&tokens[..9]).unwrap().to_vec();
        for &token in &greedy {
            assert_eq!(sampler.sample(&mut logits, session.tokens()), Some(token), "{case}");
            logits = session.decode(token).unwrap().to_vec();
        }
    }
}

#[test]
fn text_generation_ends_where_it_should() {
    let config = sharp_model::ModelConfig::llama(32, 48, 2, 4, 2, 300).unwrap();
    let folder = tempfile::tempdir().unwrap();
    sharp_infer::Synthetic::write(&config, None, 5, folder.path(), &sharp_progress::Silent).unwrap();
    let model = Model::open(folder.path(), &Options::default()).unwrap();
    let tokenizer = Model::open_tokenizer(folder.path()).unwrap();
    let prompt = tokenizer.encode("Hello, wörld 42", false).unwrap();
    assert_eq!(tokenizer.decode(&prompt).unwrap(), "Hello, wörld 42");
    assert_eq!(prompt.len(), "Hello, wörld 42".len());

    let options = sharp_infer::GenerateOptions {
        max_tokens: 20,
        sampler: sharp_infer::SamplerOptions { temperature: 1.0, seed: 3, ..Default::default() },
        ignore_eos: true,
        ..Default::default()
    };
    let run = |options: &sharp_infer::GenerateOptions, capacity: usize| {
        let mut streamed = String::new();
        let mut session = Session::new(&model, capacity).unwrap();
        let made = generate(&mut session, &tokenizer, &prompt, options, &mut |s| {
            streamed.push_str(s);
            true
        });
        made.inspect(|made| assert_eq!(made.text, streamed))
    };
    let first = run(&options, 100).unwrap();
    assert_eq!((first.tokens.len(), first.finish), (20, sharp_infer::Finish::Length));
    assert_eq!(run(&options, 100).unwrap().tokens, first.tokens);
    // As many as there is room for: the last token chosen needs none.
    assert_eq!(run(&options, prompt.len() + 4).unwrap().tokens, first.tokens[..5]);
    assert!(matches!(run(&options, prompt.len() - 1), Err(sharp_infer::Error::Full { .. })));
    // A stop string from the middle of what was generated.
    let chars: Vec<char> = first.text.chars().collect();
    let stop: String = chars[3..5].iter().collect();
    let at = first.text.find(&stop).unwrap();
    let stopped = run(&sharp_infer::GenerateOptions { stop: vec![stop], ..options.clone() }, 100).unwrap();
    assert_eq!((stopped.text.as_str(), stopped.finish), (&first.text[..at], sharp_infer::Finish::Stop));
    // Cancelled at the first piece.
    let mut session = Session::new(&model, 100).unwrap();
    let made = generate(&mut session, &tokenizer, &prompt, &options, &mut |_| false).unwrap();
    assert_eq!(made.finish, sharp_infer::Finish::Cancelled);
    let mut empty = Session::new(&model, 100).unwrap();
    assert!(generate(&mut empty, &tokenizer, &[], &options, &mut |_| true).is_err());
}

#[test]
fn bad_input_is_refused() {
    let model = open("tied", 1);
    assert!(matches!(
        model.forward(&[1, 61], &mut ()),
        Err(sharp_infer::Error::Token { token: 61, position: 1, .. })
    ));
    let mut session = Session::new(&model, 4).unwrap();
    session.prefill(&[1, 2, 3]).unwrap();
    assert!(matches!(session.prefill(&[1, 2]), Err(sharp_infer::Error::Full { capacity: 4, wanted: 5 })));
    assert!(matches!(session.decode(99), Err(sharp_infer::Error::Token { .. })));
    assert_eq!(session.tokens(), [1, 2, 3]);
    assert!(session.decode(1).is_ok());
    assert!(model.mlp(3, &[0.0; 24]).is_err());
    assert!(model.mlp(0, &[0.0; 23]).is_err());
    assert!(model.hidden_from(4, vec![0.0; 24], &mut ()).is_err());
    assert!(model.with_mlp_map(|_| 7).is_err());
    assert!(model.without_mlps(&[3]).is_err());
    assert!(model.losses(&[]).unwrap().is_empty());
    assert!(model.forward(&[], &mut ()).unwrap().is_empty());
    assert!(Model::open("/nonexistent", &Options::default()).is_err());
    let options = Options { kv_cache: Some(sharp_infer::DType::Q8_0), ..Options::default() };
    assert!(Model::open(folder("tied"), &options).is_err());
}
