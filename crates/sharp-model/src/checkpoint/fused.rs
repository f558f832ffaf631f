//! Checkpoints that store several projections as one tensor, seen as if each were stored by itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::hf::HfCheckpoint;
use crate::checkpoint::source::{TensorBytes, TensorInfo, TensorSource};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::family::FUSED;
use crate::tensors;

/// A checkpoint whose fused tensors are cut along their rows. Nothing is copied.
#[derive(Debug)]
struct Split {
    base: HfCheckpoint,
    /// By the part's name.
    parts: BTreeMap<String, Part>,
}

#[derive(Debug)]
struct Part {
    /// The fused tensor.
    of: String,
    info: TensorInfo,
    /// Bytes of the fused tensor.
    bytes: Range<usize>,
}

/// The checkpoint as it is, or with its fused tensors ([`FUSED`]) cut apart.
///
/// # Errors
/// [`Error::Shape`] for a fused tensor that is not its parts one below the other.
pub(crate) fn split(config: &ModelConfig, base: HfCheckpoint) -> Result<Arc<dyn TensorSource>> {
    let shapes: BTreeMap<String, Vec<usize>> = tensors::tensors_of(config, sharp_quant::DType::F32)
        .into_iter()
        .map(|(_, _, info)| (info.name, info.shape))
        .collect();
    let mut parts = BTreeMap::new();
    for layer in 0..config.num_hidden_layers {
        let named = |pattern: &str| pattern.replace("{}", &layer.to_string());
        for (fused, into) in FUSED {
            let fused = named(fused);
            let Some(found) = base.info(&fused) else { continue };
            let names: Vec<String> = into.iter().map(|n| named(n)).collect();
            // The parts are matrices that every model has.
            let rows: usize = names.iter().map(|name| shapes[name][0]).sum();
            let columns = shapes[&names[0]][1];
            if found.shape != [rows, columns] {
                return Err(Error::shape(base.path(), fused, &[rows, columns], &found.shape));
            }
            let row = columns * found.dtype.block_bytes();
            let mut begin = 0;
            for name in names {
                let shape = shapes[&name].clone();
                let end = begin + shape[0] * row;
                let info = TensorInfo { name: name.clone(), dtype: found.dtype, shape };
                parts.insert(name, Part { of: fused.clone(), info, bytes: begin..end });
                begin = end;
            }
        }
    }
    if parts.is_empty() {
        return Ok(Arc::new(base));
    }
    Ok(Arc::new(Split { base, parts }))
}

impl TensorSource for Split {
    fn path(&self) -> &Path {
        self.base.path()
    }

    fn names(&self) -> Vec<String> {
        let is_fused = |name: &String| self.parts.values().any(|p| p.of == *name);
        let kept = self.base.names().into_iter().filter(|name| !is_fused(name));
        kept.chain(self.parts.keys().cloned()).collect()
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let is_fused = |name: &str| self.parts.values().any(|p| p.of == name);
        let kept = self.base.tensors().into_iter().filter(|t| !is_fused(&t.name));
        let mut all: Vec<TensorInfo> = kept.chain(self.parts.values().map(|p| p.info.clone())).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        match self.parts.get(name) {
            Some(part) => Some(part.info.clone()),
            None => self.base.info(name),
        }
    }

    fn bytes(&self, name: &str) -> Result<TensorBytes> {
        let Some(part) = self.parts.get(name) else { return self.base.bytes(name) };
        let outside = || Error::tensor(self.path(), &part.of, "ends before its parts do");
        self.base.bytes(&part.of)?.slice(part.bytes.clone()).ok_or_else(outside)
    }
}
