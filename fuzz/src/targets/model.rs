//! Files of a model: weights, shape and plan.

use std::fs;
use std::path::Path;

use sharp_model::gguf::Gguf;
use sharp_model::packed::PackedFile;
use sharp_model::{HfCheckpoint, ModelConfig, ModelSource, Plan, TensorSource};

use crate::seeds::golden;
use crate::target::{Place, Target};
use crate::targets::tokens::exercise;

/// Of each tensor's values, at most so many are read.
const MOST_VALUES: usize = 1 << 16;

pub(crate) const GGUF: Target =
    Target { name: "gguf", file: "model.gguf", longest: 1 << 17, prepare: |_| {}, run: gguf };

/// The header, the vocabulary as a tokenizer, the configuration, and some of the weights.
fn gguf(place: &Place<'_>) {
    let Ok(file) = Gguf::open(&place.file) else { return };
    for (_, value) in file.metadata() {
        let _ = (value.as_u64(), value.as_f64(), value.as_str(), value.as_array());
    }
    read_some(&file);
    let _ = sharp_model::gguf::tokenizer_json(&file);
    let _ = sharp_model::gguf::tokenizer_config_json(&file);
    if let Ok(model) = ModelSource::open(&place.file) {
        let _ = model.stored_tensors();
        if let Ok(Some(tokenizer)) = model.tokenizer() {
            exercise(&tokenizer);
        }
    }
}

pub(crate) const SAFETENSORS: Target = Target {
    name: "safetensors",
    file: "model.safetensors",
    longest: 1 << 17,
    prepare: |_| {},
    run: |place| {
        if let Ok(file) = HfCheckpoint::open(&place.file) {
            read_some(&file);
        }
    },
};

pub(crate) const INDEX: Target = Target {
    name: "index",
    file: "model.safetensors.index.json",
    longest: 1 << 16,
    prepare: beside_the_index,
    run: |place| {
        if let Ok(checkpoint) = HfCheckpoint::open(place.folder) {
            let inside = checkpoint.files().all(|file| file.parent() == Some(place.folder));
            assert!(inside, "a shard outside the folder: {:?}", checkpoint.files().collect::<Vec<_>>());
            read_some(&checkpoint);
        }
    },
};

/// Puts the shard that the index's seed names beside it.
fn beside_the_index(folder: &Path) {
    let shard = golden("similarity/model.safetensors");
    fs::write(folder.join("model-00001-of-00001.safetensors"), shard).expect("a file in a new folder");
}

pub(crate) const PACKED: Target =
    Target { name: "packed", file: "model.sharp", longest: 1 << 17, prepare: |_| {}, run: packed };

fn packed(place: &Place<'_>) {
    let Ok(file) = PackedFile::open(&place.file) else { return };
    let names: Vec<String> = file.names().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        if let Ok(tensor) = file.tensor(&name)
            && tensor.rows * tensor.cols <= MOST_VALUES
        {
            let _ = tensor.f32();
        }
    }
    if let Ok(tokenizer) = file.tokenizer() {
        exercise(&tokenizer);
    }
    let _ = ModelSource::open(&place.file);
}

pub(crate) const CONFIG: Target = Target {
    name: "config",
    file: "config.json",
    longest: 1 << 16,
    prepare: |_| {},
    run: |place| {
        let Ok(config) = ModelConfig::load(place.folder) else { return };
        let text = serde_json::to_string(&config.to_json()).expect("a map of texts and numbers");
        let again = ModelConfig::from_json(&text).expect("a configuration that was written");
        assert_eq!(again.to_json(), config.to_json(), "read again, it is another");
        let _ = config.layer_kind(0);
    },
};

pub(crate) const PLAN: Target = Target {
    name: "plan",
    file: "plan.toml",
    longest: 1 << 16,
    prepare: |_| {},
    run: |place| {
        let Ok(plan) = Plan::load(&place.file) else { return };
        let again = Plan::from_toml(&place.file, &plan.to_toml()).expect("a plan that was written");
        assert_eq!(again.to_toml(), plan.to_toml(), "read again, it is another");
        let config = ModelConfig::llama(32, 64, 6, 4, 2, 40).expect("a sound shape");
        let _ = plan.validate(&config);
    },
};

/// Reads the values of the first tensors.
fn read_some(source: &dyn TensorSource) {
    for info in source.tensors().into_iter().take(16) {
        let Ok(tensor) = source.tensor(&info.name) else { continue };
        if info.elements().is_ok_and(|n| n <= MOST_VALUES) {
            let _ = tensor.f32();
        }
    }
}
