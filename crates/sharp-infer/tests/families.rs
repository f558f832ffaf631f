//! Each family's forward pass against transformers, on the small random models of tests/golden/hf_families.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sharp_infer::{Batch, Model, Options, Recipe, Sampler, Session, Team, quantize};
use sharp_model::{DType, ExportOptions, LayerChange, ModelSource, Plan, Repair};
use sharp_progress::Silent;

const CASES: [&str; 11] = [
    "mistral_window",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "smollm3",
    "granite",
    "olmo2",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3",
];
/// Tokens of the prompt that `greedy` goes on from.
const PROMPT: usize = 23;

struct Case {
    name: &'static str,
    tokens: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

impl Case {
    fn load(name: &'static str) -> Self {
        let file = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let ids = |key: &str| {
            let data = tensors.tensor(key).unwrap().data().to_vec();
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
        };
        let logits = tensors.tensor("logits").unwrap().data().to_vec();
        let logits = logits.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Self { name, tokens: ids("tokens"), logits, greedy: ids("greedy") }
    }

    fn row(&self, i: usize) -> &[f32] {
        let vocab = self.logits.len() / self.tokens.len();
        &self.logits[i * vocab..(i + 1) * vocab]
    }

    /// Relative to the largest magnitude, so that values near zero do not ask for the impossible.
    fn close(&self, what: &str, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{} {what}", self.name);
        let top = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!((f - e).abs() <= 3e-5 * top, "{} {what}[{i}]: {f} instead of {e}", self.name);
        }
    }
}

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_families").join(case)
}

fn open(path: &Path) -> Model {
    Model::open(path, &Options { threads: 2, ..Options::default() }).unwrap()
}

#[test]
fn every_way_through_a_family_agrees_with_transformers() {
    for case in CASES.map(Case::load) {
        let model = open(&folder(case.name));
        case.close("at once", &model.forward(&case.tokens, &mut ()).unwrap(), &case.logits);

        let mut session = Session::new(&model, 64).unwrap();
        case.close("prefill", session.prefill(&case.tokens[..30]).unwrap(), case.row(29));
        for (i, &token) in case.tokens.iter().enumerate().skip(30) {
            case.close("decode", session.decode(token).unwrap(), case.row(i));
        }

        let mut sampler = Sampler::new(Default::default()).unwrap();
        session.truncate(0);
        let mut logits = session.prefill(&case.tokens[..PROMPT]).unwrap().to_vec();
        for &token in &case.greedy {
            assert_eq!(sampler.sample(&mut logits, session.tokens()), Some(token), "{}", case.name);
            logits = session.decode(token).unwrap().to_vec();
        }
    }
}

#[test]
fn a_familys_gguf_file_is_the_same_model() {
    for case in ["gemma", "gemma2", "gemma3", "granite", "olmo2", "phi3", "qwen3"].map(Case::load) {
        let file = folder("../gguf_families").join(case.name).with_extension("gguf");
        case.close("as GGUF", &open(&file).forward(&case.tokens, &mut ()).unwrap(), &case.logits);
    }
}

#[test]
fn an_imported_family_is_the_same_model() {
    for case in CASES.map(Case::load) {
        let out = tempfile::tempdir().unwrap();
        sharp_model::import(folder(case.name), out.path(), DType::F32, &Silent).unwrap();
        case.close("imported", &open(out.path()).forward(&case.tokens, &mut ()).unwrap(), &case.logits);
    }
}

#[test]
fn a_packed_family_is_the_same_model() {
    for case in CASES.map(Case::load) {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("model.sharp");
        let source = ModelSource::open(folder(case.name)).unwrap();
        let recipe = Recipe::load("f16").unwrap();
        quantize(&source, &recipe, &file, &Team::new(2).unwrap(), &Silent).unwrap();
        let found = open(&file).forward(&case.tokens, &mut ()).unwrap();
        let pairs = || found.iter().zip(&case.logits);
        let error: f64 = pairs().map(|(f, e)| f64::from(f - e).powi(2)).sum();
        let size: f64 = pairs().map(|(_, e)| f64::from(*e).powi(2)).sum();
        assert!((error / size).sqrt() < 5e-3, "{}: {}", case.name, (error / size).sqrt());
    }
}

#[test]
fn a_family_shares_its_mlps_in_a_compact_checkpoint() {
    for case in CASES.map(Case::load) {
        let base = ModelSource::open(folder(case.name)).unwrap();
        let change = LayerChange::share(1, 0, Repair::None);
        let shared = ModelSource::overlay(&base, Plan::new("explicit", vec![change]), None).unwrap();
        let out = tempfile::tempdir().unwrap();
        let (compact, dense) = (out.path().join("compact"), out.path().join("dense"));
        let options = ExportOptions::new(DType::F32);
        sharp_model::export_compact(&shared, &compact, &options, &Silent).unwrap();
        sharp_model::export_dense(&shared, &dense, &options, &Silent).unwrap();
        let dense = open(&dense).forward(&case.tokens, &mut ()).unwrap();
        case.close("compact", &open(&compact).forward(&case.tokens, &mut ()).unwrap(), &dense);
        let moved = dense.iter().zip(&case.logits).any(|(a, b)| (a - b).abs() > 0.05);
        assert!(moved, "{}: sharing changes nothing", case.name);
    }
}

#[test]
fn sessions_decoded_together_are_what_they_are_alone() {
    for case in CASES.map(Case::load) {
        let model = open(&folder(case.name));
        let mut one = Session::new(&model, 64).unwrap();
        let mut two = Session::new(&model, 64).unwrap();
        one.prefill(&case.tokens[..12]).unwrap();
        two.prefill(&case.tokens[..31]).unwrap();
        let mut batch = Batch::new(&model, 2).unwrap();
        let next = [case.tokens[12], case.tokens[31]];
        batch.decode(&mut [&mut one, &mut two], &next).unwrap();
        case.close("first of two", one.logits(), case.row(12));
        case.close("second of two", two.logits(), case.row(31));
    }
}
