//! Sound inputs to begin with, from the files that the tests hold and small ones made here.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sharp_infer::{Recipe, Synthetic, quantize, synth_tokenizer};
use sharp_model::gguf::GgufWriter;
use sharp_model::{ModelConfig, Plan};
use sharp_progress::Silent;
use sharp_quant::Team;

use crate::target::Target;

/// Returns the path of a file of tests/golden.
fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// Reads a file of tests/golden.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path = golden_path(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads the files of these names in every folder of a folder of tests/golden.
fn in_folders(folder: &str, names: &[&str]) -> Vec<Vec<u8>> {
    let path = golden_path(folder);
    let mut found: Vec<PathBuf> = fs::read_dir(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .flat_map(|entry| {
            let entry = entry.expect("an entry of a folder").path();
            names.iter().map(move |name| entry.join(name))
        })
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found.iter().map(|path| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).collect()
}

/// Returns the inputs that a target begins with, none longer than the target's longest.
pub fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let mut all = match target.name {
        "gguf" => gguf(),
        "safetensors" => in_folders("hf_llama", &["model.safetensors"]),
        "index" => vec![index()],
        "packed" => vec![packed("q4"), packed("q8")],
        "config" => configs(),
        "plan" => plans(),
        "tokenizer" => tokenizers(),
        "tokenizer-settings" => {
            in_folders("tokenizer_files", &["tokenizer_config.json", "added_tokens.json"])
        }
        "template" => templates(),
        "parquet" => all_of("parquet", "parquet"),
        "json-lines" => json_lines(),
        "text" | "articles" => texts(),
        "request" => requests(),
        other => unreachable!("no seeds for {other}"),
    };
    all.retain(|seed| seed.len() <= target.longest);
    assert!(!all.is_empty(), "{} has no seed that is short enough", target.name);
    all
}

/// Reads every file of an ending in a folder of tests/golden.
fn all_of(folder: &str, ending: &str) -> Vec<Vec<u8>> {
    let path = golden_path(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .map(|entry| entry.expect("an entry of a folder").path())
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .collect();
    files.sort();
    files.iter().map(|path| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).collect()
}

/// Reads a file that was written below.
fn written(write: impl FnOnce(&std::path::Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder for seeds");
    let path = folder.path().join("seed");
    write(&path);
    fs::read(&path).expect("a seed that was written")
}

/// A header of metadata alone is short, so that mutations meet it; files with weights beside it.
fn gguf() -> Vec<Vec<u8>> {
    let small = |kind: &str, pre: Option<&str>| {
        let mut file = GgufWriter::new();
        file.string("general.architecture", "llama");
        file.string("tokenizer.ggml.model", kind);
        if let Some(pre) = pre {
            file.string("tokenizer.ggml.pre", pre);
        }
        let tokens = ["<unk>", "a", "b", "ab", "▁", "<s>", "<0x0A>"].map(String::from);
        file.strings("tokenizer.ggml.tokens", &tokens);
        file.strings("tokenizer.ggml.merges", &["a b".to_owned()]);
        file.f32s("tokenizer.ggml.scores", &[0.0, -1.0, -2.0, -3.0, -4.0, 0.0, 0.0]);
        file.i32s("tokenizer.ggml.token_type", &[2, 1, 1, 1, 1, 3, 6]);
        file.u32("tokenizer.ggml.bos_token_id", 5);
        file.u32("tokenizer.ggml.unknown_token_id", 0);
        file.bool("tokenizer.ggml.add_bos_token", true);
        file.string("tokenizer.chat_template", "{{ messages[0].content }}");
        written(|path| {
            file.write(path, |_, _| Ok(())).expect("a file without tensors");
        })
    };
    let mut all = vec![small("llama", None), small("gpt2", Some("llama-bpe")), small("gpt2", Some("qwen2"))];
    all.extend(in_folders("gguf", &["model.gguf"]));
    all.extend(all_of("gguf_families", "gguf"));
    all
}

fn index() -> Vec<u8> {
    let shard = golden("similarity/model.safetensors");
    let length = u64::from_le_bytes(*shard.first_chunk().expect("a length")) as usize;
    let header: Value = serde_json::from_slice(&shard[8..8 + length]).expect("a header");
    let names = header.as_object().expect("an object").keys().filter(|name| *name != "__metadata__");
    let map: serde_json::Map<String, Value> =
        names.map(|name| (name.clone(), json!("model-00001-of-00001.safetensors"))).collect();
    json!({"metadata": {"total_size": shard.len()}, "weight_map": map}).to_string().into_bytes()
}

fn packed(recipe: &str) -> Vec<u8> {
    let config = ModelConfig::llama(16, 32, 1, 2, 1, 272).expect("a sound shape");
    let source = Synthetic::in_memory(&config, None, 5).expect("a sound shape");
    let recipe = Recipe::load(recipe).expect("a known recipe");
    let team = Team::new(1).expect("one thread");
    written(|path| drop(quantize(&source, &recipe, path, &team, &Silent).expect("a packed model")))
}

fn configs() -> Vec<Vec<u8>> {
    let mut all = all_of("hf_config", "json");
    all.extend(in_folders("hf_families", &["config.json"]));
    all.extend(in_folders("hf_llama", &["config.json"]));
    let config = ModelConfig::llama(32, 64, 6, 4, 2, 40).expect("a sound shape");
    let text = String::from_utf8(golden("plan/v1.toml")).expect("a plan is text");
    let plan = Plan::from_toml("plan.toml".as_ref(), &text).expect("a sound plan");
    all.push(Value::Object(config.to_json_with_plan(&plan)).to_string().into_bytes());
    all
}

fn plans() -> Vec<Vec<u8>> {
    let more = "version = 1\nmodel_layers = 6\n\n[[targets]]\nlayer = 2\nreference = 1\nform = \"none\"\n\n\
                [[targets]]\nlayer = 3\nform = \"pruned\"\nneurons = 16\n\n[[targets]]\nlayer = 4\nform = \"drop\"\n";
    vec![golden("plan/v1.toml"), more.into()]
}

/// Small tokenizers of every model, normaliser, pre-tokenizer and decoder that `tokenizers` knows, and those
/// of the tests.
fn tokenizers() -> Vec<Vec<u8>> {
    let vocab = json!({"a": 0, "b": 1, "ab": 2, "<unk>": 3, "▁": 4});
    let models = [
        json!({"type": "BPE", "vocab": vocab, "merges": [["a", "b"]], "unk_token": "<unk>", "byte_fallback": true}),
        json!({"type": "WordPiece", "vocab": vocab, "unk_token": "<unk>",
               "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}),
        json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}),
        json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["▁a", -2.0]], "byte_fallback": false}),
    ];
    let normalizers = [
        json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, {"type": "Prepend", "prepend": "▁"}]}),
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
        json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAABhAGIA"}),
        json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}),
    ];
    let pre_tokenizers = [
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
            {"type": "Split", "pattern": {"Regex": "\\s+(?!\\S)|\\s+"}, "behavior": "Isolated", "invert": false},
            {"type": "FixedLength", "length": 5}]}),
        json!({"type": "Punctuation", "behavior": "MergedWithNext"}),
    ];
    let decoders = [
        json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}),
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
    ];
    let parts = models.into_iter().zip(normalizers).zip(pre_tokenizers.into_iter().zip(decoders));
    let small = parts.map(|((model, normalizer), (pre_tokenizer, decoder))| {
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [{"id": 5, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
            "decoder": decoder, "model": model,
        })
    });
    let mut all: Vec<Vec<u8>> = small.map(|json| json.to_string().into_bytes()).collect();
    all.extend(synth_tokenizer(272).map(|(text, _)| text.into_bytes()));
    all.push(golden("data/tokenizer.json"));
    all
}

fn templates() -> Vec<Vec<u8>> {
    let cases: Value = serde_json::from_slice(&golden("data/cases.json")).expect("JSON");
    let more: Value = serde_json::from_slice(&golden("templates/cases.json")).expect("JSON");
    let named = cases["templates"].as_object().expect("templates by name").values();
    let whole =
        more["whole"].as_array().expect("whole templates").iter().filter_map(|case| case.get("template"));
    named.chain(whole).filter_map(Value::as_str).map(|text| text.as_bytes().to_vec()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(bytes).expect("memory takes all");
    packed.finish().expect("memory takes all")
}

fn json_lines() -> Vec<Vec<u8>> {
    let mut all = all_of("parquet", "jsonl");
    all.push(b"[\n  {\"text\": \"a\"},\n  {\"text\": \"b\"}\n]\n".to_vec());
    all.push(
        b"{\"prompt\": \"a\", \"completion\": \"b\", \"score\": NaN}\n{\"text\": \"cut \\ud83d\"}\n".to_vec(),
    );
    all.push(gzip(b"{\"text\": \"packed\"}\n"));
    all
}

fn texts() -> Vec<Vec<u8>> {
    let text = b"\n = Title = \n\nThe first paragraph.\n\nThe second,\r\nof two lines.\n = = Section = = \n\nMore.\n";
    vec![text.to_vec(), gzip(text), "\u{feff}With a mark.\n".into()]
}

/// Bodies after the byte that says which route they go to.
fn requests() -> Vec<Vec<u8>> {
    let bodies = [
        (
            0,
            json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "stream": true,
                   "stream_options": {"include_usage": true}, "stop": ["a", "bc"]}),
        ),
        (
            0,
            json!({"messages": [{"role": "system", "content": [{"type": "text", "text": "x"}]},
                   {"role": "user", "content": "y"}], "n": 2, "logprobs": true, "top_logprobs": 2, "max_tokens": 2}),
        ),
        (1, json!({"prompt": ["a", "b"], "max_tokens": 2, "logprobs": 1, "echo": true, "seed": 1})),
        (1, json!({"prompt": [1, 2, 3], "temperature": 0, "logit_bias": {"5": -100}, "best_of": 1})),
        (2, json!({"prompt": "some text", "add_special_tokens": true})),
        (3, json!({"tokens": [66, 67]})),
    ];
    let mut all: Vec<Vec<u8>> = bodies
        .into_iter()
        .map(|(route, body)| [vec![route], body.to_string().into_bytes()].concat())
        .collect();
    let packed = gzip(br#"{"prompt": "a", "max_tokens": 1}"#);
    all.push([vec![1], packed].concat());
    all
}
