//! `model.sharp`: what is written is read back, shared blobs are shared, a failed write leaves the old file.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use sharp_model::gguf::{Gguf, tokenizer_config_json, tokenizer_json};
use sharp_model::packed::{BlobFormat, PackedFile, PackedWriter};
use sharp_model::{Error, ModelConfig, Plan};
use sharp_progress::Silent;
use sharp_quant::PackedFormat;

use crate::golden;
use crate::raw::{complaint, place};

pub(crate) const Q4: BlobFormat = BlobFormat::Packed(PackedFormat::Q4);
pub(crate) const Q8: BlobFormat = BlobFormat::Packed(PackedFormat::Q8);
pub(crate) const F16: BlobFormat = BlobFormat::Packed(PackedFormat::F16);

pub(crate) fn config() -> Map<String, Value> {
    ModelConfig::llama(32, 64, 3, 4, 2, 40).unwrap().to_json()
}

/// Bytes that differ from blob to blob.
fn bytes_of(blob: usize, len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(move |i| (i * 7 + blob * 31 + i / 251) as u8)
}

fn write(writer: PackedWriter, path: &Path, lens: &[usize]) -> sharp_model::Result<()> {
    writer.write(path, &Silent, |id, out| {
        out.extend(bytes_of(id.index(), lens[id.index()]));
        Ok(())
    })
}

/// Two MLP matrices, a norm, and layer 2 using layer 1's matrix.
pub(crate) fn sample(path: &Path) -> Vec<usize> {
    let mut w = PackedWriter::new(config());
    let shapes = [(Q4, 64, 32), (Q8, 17, 33), (BlobFormat::F32, 1, 32), (F16, 40, 32)];
    let mut lens = Vec::new();
    for (i, (format, rows, cols)) in shapes.into_iter().enumerate() {
        let id = w.blob(format, rows, cols).unwrap();
        w.name(format!("blob.{i}"), id).unwrap();
        lens.push(format.nbytes(rows, cols).unwrap());
        if i == 0 {
            w.name("alias.0", id).unwrap();
        }
    }
    w.recipe(json!({"all": "q4"}));
    write(w, path, &lens).unwrap();
    lens
}

#[test]
fn what_is_written_is_read_back() {
    let (_dir, path) = place("model.sharp");
    let lens = sample(&path);
    assert!(PackedFile::is_packed(&path));
    let file = PackedFile::open(&path).unwrap();
    assert_eq!(file.config().num_hidden_layers, 3);
    assert!(file.plan().is_none());
    assert_eq!(file.recipe()["all"], "q4");
    assert_eq!(file.names().count(), 5);
    for (i, &len) in lens.iter().enumerate() {
        let tensor = file.tensor(&format!("blob.{i}")).unwrap();
        assert!(tensor.bytes.iter().copied().eq(bytes_of(i, len)), "blob {i}");
        assert_eq!(tensor.bytes.as_ptr() as usize % 64, 0, "blob {i} is not aligned");
    }
    let (rows, cols) = (file.tensor("blob.1").unwrap().rows, file.tensor("blob.1").unwrap().cols);
    assert_eq!((rows, cols), (17, 33));
    complaint(file.tensor("blob.9"), "model.sharp", &["blob.9"]);
    complaint(file.tokenizer(), "model.sharp", &["no tokenizer"]);
}

#[test]
fn an_alias_is_the_same_memory_and_no_more_disk() {
    let (_dir, path) = place("model.sharp");
    let lens = sample(&path);
    let file = PackedFile::open(&path).unwrap();
    let (a, b) = (file.tensor("blob.0").unwrap(), file.tensor("alias.0").unwrap());
    assert_eq!(a.blob, b.blob);
    assert_eq!(a.bytes.as_ptr(), b.bytes.as_ptr());
    let padded: usize = lens[..3].iter().map(|l| l.next_multiple_of(64)).sum::<usize>() + lens[3];
    let header = u64::from_le_bytes(fs::read(&path).unwrap()[8..16].try_into().unwrap()) as usize;
    assert_eq!(fs::metadata(&path).unwrap().len() as usize, (16 + header).next_multiple_of(4096) + padded);
}

#[test]
fn the_tokenizer_and_the_plan_travel_along() {
    let (_dir, path) = place("model.sharp");
    let gguf = Gguf::open(golden("gguf/qwen2/model.gguf")).unwrap();
    let mut with_plan = config();
    let target = "layer = 2\nreference = 1\nform = \"none\"\nranks = { gate = 0, up = 0, down = 0 }\nreason = \"test\"";
    let text = format!("version = 1\nstrategy = \"explicit\"\n[[targets]]\n{target}\n");
    let plan = Plan::from_toml(Path::new("plan.toml"), &text).unwrap();
    for (k, v) in ModelConfig::from_map(Path::new("x"), with_plan.clone()).unwrap().to_json_with_plan(&plan) {
        with_plan.insert(k, v);
    }
    let mut w = PackedWriter::new(with_plan);
    w.tokenizer(tokenizer_json(&gguf).unwrap().to_string(), tokenizer_config_json(&gguf).unwrap());
    write(w, &path, &[]).unwrap();
    let file = PackedFile::open(&path).unwrap();
    assert_eq!(file.plan().unwrap().treatment(2).unwrap().reference(), Some(1));
    let tokenizer = file.tokenizer().unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode("The layer", false).unwrap()).unwrap(), "The layer");
    assert!(tokenizer.chat_template().is_some());
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let (dir, path) = place("model.sharp");
    sample(&path);
    let before = fs::read(&path).unwrap();
    let writer = || {
        let mut w = PackedWriter::new(config());
        let id = w.blob(Q4, 16, 32).unwrap();
        w.name("x", id).unwrap();
        w
    };
    // Too few bytes, too many, and a source that fails.
    complaint(write(writer(), &path, &[287]), "model.sharp", &["288", "287"]);
    complaint(write(writer(), &path, &[289]), "model.sharp", &["288", "289"]);
    let failed = writer().write(&path, &Silent, |_, _| Err(Error::no_tensor("origin", "lost")));
    assert!(matches!(failed, Err(Error::NoTensor { .. })), "{failed:?}");
    assert!(before == fs::read(&path).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left behind");
}

#[test]
fn names_and_shapes_are_checked_when_declared() {
    let mut w = PackedWriter::new(config());
    let id = w.blob(Q4, 16, 32).unwrap();
    w.name("x", id).unwrap();
    complaint(w.name("x", id), "", &["`x`", "twice"]);
    let foreign = {
        let mut other = PackedWriter::new(config());
        other.blob(Q4, 1, 1).unwrap();
        other.blob(Q4, 1, 1).unwrap()
    };
    complaint(w.name("y", foreign), "", &["`y`"]);
    for format in [Q4, Q8, F16, BlobFormat::F32] {
        assert!(w.blob(format, 0, 4).is_err() && w.blob(format, 4, 0).is_err());
        assert!(
            w.blob(format, usize::MAX, 2).is_err() && w.blob(format, usize::MAX / 2, usize::MAX / 2).is_err()
        );
        assert_eq!(format.name().parse::<BlobFormat>().unwrap(), format);
    }
    assert!("q5x16".parse::<BlobFormat>().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Any set of blobs under any aliases comes back, aligned and in place.
    #[test]
    fn any_model_survives(
        shapes in prop::collection::vec((0usize..4, 1usize..50, 1usize..100), 0..8),
        aliases in prop::collection::vec((0usize..8, "[a-z.\"\\\\é]{1,12}"), 0..12),
    ) {
        let (_dir, path) = place("model.sharp");
        let mut w = PackedWriter::new(config());
        let (mut ids, mut lens, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for &(f, rows, cols) in &shapes {
            let format = [BlobFormat::F32, Q4, Q8, F16][f];
            ids.push(w.blob(format, rows, cols).unwrap());
            lens.push(format.nbytes(rows, cols).unwrap());
        }
        for (i, name) in aliases {
            if let Some(&id) = ids.get(i)
                && w.name(name.clone(), id).is_ok()
            {
                names.push((name, i));
            }
        }
        write(w, &path, &lens).unwrap();
        let file = PackedFile::open(&path).unwrap();
        prop_assert_eq!(file.names().count(), names.len());
        for (name, i) in names {
            let t = file.tensor(&name).unwrap();
            prop_assert_eq!((t.blob, t.rows, t.cols), (i, shapes[i].1, shapes[i].2));
            prop_assert!(t.bytes.iter().copied().eq(bytes_of(i, lens[i])));
            prop_assert_eq!(t.matrix().unwrap().is_none(), shapes[i].0 == 0);
        }
    }
}
