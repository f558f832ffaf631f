//! One test per way a `model.sharp` can lie.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use sharp_model::packed::{MAX_HEADER, PackedFile};
use sharp_model::{Error, Result};

use crate::packed::{config, sample};
use crate::raw::{complaint, place};

fn open(bytes: &[u8]) -> Result<PackedFile> {
    let (_dir, path) = place("model.sharp");
    fs::write(&path, bytes).unwrap();
    PackedFile::open(&path)
}

/// A file with this header text and `data` bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut out = b"SHARPKD1".to_vec();
    out.extend((header.len() as u64).to_le_bytes());
    out.extend(header.as_bytes());
    out.resize(out.len().next_multiple_of(4096) + data, 0);
    out
}

/// A header with one sound blob: q4x16 of (16, 32), 288 bytes.
fn header() -> Value {
    json!({
        "config": config(),
        "blobs": [{"offset": 0, "len": 288, "format": "q4x16", "rows": 16, "cols": 32}],
        "tensors": {"w": 0},
    })
}

fn refused(header: &Value, data: usize, words: &[&str]) {
    complaint(open(&file(&header.to_string(), data)), "model.sharp", words);
}

/// The sound header with one field of its blob changed.
fn blob(field: &str, value: Value) -> Value {
    let mut h = header();
    h["blobs"][0][field] = value;
    h
}

#[test]
fn the_sound_file_opens() {
    open(&file(&header().to_string(), 288)).unwrap();
}

#[test]
fn a_wrong_magic_is_refused() {
    complaint(open(b"GGUF............"), "model.sharp", &["SHARPKD1"]);
    let error = complaint(open(b"SHARPKD2........"), "model.sharp", &["version"]);
    assert!(matches!(error, Error::Unsupported { .. }));
}

#[test]
fn a_file_too_short_for_a_header_is_refused() {
    for len in 0..16 {
        assert!(open(&b"SHARPKD1\0\0\0\0\0\0\0\0"[..len]).is_err(), "{len}");
    }
}

#[test]
fn a_header_past_the_end_or_the_limit_is_refused() {
    let mut bytes = b"SHARPKD1".to_vec();
    bytes.extend(1000u64.to_le_bytes());
    bytes.extend(b"{}");
    complaint(open(&bytes), "model.sharp", &["1000", "header"]);
    for len in [MAX_HEADER + 1, u64::MAX] {
        bytes[8..16].copy_from_slice(&len.to_le_bytes());
        complaint(open(&bytes), "model.sharp", &[&len.to_string(), "at most"]);
    }
}

#[test]
fn a_header_that_is_no_json_or_lacks_parts_is_refused() {
    for bad in ["", "{", "[]", "null", "\u{0}", "{\"config\": 3}", "{\"blobs\": [], \"tensors\": {}}"] {
        complaint(open(&file(bad, 0)), "model.sharp", &[]);
    }
    let mut deep = "[".repeat(100_000);
    deep.push_str(&"]".repeat(100_000));
    complaint(open(&file(&deep, 0)), "model.sharp", &[]);
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let mut h = header();
    h["config"]["num_hidden_layers"] = json!(0);
    refused(&h, 288, &["num_hidden_layers"]);
    h["config"] = json!({});
    complaint(open(&file(&h.to_string(), 288)), "model.sharp", &[]);
}

#[test]
fn a_plan_that_does_not_fit_the_model_is_refused() {
    let mut h = header();
    h["config"]["sharp_config"] =
        json!({"version": 1, "strategy": "x", "targets": [{"layer": 99, "reference": 0}]});
    assert!(open(&file(&h.to_string(), 288)).is_err());
}

#[test]
fn a_length_that_is_not_the_shapes_is_refused() {
    for len in [0u64, 287, 289, u64::MAX] {
        refused(&blob("len", json!(len)), 288, &["blob 0", &len.to_string(), "288"]);
    }
    refused(&blob("rows", json!(17)), 288, &["blob 0", "576"]);
}

#[test]
fn a_shape_of_zero_or_beyond_counting_is_refused() {
    for bad in [0u64, u64::MAX, 1 << 62] {
        refused(&blob("rows", json!(bad)), 288, &["blob 0"]);
        refused(&blob("cols", json!(bad)), 288, &["blob 0"]);
    }
    for bad in [json!(-1), json!(1.5), json!("16"), json!(null), json!(1e30)] {
        refused(&blob("rows", bad), 288, &[]);
    }
}

#[test]
fn an_unknown_format_is_refused_by_name() {
    refused(&blob("format", json!("q3x16")), 288, &["blob 0", "q3x16"]);
}

#[test]
fn a_misaligned_blob_is_refused() {
    refused(&blob("offset", json!(32)), 288 + 32, &["blob 0", "32", "64"]);
}

#[test]
fn a_blob_past_the_end_is_refused() {
    refused(&blob("offset", json!(64)), 288, &["blob 0", "cut short"]);
    refused(&blob("offset", json!(u64::MAX - 63)), 288, &["blob 0"]);
    refused(&header(), 287, &["blob 0", "cut short"]);
}

#[test]
fn overlapping_blobs_are_refused() {
    let mut h = header();
    let first = h["blobs"][0].clone();
    h["blobs"] = json!([first, first]);
    refused(&h, 288, &["0", "1", "overlap"]);
    h["blobs"][1]["offset"] = json!(256);
    refused(&h, 544, &["overlap"]);
    h["blobs"][1]["offset"] = json!(320);
    open(&file(&h.to_string(), 608)).unwrap();
}

#[test]
fn bytes_after_the_last_blob_are_refused() {
    refused(&header(), 288 + 64, &["64 bytes after"]);
}

#[test]
fn a_tensor_of_no_blob_is_refused() {
    let mut h = header();
    h["tensors"] = json!({"w": 1});
    refused(&h, 288, &["`w`", "blob 1"]);
    h["tensors"] = json!({"w": -1});
    refused(&h, 288, &[]);
}

#[test]
fn a_tensor_named_twice_is_refused() {
    let text = header().to_string().replace(r#"{"w":0}"#, r#"{"w":0,"w":0}"#);
    assert!(text.contains(r#""w":0,"w":0"#));
    complaint(open(&file(&text, 288)), "model.sharp", &["`w`", "twice"]);
}

#[test]
fn a_field_a_blob_does_not_have_is_refused() {
    refused(&blob("ofset", json!(0)), 288, &["ofset"]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (_dir, path) = place("model.sharp");
    sample(&path);
    let whole = fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        assert!(open(&whole[..len]).is_err(), "accepted the first {len} of {} bytes", whole.len());
    }
}

#[test]
fn a_folder_is_no_packed_model() {
    let dir = tempfile::tempdir().unwrap();
    assert!(PackedFile::open(dir.path()).is_err());
    assert!(!PackedFile::is_packed(dir.path()));
    assert!(!PackedFile::is_packed(Path::new("/nowhere")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever bytes of the header are changed, the file is refused or read; nothing panics or reads
    /// outside.
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((0usize..900, any::<u8>()), 1..4)) {
        let mut bytes = file(&header().to_string(), 288);
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(file) = open(&bytes) {
            for (name, _) in file.names() {
                let t = file.tensor(name).unwrap();
                prop_assert_eq!(t.bytes.len(), t.format.nbytes(t.rows, t.cols).unwrap());
            }
        }
    }
}
