//! Importing: from Hugging Face folders and GGUF files, and what is refused.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use sharp_model::gguf::{Gguf, GgufWriter, HfView, tokenizer_json};
use sharp_model::tokenizer::Tokenizer;
use sharp_model::{DType, Error, HfCheckpoint, ModelConfig, ModelSource, TensorSource, WriteSummary};
use sharp_model::{import, import_sharded};
use sharp_progress::Silent;

use crate::raw::{Raw, array, complaint, key, place, string, tensor};
use crate::{golden, json};

fn run(source: &Path, out: &Path) -> sharp_model::Result<WriteSummary> {
    import(source, out, DType::F32, &Silent)
}

/// A copy of a golden Hugging Face folder that a test may spoil.
fn copy_of(case: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("hf_llama").join(case).join(name), dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn a_hugging_face_folder_comes_through_unchanged() {
    for case in ["tied", "gqa_untied", "rope_linear", "rope_llama3", "biases"] {
        let source = golden("hf_llama").join(case);
        let (_dir, out) = place("out");
        let written = run(&source, &out).unwrap();
        let (a, b) = (HfCheckpoint::open(&source).unwrap(), HfCheckpoint::open(&out).unwrap());
        assert_eq!(written.tensors, a.tensors().len());
        for info in a.tensors() {
            assert_eq!(b.info(&info.name).unwrap().dtype, DType::F32);
            assert_eq!(a.f32(&info.name).unwrap(), b.f32(&info.name).unwrap(), "{case}: {}", info.name);
        }
        let (before, after) = (json(source.join("config.json")), json(out.join("config.json")));
        for (name, value) in before.as_object().unwrap() {
            // Rotary settings may be spelt the other way; what they mean is compared below.
            if !name.starts_with("rope_") && name != "dtype" && name != "torch_dtype" {
                let same =
                    after[name] == *value || after[name].as_f64().is_some_and(|x| value.as_f64() == Some(x));
                assert!(same, "{case}: `{name}` was {value}, is {}", after[name]);
            }
        }
        assert_eq!(after["torch_dtype"], "float32");
        assert!(after.get("dtype").is_none());
        let config = ModelSource::open(&out).unwrap().config().clone();
        assert_eq!(config.inv_freq(), ModelConfig::load(&source).unwrap().inv_freq());
    }
}

#[test]
fn the_type_asked_for_is_the_type_written() {
    let source = golden("gguf/llama_mixed/model.gguf");
    for (dtype, name, tolerance) in [(DType::F16, "float16", 1e-3), (DType::BF16, "bfloat16", 8e-3)] {
        let (_dir, out) = place("out");
        import(&source, &out, dtype, &Silent).unwrap();
        assert_eq!(json(out.join("config.json"))["torch_dtype"], name);
        let (half, full) =
            (HfCheckpoint::open(&out).unwrap(), HfView::new(Gguf::open(&source).unwrap().into()).unwrap());
        for info in half.tensors() {
            assert_eq!(info.dtype, dtype);
            let (a, b) = (half.f32(&info.name).unwrap(), full.f32(&info.name).unwrap());
            assert!(
                a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= tolerance * b.abs().max(1e-4)),
                "{}",
                info.name
            );
        }
    }
    let (_dir, out) = place("out");
    let error = complaint(import(&source, &out, DType::Q8_0, &Silent), "out", &["Q8_0", "F32"]);
    assert!(matches!(error, Error::Unsupported { .. }));
    assert!(!out.exists());
}

#[test]
fn shards_hold_the_same_as_one_file() {
    let source = golden("gguf/llama_mixed/model.gguf");
    let ((_a, one), (_b, many)) = (place("one"), place("many"));
    run(&source, &one).unwrap();
    let written = import_sharded(&source, &many, DType::F32, 30_000, &Silent).unwrap();
    assert!(written.files.len() > 3, "{:?}", written.files);
    assert!(many.join("model.safetensors.index.json").is_file() && !many.join("model.safetensors").exists());
    let (one, many) = (HfCheckpoint::open(&one).unwrap(), HfCheckpoint::open(&many).unwrap());
    assert_eq!(one.tensors(), many.tensors());
    for info in one.tensors() {
        assert_eq!(*one.bytes(&info.name).unwrap(), *many.bytes(&info.name).unwrap(), "{}", info.name);
    }
}

/// Overwrites one value of a float32 tensor in a safetensors file.
fn poke(file: &Path, name: &str, index: usize, value: f32) {
    let mut bytes = fs::read(file).unwrap();
    let (header, meta) = SafeTensors::read_metadata(&bytes).unwrap();
    let at = 8 + header + meta.info(name).unwrap().data_offsets.0 + 4 * index;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(file, bytes).unwrap();
}

#[test]
fn nan_and_infinity_are_refused_with_the_tensor_and_nothing_is_replaced() {
    const NAME: &str = "model.layers.1.mlp.up_proj.weight";
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let source = copy_of("tied");
        let (_dir, out) = place("out");
        run(source.path(), &out).unwrap();
        let before = fs::read(out.join("model.safetensors")).unwrap();
        poke(&source.path().join("model.safetensors"), NAME, 17, value);
        let error = complaint(run(source.path(), &out), source.path().to_str().unwrap(), &[NAME, "17"]);
        assert!(matches!(error, Error::NotFinite { index: 17, .. }));
        assert!(before == fs::read(out.join("model.safetensors")).unwrap());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 2, "a temporary file was left behind");
    }
}

#[test]
fn a_value_too_large_for_float16_is_refused() {
    let source = copy_of("tied");
    poke(&source.path().join("model.safetensors"), "model.norm.weight", 3, 1e6);
    let (_dir, out) = place("out");
    complaint(import(source.path(), &out, DType::F16, &Silent), "", &["model.norm.weight", "1000000"]);
    import(source.path(), &out, DType::BF16, &Silent).unwrap();
}

#[test]
fn a_tensor_the_architecture_has_not_is_refused() {
    let source = copy_of("tied");
    // The configuration no longer says that there are as many layers as are stored.
    let mut config = json(source.path().join("config.json"));
    config["num_hidden_layers"] = 2.into();
    fs::write(source.path().join("config.json"), config.to_string()).unwrap();
    let (_dir, out) = place("out");
    complaint(run(source.path(), &out), source.path().to_str().unwrap(), &["model.layers.2."]);
    config["num_hidden_layers"] = 4.into();
    fs::write(source.path().join("config.json"), config.to_string()).unwrap();
    complaint(run(source.path(), &out), source.path().to_str().unwrap(), &["no tensor", "model.layers.3."]);
}

#[test]
fn the_source_is_never_written_into() {
    let source = copy_of("tied");
    let before = fs::read(source.path().join("model.safetensors")).unwrap();
    complaint(run(source.path(), source.path()), "", &["reads from"]);
    assert!(before == fs::read(source.path().join("model.safetensors")).unwrap());
    let gguf = source.path().join("model.gguf");
    fs::copy(golden("gguf/qwen2/model.gguf"), &gguf).unwrap();
    complaint(run(&gguf, source.path()), "", &["reads from"]);
}

#[test]
fn what_is_no_checkpoint_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    complaint(run(&dir.path().join("nowhere"), &out), "nowhere", &[]);
    complaint(run(dir.path(), &out), "", &["no config.json", "GGUF"]);
    complaint(run(&file("a.bin", b"what is this"), &out), "a.bin", &["neither"]);
    complaint(run(&file("b.bin", b"x"), &out), "b.bin", &["neither"]);
    complaint(run(&file("c.safetensors", b"12345678"), &out), "c.safetensors", &["config.json"]);
    complaint(run(&file("d.sharp", b"SHARPKD1........"), &out), "d.sharp", &["packed model"]);
    assert!(!out.exists());
}

#[test]
fn a_folder_with_one_gguf_file_is_that_file() {
    let dir = tempfile::tempdir().unwrap();
    let (_other, out) = place("out");
    fs::copy(golden("gguf/qwen2/model.gguf"), dir.path().join("x.gguf")).unwrap();
    run(dir.path(), &out).unwrap();
    assert!(out.join("tokenizer.json").is_file());
    fs::copy(golden("gguf/qwen2/model.gguf"), dir.path().join("y.gguf")).unwrap();
    complaint(run(dir.path(), &out), "", &["2 GGUF files"]);
}

#[test]
fn an_imported_gguf_imports_again_to_the_same_weights() {
    let ((_a, first), (_b, second)) = (place("first"), place("second"));
    run(&golden("gguf/qwen2/model.gguf"), &first).unwrap();
    run(&first, &second).unwrap();
    for name in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(fs::read(first.join(name)).unwrap() == fs::read(second.join(name)).unwrap(), "{name}");
    }
}

/// A whole small Llama as a GGUF file: 2 heads of 2, one layer, four tokens.
fn llama() -> Raw {
    let number = |name: &str, value: u32| key(name, 4, &value.to_le_bytes());
    let keys = vec![
        key("general.architecture", 8, &string("llama")),
        number("llama.block_count", 1),
        number("llama.context_length", 64),
        number("llama.embedding_length", 4),
        number("llama.feed_forward_length", 6),
        number("llama.attention.head_count", 2),
        key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()),
        key("tokenizer.ggml.model", 8, &string("gpt2")),
        key("tokenizer.ggml.pre", 8, &string("smollm")),
        array("tokenizer.ggml.tokens", 8, 4, &["a", "b", "ab", "<end>"].map(string).concat()),
        array("tokenizer.ggml.token_type", 5, 4, &[1, 1, 1, 3].map(i32::to_le_bytes).concat()),
        array("tokenizer.ggml.merges", 8, 1, &string("a b")),
        number("tokenizer.ggml.eos_token_id", 3),
    ];
    let parts: [(&str, &[u64]); 11] = [
        ("token_embd.weight", &[4, 4]),
        ("output_norm.weight", &[4]),
        ("blk.0.attn_norm.weight", &[4]),
        ("blk.0.attn_q.weight", &[4, 4]),
        ("blk.0.attn_k.weight", &[4, 4]),
        ("blk.0.attn_v.weight", &[4, 4]),
        ("blk.0.attn_output.weight", &[4, 4]),
        ("blk.0.ffn_norm.weight", &[4]),
        ("blk.0.ffn_gate.weight", &[4, 6]),
        ("blk.0.ffn_up.weight", &[4, 6]),
        ("blk.0.ffn_down.weight", &[6, 4]),
    ];
    let mut raw = Raw { keys, tensors: Vec::new(), data: Vec::new(), ..Raw::sound() };
    parts.into_iter().for_each(|(name, shape)| add(&mut raw, name, shape));
    raw
}

fn add(raw: &mut Raw, name: &str, shape: &[u64]) {
    let offset = raw.data.len();
    raw.tensors.push(tensor(name, shape, 0, offset as u64));
    raw.data.resize((offset + 4 * shape.iter().product::<u64>() as usize).next_multiple_of(32), 0);
}

/// The file with the entry that begins like `entry` (its name) replaced by it.
fn with(entry: Vec<u8>) -> Raw {
    let mut raw = llama();
    let name = |e: &[u8]| e[8..8 + u64::from_le_bytes(e[..8].try_into().unwrap()) as usize].to_vec();
    raw.keys.retain(|k| name(k) != name(&entry));
    raw.keys.push(entry);
    raw
}

fn without(key: &str) -> Raw {
    let mut raw = llama();
    raw.keys.retain(|k| !k[8..].starts_with(key.as_bytes()));
    raw
}

fn refused(raw: Raw, words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, raw.bytes()).unwrap();
    complaint(run(&path, &dir.path().join("out")), "model.gguf", words);
    assert!(!dir.path().join("out").join("config.json").exists());
}

#[test]
fn the_smallest_llama_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, llama().bytes()).unwrap();
    run(&path, &dir.path().join("out")).unwrap();
}

#[test]
fn metadata_that_is_missing_is_named() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.context_length",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ] {
        refused(without(key), &[key]);
    }
}

#[test]
fn metadata_of_the_wrong_type_is_named() {
    refused(with(key("llama.block_count", 8, &string("thirty"))), &["llama.block_count", "string"]);
    refused(with(array("llama.attention.head_count_kv", 4, 1, &[1, 0, 0, 0])), &["head_count_kv", "array"]);
    refused(with(key("tokenizer.ggml.tokens", 4, &[0; 4])), &["tokenizer.ggml.tokens"]);
}

#[test]
fn an_unknown_architecture_tokenizer_or_pre_tokenizer_is_named() {
    refused(with(key("general.architecture", 8, &string("mamba"))), &["mamba", "llama", "qwen2"]);
    refused(with(key("tokenizer.ggml.model", 8, &string("t5"))), &["t5", "gpt2"]);
    refused(with(key("tokenizer.ggml.pre", 8, &string("whitespace"))), &["whitespace", "smollm", "tekken"]);
}

/// Mistral Nemo's words end before a capital and its digits stand alone; the distilled Qwens cut as Qwen2
/// does.
#[test]
fn pre_tokenizers_cut_text_as_their_families_do() {
    let words = ["Hello", "World", "HelloWorld", "12", "\u{120}a", "/\u{10a}"];
    let letters = "HeloWrd12a/\u{120}\u{10a}".chars().map(String::from);
    let tokens: Vec<String> = words.into_iter().map(str::to_owned).chain(letters).collect();
    let (_dir, path) = place("model.gguf");
    let cut = |pre: &str, text: &str| {
        let mut file = GgufWriter::new();
        file.string("general.architecture", "llama");
        file.string("tokenizer.ggml.model", "gpt2");
        file.string("tokenizer.ggml.pre", pre);
        file.strings("tokenizer.ggml.tokens", &tokens);
        file.strings("tokenizer.ggml.merges", &["1 2".to_owned()]);
        file.write(&path, |_, _| Ok(())).unwrap();
        let json = tokenizer_json(&Gguf::open(&path).unwrap()).unwrap().to_string();
        let tokenizer = Tokenizer::from_parts(&path, json.as_bytes(), serde_json::Map::new(), &[]).unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(cut("tekken", "HelloWorld12 a/\n"), "Hello World 1 2 \u{120}a /\u{10a}");
    assert_eq!(cut("llama-bpe", "HelloWorld12"), "HelloWorld 12");
    // Merges make no word of these letters, and Qwen2 takes none whole.
    assert_eq!(cut("deepseek-r1-qwen", "He12"), "H e 1 2");
    assert_eq!(cut("deepseek-r1-qwen", "He12"), cut("qwen2", "He12"));
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let number = |name: &str, value: u32| with(key(name, 4, &value.to_le_bytes()));
    refused(number("llama.attention.head_count", 0), &["heads"]);
    refused(number("llama.attention.head_count", 3), &["3 heads"]);
    refused(number("llama.embedding_length", 8), &["shape"]);
    refused(number("llama.block_count", 2), &["blk.1."]);
    refused(number("llama.block_count", u32::MAX), &["num_hidden_layers"]);
    refused(number("llama.attention.key_length", 3), &["head_dim"]);
    refused(number("llama.attention.value_length", 4), &["values of 4"]);
    refused(number("llama.rope.dimension_count", 1), &["rotary"]);
    refused(number("llama.expert_count", 8), &["8 experts"]);
}

#[test]
fn rotary_scaling_this_does_not_compute_is_refused() {
    refused(with(key("llama.rope.scaling.type", 8, &string("yarn"))), &["yarn"]);
    let mut raw = llama();
    add(&mut raw, "rope_freqs.weight", &[1]);
    // The factor 0 fits no Llama 3.
    refused(raw, &["rope_freqs.weight"]);
}

#[test]
fn a_tensor_too_many_or_too_few_is_named() {
    let mut raw = llama();
    add(&mut raw, "blk.0.attn_gate.weight", &[4, 4]);
    refused(raw, &["blk.0.attn_gate.weight"]);
    let mut raw = llama();
    raw.tensors.pop();
    refused(raw, &["blk.0.ffn_down.weight"]);
    let mut raw = llama();
    add(&mut raw, "blk.0.attn_q.bias", &[4]);
    refused(raw, &["blk.0.attn_k.bias"]);
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused() {
    let tokens = |all: [&str; 4]| with(array("tokenizer.ggml.tokens", 8, 4, &all.map(string).concat()));
    refused(tokens(["a", "b", "a", "<end>"]), &["same text", "0", "2"]);
    let many = ["a", "b", "ab", "<end>", "c"].map(string).concat();
    refused(with(array("tokenizer.ggml.tokens", 8, 5, &many)), &["5 tokens", "4 rows"]);
    refused(with(array("tokenizer.ggml.token_type", 5, 1, &[1, 0, 0, 0])), &["token_type"]);
    refused(with(key("tokenizer.ggml.eos_token_id", 4, &9u32.to_le_bytes())), &["eos_token_id", "9"]);
    for merge in ["ab", "a c", "b a", ""] {
        refused(with(array("tokenizer.ggml.merges", 8, 1, &string(merge))), &["merges"]);
    }
}

#[test]
fn a_sentencepiece_vocabulary_needs_scores_and_an_unknown_token() {
    let mut raw = with(key("tokenizer.ggml.model", 8, &string("llama")));
    refused(raw.clone(), &["tokenizer.ggml.scores"]);
    let scores = |all: [f32; 4]| array("tokenizer.ggml.scores", 6, 4, &all.map(f32::to_le_bytes).concat());
    raw.keys.push(scores([0.0; 4]));
    refused(raw.clone(), &["unknown token"]);
    raw.keys.pop();
    raw.keys.push(scores([0.0, f32::NAN, 0.0, 0.0]));
    refused(raw, &["tokenizer.ggml.scores"]);
}

#[test]
fn an_absent_token_is_not_a_token() {
    let raw = with(key("tokenizer.ggml.padding_token_id", 4, &u32::MAX.to_le_bytes()));
    assert!(tokenizer_json(&raw.open().unwrap()).is_ok());
}
