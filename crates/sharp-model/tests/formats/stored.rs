//! Models opened where they lie, whatever form they are stored in.

use std::fs;

use sharp_model::gguf::{GgufOptions, export_gguf};
use sharp_model::import;
use sharp_model::tokenizer::Tokenizer;
use sharp_model::{
    DType, ExportOptions, HfCheckpoint, LayerChange, ModelConfig, ModelSource, Plan, Repair, Stored,
    TensorSource, export_compact, export_dense,
};
use sharp_progress::Silent;

use crate::{golden, json};

#[test]
fn a_gguf_file_opens_as_the_model_it_holds() {
    for case in ["llama_mixed", "qwen2", "sentencepiece"] {
        let file = golden("gguf").join(case).join("model.gguf");
        assert_eq!(Stored::at(&file).unwrap(), Stored::Gguf(file.clone()));
        let source = ModelSource::open(&file).unwrap();
        let expected = HfCheckpoint::open(golden("gguf").join(case).join("expected.safetensors")).unwrap();
        for info in expected.tensors() {
            let found = source.tensor(&info.name).unwrap();
            assert_eq!(found.shape(), info.shape, "{case} {}", info.name);
            assert_eq!(found.f32().unwrap(), expected.f32(&info.name).unwrap(), "{case} {}", info.name);
        }
        let truth = json(golden("gguf").join(case).join("expected.json"));
        let layers = truth["config"]["num_hidden_layers"].as_u64().unwrap() as usize;
        assert_eq!(Stored::at(&file).unwrap().config().unwrap().num_hidden_layers, layers);
        let tokenizers = [Tokenizer::load(&file).unwrap(), source.tokenizer().unwrap().unwrap()];
        for text in truth["texts"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(text[1].clone()).unwrap();
            for tokenizer in &tokenizers {
                assert_eq!(tokenizer.encode(text[0].as_str().unwrap(), false).unwrap(), ids, "{case} {text}");
            }
        }
    }
}

/// Every file of a folder, by name.
fn files(folder: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(p).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn what_is_written_from_a_gguf_file_is_what_is_written_from_its_import() {
    let file = golden("gguf/llama_mixed/model.gguf");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    import(&file, at("imported"), DType::F32, &Silent).unwrap();
    let sources = [ModelSource::open(&file).unwrap(), ModelSource::open(at("imported")).unwrap()];
    let plan = Plan::new("explicit", vec![LayerChange::share(1, 0, Repair::None)]);
    let options = ExportOptions::new(DType::F32);
    let mut written = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        let (dense, compact, gguf) =
            (at(&format!("dense{i}")), at(&format!("compact{i}")), at(&format!("{i}.gguf")));
        export_dense(source, &dense, &options, &Silent).unwrap();
        let shared = ModelSource::overlay(source, plan.clone(), None).unwrap();
        export_compact(&shared, &compact, &options, &Silent).unwrap();
        let tokenizer = source.tokenizer().unwrap();
        let kept = GgufOptions { layers: DType::F32, embedding: DType::F32 };
        export_gguf(source, tokenizer.as_ref(), &gguf, kept, &Silent).unwrap();
        // The card and the general.name of a GGUF file are the only places that may tell where a model was
        // read from.
        written.push((files(&dense), files(&compact), Tokenizer::load(&gguf).unwrap().to_json().unwrap()));
    }
    let all = |i: usize| [&written[i].0[..], &written[i].1[..]].concat();
    for (a, b) in all(0).into_iter().zip(all(1)) {
        assert_eq!(a.0, b.0);
        // An import says first in which type its weights are.
        let as_json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        let same = if a.0 == "config.json" { as_json(&a.1) == as_json(&b.1) } else { a.1 == b.1 };
        assert!(same, "{}: {}\n{}", a.0, String::from_utf8_lossy(&a.1), String::from_utf8_lossy(&b.1));
    }
    assert_eq!(all(0).len(), all(1).len());
    assert!(written[0].0.iter().any(|f| f.0 == "tokenizer.json"));
    assert_eq!(written[0].2, written[1].2);
}

#[test]
fn each_form_is_told_and_another_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let says = |path: &std::path::Path, what: &str| {
        let error = Stored::at(path).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(path.to_str().unwrap()), "{error}");
    };
    let packed = at("x.bin", b"SHARPKD1 and more");
    assert_eq!(Stored::at(&packed).unwrap(), Stored::Packed(packed.clone()));
    let error = ModelSource::open(&packed).unwrap_err().to_string();
    assert!(error.contains("give what it was made from"), "{error}");
    says(&at("named.gguf", b"version https://git-lfs"), "does not begin with `GGUF`");
    says(&at("empty.gguf", b""), "does not begin with `GGUF`");
    says(&at("model.safetensors", b"12345678"), "config.json");
    says(&at("notes.txt", b"hello"), "neither a GGUF file nor a packed model.sharp");
    says(&folder.path().join("nothing"), "no such file or folder");
    says(&folder.path().join("notes.txt/inside"), "no such file or folder");
    let adapter = tempfile::tempdir().unwrap();
    fs::write(adapter.path().join("adapter_config.json"), "{}").unwrap();
    says(adapter.path(), "PEFT adapter");
    let dense = golden("hf_llama/tied");
    assert_eq!(Stored::at(&dense).unwrap(), Stored::Folder(dense.clone()));
    assert_eq!(Stored::at(&dense).unwrap().config().unwrap(), ModelConfig::load(&dense).unwrap());
}
