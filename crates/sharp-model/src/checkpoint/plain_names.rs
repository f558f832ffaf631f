//! Names of tensors as wrappers leave them, read as the model's own.
//!
//! `torch.compile`, distributed training and merged adapters save a model under longer names. A tied pair may
//! have been saved under the head's name alone, which is what safetensors' removal of shared tensors leaves.

use std::collections::BTreeMap;

use super::hf::HfCheckpoint;
use crate::names;

/// Parts of a name that wrappers put anywhere in it.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// What all names begin with where a whole model is wrapped.
const PREFIXES: [&str; 3] = ["module.", "base_model.model.", "language_model."];

impl HfCheckpoint {
    /// The checkpoint with its tensors under a model's own names. `tied`: whether head and embedding are one.
    ///
    /// Names that would meet stay as they are: what is missing then is an error.
    pub(crate) fn under_plain_names(mut self, tied: bool) -> Self {
        let mut plain: BTreeMap<String, String> =
            self.place.keys().map(|name| (name.clone(), without_wrappers(name))).collect();
        while let Some(prefix) = PREFIXES.iter().find(|p| plain.values().all(|name| name.starts_with(**p))) {
            if plain.is_empty() {
                break;
            }
            for name in plain.values_mut() {
                name.drain(..prefix.len());
            }
        }
        let has = |wanted: &str| plain.values().any(|name| name == wanted);
        if tied && has(names::LM_HEAD) && !has(names::EMBED) {
            for name in plain.values_mut().filter(|name| *name == names::LM_HEAD) {
                *name = names::EMBED.to_owned();
            }
        }
        let mut place = BTreeMap::new();
        for (stored, entry) in &self.place {
            if place.insert(plain[stored].clone(), entry.clone()).is_some() {
                return self;
            }
        }
        self.place = place;
        self
    }
}

fn without_wrappers(name: &str) -> String {
    name.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}
