//! GGUF files we write, read back by the importer that the reference package's files hold to account.

use std::path::{Path, PathBuf};

use sharp_model::gguf::{Gguf, GgufOptions, HfView, export_gguf};
use sharp_model::import;
use sharp_model::tokenizer::Tokenizer;
use sharp_model::{
    DType, HfCheckpoint, LayerChange, ModelConfig, ModelSource, Plan, Projection, Repair, TensorSource, names,
};
use sharp_progress::Silent;
use sharp_quant::ScaleRule;

use crate::{golden, json};

const CASES: [&str; 5] = ["llama_mixed", "qwen2", "sentencepiece", "gpt2_pre", "smollm_pre"];

/// The case as a checkpoint folder.
fn imported(case: &str, folder: &Path) -> PathBuf {
    let out = folder.join("imported");
    import(golden("gguf").join(case).join("model.gguf"), &out, DType::F32, &Silent).unwrap();
    out
}

#[test]
fn a_model_written_and_imported_again_is_the_same() {
    for case in CASES {
        let folder = tempfile::tempdir().unwrap();
        let first = imported(case, folder.path());
        let file = folder.path().join("again.gguf");
        let source = ModelSource::open(&first).unwrap();
        let tokenizer = Tokenizer::load(&first).unwrap();
        let options = GgufOptions::uniform(DType::F32);
        let bytes = export_gguf(&source, Some(&tokenizer), &file, options, &Silent).unwrap();
        assert_eq!(bytes, std::fs::metadata(&file).unwrap().len(), "{case}");
        let second = folder.path().join("second");
        import(&file, &second, DType::F32, &Silent).unwrap();

        let expected = HfCheckpoint::open(golden("gguf").join(case).join("expected.safetensors")).unwrap();
        let found = HfCheckpoint::open(&second).unwrap();
        assert_eq!(found.tensors().len(), expected.tensors().len(), "{case}");
        for info in expected.tensors() {
            assert_eq!(
                found.f32(&info.name).unwrap(),
                expected.f32(&info.name).unwrap(),
                "{case} {}",
                info.name
            );
        }
        let (a, b) = (ModelConfig::load(&first).unwrap(), ModelConfig::load(&second).unwrap());
        assert_eq!(b.rope_scaling, a.rope_scaling, "{case}");
        assert_eq!(
            (b.head_dim, b.max_position_embeddings, b.rms_norm_eps, b.rope_theta, b.eos_token_ids),
            (a.head_dim, a.max_position_embeddings, a.rms_norm_eps, a.rope_theta, a.eos_token_ids),
            "{case}"
        );
        let again = Tokenizer::load(&second).unwrap();
        for row in json(golden("gguf").join(case).join("expected.json"))["texts"].as_array().unwrap() {
            let text = row[0].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(row[1].clone()).unwrap();
            assert_eq!(again.encode(text, false).unwrap(), ids, "{case}: {text:?}");
            assert_eq!(again.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap(), "{case}");
        }
        assert_eq!(again.chat_template(), tokenizer.chat_template(), "{case}");
        assert_eq!(again.special_tokens(), tokenizer.special_tokens(), "{case}");
    }
}

#[test]
fn matrices_are_quantised_and_vectors_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelSource::open(imported("smollm_pre", folder.path())).unwrap();
    let file = folder.path().join("q4.gguf");
    let options = GgufOptions { layers: DType::Q4_0, embedding: DType::Q8_0 };
    export_gguf(&source, None, &file, options, &Silent).unwrap();
    let gguf = Gguf::open(&file).unwrap();
    assert_eq!(gguf.string("tokenizer.ggml.model").unwrap(), Some("no_vocab"));
    let dtype = |name: &str| gguf.info(name).unwrap().dtype;
    assert_eq!(dtype("token_embd.weight"), DType::Q8_0);
    assert_eq!(dtype("blk.0.attn_norm.weight"), DType::F32);
    for info in gguf.tensors().iter().filter(|i| i.name.contains("blk.") && i.shape.len() == 2) {
        let whole = info.shape[1] % 32 == 0;
        assert_eq!(info.dtype, if whole { DType::Q4_0 } else { DType::F16 }, "{info:?}");
    }
    // Each row of the query projection is quantised by itself, wherever it is moved to.
    let name = "model.layers.0.self_attn.q_proj.weight";
    let view = HfView::new(gguf.into()).unwrap();
    let (dtype, plain) = (view.info(name).unwrap().dtype, source.tensor(name).unwrap().f32().unwrap());
    let mut bytes = vec![0; dtype.nbytes(plain.len()).unwrap()];
    sharp_quant::quantize(dtype, ScaleRule::Max, &plain, &mut bytes).unwrap();
    assert_eq!(view.bytes(name).unwrap()[..], bytes[..]);
}

#[test]
fn shared_layers_get_their_effective_weights() {
    let folder = tempfile::tempdir().unwrap();
    let base = ModelSource::open(imported("llama_mixed", folder.path())).unwrap();
    let plan = Plan::new("explicit", vec![LayerChange::share(1, 0, Repair::None).because("a test")]);
    let shared = ModelSource::overlay(&base, plan, None).unwrap();
    let file = folder.path().join("shared.gguf");
    export_gguf(&shared, None, &file, GgufOptions::uniform(DType::F32), &Silent).unwrap();
    let view = HfView::new(Gguf::open(&file).unwrap().into()).unwrap();
    for projection in Projection::ALL {
        let of = |layer| view.f32(&names::mlp_weight(layer, projection)).unwrap();
        assert_eq!(of(1), of(0));
        assert_eq!(of(0), base.tensor(&names::mlp_weight(0, projection)).unwrap().f32().unwrap());
    }
}
