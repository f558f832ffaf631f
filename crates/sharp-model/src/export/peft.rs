//! A PEFT adapter: the low-rank factors as LoRA weights on a dense base.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use sharp_progress::Progress;

use super::card;
use super::{ExportOptions, ExportSummary, begin, write_dense};
use crate::checkpoint::source::TensorInfo;
use crate::error::{Error, Result};
use crate::model::ModelSource;
use crate::names;
use crate::origin::CARD_FILE;
use crate::projection::Projection;
use crate::projection_source::LoraSource;

/// Folder of the dense base, in the adapter's.
const BASE: &str = "base";

/// Writes a PEFT adapter to `out` (`adapter_config.json`, `adapter_model.safetensors`) and the base it
/// belongs on to `out/base`: a plain checkpoint in which a target layer holds its reference's MLP weights,
/// scaled where the form has scales (zeros where nothing is shared). PEFT adds the factors to them. The base
/// is as large as the original.
///
/// # Errors
/// As [`super::export_compact`]; [`Error::Unsupported`] for a model without low-rank factors, and for
/// one with neurons beside shared MLPs.
pub fn export_peft(
    source: &ModelSource,
    out: impl AsRef<Path>,
    options: &ExportOptions,
    progress: &dyn Progress,
) -> Result<ExportSummary> {
    let out = out.as_ref();
    let factors = factors(source)?;
    let ranks: BTreeMap<String, usize> = factors.iter().map(|f| (f.module.clone(), f.lora.rank)).collect();
    let Some(&rank) = ranks.values().max() else {
        return Err(Error::unsupported(out, "an adapter of a model without low-rank recovery parameters"));
    };
    if source.layout().widest_mlp() != source.config().intermediate_size {
        let what = "an adapter of a model with neurons beside shared MLPs";
        return Err(Error::unsupported(out, what));
    }
    write_dense(source, &out.join(BASE), options, progress, false)?;

    let mut tensors = Vec::new();
    for factor in &factors {
        for (suffix, tensor) in [("lora_A", &factor.lora.a), ("lora_B", &factor.lora.b)] {
            let name = format!("base_model.model.{}.{suffix}.weight", factor.module);
            let info = TensorInfo { name, dtype: options.dtype, shape: tensor.shape().to_vec() };
            tensors.push((info, tensor));
        }
    }
    let infos: Vec<TensorInfo> = tensors.iter().map(|(info, _)| info.clone()).collect();
    let whole = ExportOptions { max_shard_bytes: u64::MAX, ..options.clone() };
    let mut writer = begin(source, out, &whole, &infos, &[])?;
    for (info, tensor) in &tensors {
        writer.copy(&info.name, tensor)?;
    }
    let card = card::write(source, card::Kind::Peft, &options.card)?;
    writer.add_file(CARD_FILE, card.as_bytes())?;
    let written = writer.finish_adapter(&config(&ranks, rank))?;
    Ok(ExportSummary { written, mlp_parameters: source.mlp_parameters() })
}

/// One module's factors.
struct Factors {
    /// `model.layers.5.mlp.gate_proj`
    module: String,
    lora: LoraSource,
}

fn factors(source: &ModelSource) -> Result<Vec<Factors>> {
    let mut all = Vec::new();
    for change in source.changes() {
        for projection in Projection::ALL {
            if let Some(lora) = source.projection(change.layer, projection)?.lora {
                all.push(Factors { module: names::mlp(change.layer, projection), lora });
            }
        }
    }
    Ok(all)
}

/// PEFT multiplies by `lora_alpha / r`: with every alpha its rank the factors count as they are.
fn config(ranks: &BTreeMap<String, usize>, rank: usize) -> Map<String, Value> {
    let modules: Vec<&String> = ranks.keys().collect();
    let others: BTreeMap<&String, usize> =
        ranks.iter().filter(|(_, r)| **r != rank).map(|(m, r)| (m, *r)).collect();
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    match config {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
