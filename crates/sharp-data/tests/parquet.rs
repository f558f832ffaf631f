//! Parquet files of another writer, beside the same rows as JSON lines, and such files damaged.

#![cfg(feature = "parquet")]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sharp_data::{Chat, DataSpec, Document, Documents, Result, Task, View, read};

const ALL: [View; 5] = [View::Auto, View::Text, View::Completion, View::Messages, View::Passage];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/parquet").join(name)
}

fn chat() -> Chat {
    let template = "{% for m in messages %}<{{ m.role }}{{ '!' if m.name is defined }}>{{ m.content }}</s>{% endfor %}\
                    {% if add_generation_prompt %}<assistant>{% endif %}";
    Chat::new(template, serde_json::Map::new()).unwrap()
}

fn all(path: &Path, view: View, limit: Option<usize>) -> Result<Vec<Document>> {
    read(&DataSpec::new(path).with_view(view).with_limit(limit), Some(&chat()))
}

/// What was wrong, without the name of the file and the place in it.
fn reason(result: Result<Vec<Document>>) -> String {
    let said = result.unwrap_err().to_string();
    said.rsplit_once(": ").map_or(said.clone(), |(_, what)| what.to_owned())
}

#[test]
fn the_documents_are_those_of_the_same_rows_as_json_lines() {
    let mut cases = 0;
    for entry in std::fs::read_dir(golden("")).unwrap() {
        let json = entry.unwrap().path();
        if json.extension().is_none_or(|e| e != "jsonl") {
            continue;
        }
        cases += 1;
        let parquet = json.with_extension("parquet");
        for view in ALL {
            match all(&json, view, None) {
                Ok(docs) => {
                    assert!(!docs.is_empty());
                    assert_eq!(all(&parquet, view, None).unwrap(), docs, "{} as {view}", parquet.display());
                    assert_eq!(all(&parquet, view, Some(2)).unwrap(), docs[..docs.len().min(2)]);
                }
                Err(_) => assert!(all(&parquet, view, None).is_err(), "{} as {view}", parquet.display()),
            }
        }
    }
    assert_eq!(cases, 9);
}

#[test]
fn what_a_row_lacks_is_said_as_of_a_json_line() {
    let (parquet, json) = (golden("null_text.parquet"), golden("null_text.jsonl"));
    for view in [View::Auto, View::Text] {
        assert_eq!(reason(all(&parquet, view, None)), reason(all(&json, view, None)));
    }
    let said = all(&parquet, View::Text, None).unwrap_err().to_string();
    assert!(said.contains("null_text.parquet: row 2: \"text\" is null"), "{said}");
    // The row before it is a document all the same.
    let spec = DataSpec::new(&parquet);
    let mut docs = Documents::open(&spec, None).unwrap();
    assert_eq!(docs.next().unwrap().unwrap(), Document::text("a"));
    assert!(docs.next().unwrap().is_err());
    assert!(docs.next().is_none());
}

#[test]
fn columns_that_do_not_fit_are_named() {
    for (name, view, expected) in [
        ("other_columns.parquet", View::Auto, "\"messages\""),
        ("other_columns.parquet", View::Text, "\"text\""),
        ("other_columns.parquet", View::Passage, "\"passage\""),
    ] {
        let said = all(&golden(name), view, None).unwrap_err().to_string();
        assert!(said.contains(name) && said.contains(expected), "{said}");
        assert!(said.contains("\"txt\", \"Text\", \"score\""), "{said}");
    }
    let said = all(&golden("text_snappy.parquet"), View::Completion, None).unwrap_err().to_string();
    assert!(said.contains("\"completion\"; its columns are \"id\", \"text\""), "{said}");
    for (name, has, known) in [
        ("brotli", "BROTLI", "Snappy"),
        ("delta", "DELTA_BYTE_ARRAY", "PLAIN"),
        ("lengths", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"),
    ] {
        let said = all(&golden(&format!("{name}.parquet")), View::Auto, None).unwrap_err().to_string();
        assert!(said.contains(has) && said.contains(known), "{said}");
    }
    let said = Task::load(&golden("requests.parquet"), "t", None).unwrap_err().to_string();
    assert!(said.contains("requests.parquet"), "{said}");
}

#[test]
fn a_file_is_known_by_its_first_bytes_or_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.bin");
    std::fs::copy(golden("text_snappy.parquet"), &path).unwrap();
    assert_eq!(
        all(&path, View::Auto, None).unwrap(),
        all(&golden("text_snappy.jsonl"), View::Auto, None).unwrap()
    );
    for (bytes, want) in
        [(&b"{\"text\": 1}"[..], "is no sound Parquet file"), (b"", "is no sound Parquet file")]
    {
        let path = dir.path().join("not.parquet");
        std::fs::write(&path, bytes).unwrap();
        let said = all(&path, View::Auto, None).unwrap_err().to_string();
        assert!(said.contains("not.parquet") && said.contains(want), "{said}");
    }
    assert!(all(&dir.path().join("none.parquet"), View::Auto, None).is_err());
}

#[test]
fn a_giant_page_is_refused_before_it_fills_the_memory() {
    assert!(std::fs::metadata(golden("giant.parquet")).unwrap().len() < 20_000);
    let said = all(&golden("giant.parquet"), View::Auto, None).unwrap_err().to_string();
    assert!(said.contains("giant.parquet") && said.contains("longer than 16777216 bytes"), "{said}");
}

/// A list of 2,147,483,647 truth values in five bytes, as a field of the footer that nobody knows.
#[test]
fn a_list_that_claims_more_than_its_bytes_is_refused() {
    let sound = std::fs::read(golden("text_plain.parquet")).unwrap();
    let end = sound.len() - 8;
    let length = u32::from_le_bytes(*sound[end..].first_chunk().unwrap()) as usize;
    // In the place of the byte that ends the footer: field 15, a list, its length, the end.
    for list in [&[0x09, 0x1e, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0][..], &[0x09, 0x1e, 0x21, 1, 2, 0]] {
        let mut file = sound[..end - 1].to_vec();
        file.extend(list);
        file.extend(((length - 1 + list.len()) as u32).to_le_bytes());
        file.extend(b"PAR1");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.parquet");
        std::fs::write(&path, file).unwrap();
        let said = all(&path, View::Auto, None).unwrap_err().to_string();
        assert!(said.contains("list.parquet") && said.contains("is damaged"), "{said}");
    }
}

#[test]
fn columns_nested_deeper_than_a_stack_are_refused() {
    // The footer by hand, in Thrift's compact protocol: a root, groups that hold one group each, a column of
    // bytes.
    let number = |mut n: u64| {
        let mut bytes = Vec::new();
        while n >= 0x80 {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    let dir = tempfile::tempdir().unwrap();
    for (groups, want) in [(3, "holds no documents"), (200_000, "nested deeper than 16 levels")] {
        let mut schema = vec![0x48, 1, b's', 0x15, 2, 0];
        for i in 0..groups {
            let name: &[u8] = if i == 0 { b"text" } else { b"g" };
            schema.extend([0x35, 0, 0x18, name.len() as u8]);
            schema.extend(name);
            schema.extend([0x15, 2, 0]);
        }
        schema.extend([0x15, 12, 0x25, 0, 0x18, 1, b'x', 0]);
        let footer =
            [&[0x15, 2, 0x19, 0xfc][..], &number(groups + 2), &schema, &[0x16, 0, 0x19, 0x0c, 0]].concat();
        let file = [b"PAR1", &footer[..], &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat();
        let path = dir.path().join("deep.parquet");
        std::fs::write(&path, file).unwrap();
        let said = all(&path, View::Auto, None).unwrap_err().to_string();
        assert!(said.contains("deep.parquet") && said.contains(want), "{groups}: {said}");
    }
}

#[test]
fn a_cut_file_is_an_error_wherever_it_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["text_snappy.parquet", "messages_zstd.parquet"] {
        let whole = std::fs::read(golden(name)).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            let path = dir.path().join(name);
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(all(&path, View::Auto, None).is_err(), "{name} cut at {cut}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_damage_makes_a_reader_panic(
        name in prop_oneof![Just("text_snappy"), Just("text_plain"), Just("text_large"), Just("pairs_zstd"),
            Just("messages_gzip"), Just("messages_zstd"), Just("requests")],
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = std::fs::read(golden(&format!("{name}.parquet"))).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        std::fs::write(&path, bytes).unwrap();
        for view in ALL {
            let _ = all(&path, view, None);
        }
    }
}
