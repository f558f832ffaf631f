//! One test per way a GGUF header can lie.

use proptest::prelude::*;
use sharp_model::{DType, Error, TensorSource};

use crate::raw::{Raw, array, complaint, key, open, string, tensor};

fn refused(raw: Raw, words: &[&str]) -> Error {
    complaint(raw.open(), "model.gguf", words)
}

#[test]
fn the_sound_file_opens() {
    for version in [2, 3] {
        let gguf = Raw { version, ..Raw::sound() }.open().unwrap();
        assert_eq!((gguf.version(), gguf.architecture().unwrap()), (version, "llama"));
        let first = gguf.info("first").unwrap();
        assert_eq!((first.dtype, first.shape.as_slice()), (DType::F32, &[2, 4][..]));
        assert_eq!(gguf.f32("second").unwrap(), [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
        assert!(matches!(gguf.bytes("third"), Err(Error::NoTensor { .. })));
    }
}

#[test]
fn every_kind_of_value_is_read() {
    let mut raw = Raw::sound();
    raw.keys.extend([
        key("u8", 0, &[200]),
        key("i8", 1, &[0xFF]),
        key("u16", 2, &[1, 2]),
        key("i16", 3, &[0xFE, 0xFF]),
        key("i32", 5, &(-7i32).to_le_bytes()),
        key("f32", 6, &1e-5f32.to_le_bytes()),
        key("bool", 7, &[1]),
        key("u64", 10, &u64::MAX.to_le_bytes()),
        key("i64", 11, &i64::MIN.to_le_bytes()),
        key("f64", 12, &2.5f64.to_le_bytes()),
        array("bools", 7, 2, &[0, 1]),
        array("texts", 8, 2, &[string("a"), string("")].concat()),
        array("i16s", 3, 2, &[1, 0, 0xFF, 0xFF]),
        array("f32s", 6, 1, &0.5f32.to_le_bytes()),
        array("none", 4, 0, &[]),
    ]);
    let gguf = raw.open().unwrap();
    let signed = |k: &str| gguf.get(k).and_then(|v| v.as_f64()).unwrap();
    assert_eq!(
        [signed("u8"), signed("i8"), signed("u16"), signed("i16"), signed("i32")],
        [200., -1., 513., -2., -7.]
    );
    // As a person wrote it, not as the nearest 32-bit float prints in 64 bits.
    assert_eq!(gguf.float("f32").unwrap(), Some(1e-5));
    assert_eq!(gguf.integer("u64").unwrap(), Some(u64::MAX));
    assert!(gguf.integer("i64").is_err() && gguf.integer("bool").is_err());
    assert_eq!(gguf.strings("texts").unwrap().unwrap(), ["a", ""]);
    assert_eq!(gguf.array("i16s").unwrap().unwrap().as_integers().unwrap(), [1, -1]);
    assert_eq!(gguf.array("f32s").unwrap().unwrap().as_floats().unwrap(), [0.5]);
    assert!(gguf.array("none").unwrap().unwrap().is_empty());
    complaint(gguf.string("u8"), "model.gguf", &["`u8`", "unsigned integer", "a string"]);
}

/// In memory its elements would take eight times as much, and a message for each some minutes.
#[test]
fn arrays_are_kept_as_they_lie_in_the_file() {
    let (numbers, texts) = (1 << 20, 1 << 18);
    let long = "k".repeat(60_000);
    let mut raw = Raw::sound();
    raw.keys.extend([
        array("bytes", 0, numbers, &vec![7; numbers as usize]),
        array("large", 10, 2, &[[0xFF; 8], [0; 8]].concat()),
        array(&long, 8, texts, &vec![0; texts as usize * 8]),
    ]);
    let gguf = raw.open().unwrap();
    assert_eq!(gguf.array("bytes").unwrap().unwrap().as_integers().unwrap(), vec![7; numbers as usize]);
    assert_eq!(gguf.array("bytes").unwrap().unwrap().as_strings(), None);
    let large = gguf.array("large").unwrap().unwrap();
    assert_eq!((large.as_integers(), large.as_floats().unwrap()[1]), (None, 0.0));
    assert_eq!(gguf.strings(&long).unwrap().unwrap(), vec![""; texts as usize]);
}

#[test]
fn an_empty_file_is_refused() {
    complaint(open(&[]), "model.gguf", &["empty"]);
}

#[test]
fn a_wrong_magic_is_refused() {
    refused(Raw { magic: *b"GGML", ..Raw::sound() }, &["not a GGUF file"]);
}

#[test]
fn an_old_or_future_version_is_refused() {
    for version in [0, 1, 4, 77] {
        refused(Raw { version, ..Raw::sound() }, &[&format!("version {version}")]);
    }
}

#[test]
fn a_big_endian_file_is_refused_by_name() {
    refused(Raw { version: 3u32.swap_bytes(), ..Raw::sound() }, &["big-endian"]);
}

#[test]
fn a_tensor_count_beyond_the_file_is_refused() {
    for count in [1 << 20, u64::MAX] {
        refused(Raw { tensor_count: Some(count), ..Raw::sound() }, &[&count.to_string(), "tensors"]);
    }
}

#[test]
fn a_key_count_beyond_the_file_is_refused() {
    for count in [1 << 20, u64::MAX] {
        refused(Raw { key_count: Some(count), ..Raw::sound() }, &[&count.to_string(), "metadata keys"]);
    }
}

#[test]
fn a_count_slightly_too_large_is_refused() {
    // Small enough to pass the quick check: the bytes of tensors are then read as keys, and do not fit.
    let raw = Raw { key_count: Some(2), ..Raw::sound() };
    assert!(raw.open().is_err());
}

#[test]
fn a_string_past_the_end_is_refused() {
    for len in [10_000, u64::MAX] {
        let mut value = len.to_le_bytes().to_vec();
        value.extend(b"short");
        let keys = vec![key("general.name", 8, &value)];
        refused(Raw { keys, ..Raw::sound() }, &["`general.name`", &len.to_string()]);
    }
}

#[test]
fn a_key_name_past_the_limit_is_refused() {
    let mut name = (1u64 << 40).to_le_bytes().to_vec();
    name.extend([0; 64]);
    refused(Raw { keys: vec![name], ..Raw::sound() }, &["metadata key 0", "limit"]);
}

#[test]
fn a_string_that_is_no_utf8_is_refused() {
    let keys = vec![key("general.name", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xC3, 0x28])];
    refused(Raw { keys, ..Raw::sound() }, &["`general.name`", "UTF-8"]);
}

#[test]
fn an_unknown_value_type_is_refused() {
    refused(Raw { keys: vec![key("k", 13, &[])], ..Raw::sound() }, &["`k`", "13"]);
}

#[test]
fn a_truth_value_of_two_is_refused() {
    refused(Raw { keys: vec![key("k", 7, &[2])], ..Raw::sound() }, &["`k`", "2"]);
    refused(Raw { keys: vec![array("k", 7, 3, &[0, 1, 9])], ..Raw::sound() }, &["`k`", "9"]);
}

#[test]
fn an_array_of_arrays_is_refused() {
    let inner = array("inner", 4, 1, &[0; 4]);
    refused(Raw { keys: vec![array("k", 9, 1, &inner)], ..Raw::sound() }, &["`k`", "array of arrays"]);
}

#[test]
fn an_array_of_an_unknown_type_is_refused() {
    refused(Raw { keys: vec![array("k", 42, 1, &[0; 8])], ..Raw::sound() }, &["`k`", "42"]);
}

#[test]
fn an_array_longer_than_the_file_is_refused() {
    refused(Raw { keys: vec![array("k", 10, 1 << 20, &[0; 8])], ..Raw::sound() }, &["`k`", "1048576"]);
    // A length whose product with the element size wraps around.
    refused(Raw { keys: vec![array("k", 10, 1 << 61, &[0; 8])], ..Raw::sound() }, &["`k`", "elements"]);
    refused(Raw { keys: vec![array("k", 8, u64::MAX, &[0; 8])], ..Raw::sound() }, &["`k`", "elements"]);
}

#[test]
fn an_array_of_strings_that_runs_out_is_refused() {
    let elements = [string("one"), 900u64.to_le_bytes().to_vec()].concat();
    refused(Raw { keys: vec![array("k", 8, 2, &elements)], ..Raw::sound() }, &["element 1 of `k`"]);
}

#[test]
fn a_key_given_twice_is_refused() {
    let keys = vec![key("k", 0, &[1]), key("k", 0, &[2])];
    refused(Raw { keys, ..Raw::sound() }, &["`k`", "twice"]);
}

#[test]
fn an_empty_key_is_refused() {
    refused(Raw { keys: vec![key("", 4, &[0; 4])], ..Raw::sound() }, &["key 0", "empty"]);
}

#[test]
fn a_tensor_given_twice_is_refused() {
    let tensors = vec![tensor("w", &[8], 0, 0), tensor("w", &[8], 0, 32)];
    refused(Raw { tensors, ..Raw::sound() }, &["`w`", "twice"]);
}

#[test]
fn a_tensor_without_a_name_is_refused() {
    let tensors = vec![tensor("", &[8], 0, 0)];
    refused(Raw { tensors, ..Raw::sound() }, &["tensor 0", "empty"]);
}

#[test]
fn a_tensor_of_no_or_too_many_dimensions_is_refused() {
    refused(Raw { tensors: vec![tensor("w", &[], 0, 0)], ..Raw::sound() }, &["`w`", "0 dimensions"]);
    refused(Raw { tensors: vec![tensor("w", &[1; 5], 0, 0)], ..Raw::sound() }, &["`w`", "5 dimensions"]);
}

#[test]
fn a_dimension_of_zero_is_refused() {
    refused(Raw { tensors: vec![tensor("w", &[8, 0], 0, 0)], ..Raw::sound() }, &["`w`", "dimension"]);
}

#[test]
fn a_shape_that_overflows_is_refused() {
    let huge = [1 << 32, 1 << 31, 4];
    refused(Raw { tensors: vec![tensor("w", &huge, 0, 0)], ..Raw::sound() }, &["`w`"]);
    // The number of values can be counted, their bytes cannot.
    refused(Raw { tensors: vec![tensor("w", &[1 << 62], 0, 0)], ..Raw::sound() }, &["`w`"]);
}

#[test]
fn an_unknown_tensor_type_is_refused() {
    refused(Raw { tensors: vec![tensor("w", &[8], 9999, 0)], ..Raw::sound() }, &["`w`", "9999"]);
}

#[test]
fn a_tensor_type_this_does_not_read_is_named() {
    let error =
        refused(Raw { tensors: vec![tensor("w", &[256], 11, 0)], ..Raw::sound() }, &["`w`", "Q3_K", "Q4_K"]);
    assert!(matches!(error, Error::Unsupported { .. }));
}

#[test]
fn a_row_of_part_of_a_block_is_refused() {
    refused(Raw { tensors: vec![tensor("w", &[16, 2], 8, 0)], ..Raw::sound() }, &["`w`", "Q8_0", "16"]);
    // Two half super-blocks are none, though together they have as many elements.
    for (kind, name) in [(12, "Q4_K"), (13, "Q5_K"), (14, "Q6_K")] {
        let tensors = vec![tensor("w", &[128, 2], kind, 0)];
        refused(Raw { tensors, ..Raw::sound() }, &["`w`", name, "128", "256"]);
    }
    for (kind, name) in [(6, "Q5_0"), (7, "Q5_1"), (20, "IQ4_NL")] {
        refused(Raw { tensors: vec![tensor("w", &[48], kind, 0)], ..Raw::sound() }, &["`w`", name, "48"]);
    }
}

#[test]
fn a_super_block_that_the_file_does_not_hold_is_refused() {
    refused(Raw { tensors: vec![tensor("w", &[256], 12, 0)], ..Raw::sound() }, &["`w`", "144 bytes"]);
}

#[test]
fn a_misaligned_offset_is_refused() {
    refused(Raw { tensors: vec![tensor("w", &[8], 0, 4)], ..Raw::sound() }, &["`w`", "offset 4", "32"]);
}

#[test]
fn overlapping_tensors_are_refused() {
    let tensors = vec![tensor("a", &[12], 0, 0), tensor("b", &[8], 0, 32)];
    refused(Raw { tensors, ..Raw::sound() }, &["`a`", "`b`", "overlap"]);
    let tensors = vec![tensor("a", &[8], 0, 0), tensor("b", &[8], 0, 0)];
    refused(Raw { tensors, ..Raw::sound() }, &["overlap"]);
}

#[test]
fn an_offset_past_the_end_is_refused() {
    for offset in [96, 1 << 40, !31u64] {
        refused(
            Raw { tensors: vec![tensor("w", &[8], 0, offset)], ..Raw::sound() },
            &["`w`", "after the file"],
        );
    }
}

#[test]
fn an_alignment_that_is_no_power_of_two_is_refused() {
    for bad in [0u32, 3, 48, u32::MAX] {
        let keys = vec![key("general.alignment", 4, &bad.to_le_bytes())];
        refused(Raw { keys, ..Raw::sound() }, &["general.alignment"]);
    }
    refused(
        Raw { keys: vec![key("general.alignment", 8, &string("32"))], ..Raw::sound() },
        &["general.alignment"],
    );
}

#[test]
fn another_alignment_moves_the_data() {
    let keys = vec![key("general.alignment", 4, &64u32.to_le_bytes())];
    let tensors = vec![tensor("w", &[8], 0, 0)];
    let gguf = Raw { keys, tensors, alignment: 64, ..Raw::sound() }.open().unwrap();
    assert_eq!(gguf.f32("w").unwrap()[1], 1.0);
}

#[test]
fn part_of_a_split_file_is_refused_with_advice() {
    let keys = vec![key("split.count", 2, &[3, 0])];
    refused(Raw { keys, ..Raw::sound() }, &["3 parts", "merge"]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = Raw::sound().bytes();
    for len in 0..whole.len() {
        assert!(open(&whole[..len]).is_err(), "accepted the first {len} of {} bytes", whole.len());
    }
    complaint(open(&whole[..whole.len() - 1]), "model.gguf", &["`second`", "cut short"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever single bytes are changed, the file is refused or read; nothing panics or reads outside.
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((0usize..400, any::<u8>()), 1..6)) {
        let mut raw = Raw::sound();
        raw.keys.push(array("texts", 8, 2, &[string("a"), string("bc")].concat()));
        raw.tensors.push(tensor("q", &[32, 1], 8, 64));
        raw.data.extend([0; 34]);
        let mut bytes = raw.bytes();
        let len = bytes.len();
        for (at, value) in changes {
            bytes[at % len] = value;
        }
        if let Ok(gguf) = open(&bytes) {
            for info in gguf.tensors() {
                prop_assert_eq!(gguf.f32(&info.name).unwrap().len(), info.elements().unwrap());
            }
        }
    }
}
