//! The keys of configurations before they had sections, and how each is called now.

use toml::{Table, Value};

use crate::error::{Result, bail};

/// Old key, new key. The three that are still called so are not here.
const RENAMED: [(&str, &str); 53] = [
    ("dtype", "import.dtype"),
    ("held_out", "data.held_out"),
    ("calibration", "data.calibration"),
    ("calibration_tokens", "analyze.tokens"),
    ("window", "analyze.window"),
    ("delta_nll_tokens", "analyze.delta_nll_tokens"),
    ("strategy", "plan.strategy"),
    ("group", "plan.group"),
    ("explicit", "plan.explicit"),
    ("cost", "plan.cost"),
    ("remove", "plan.remove"),
    ("targets", "plan.targets"),
    ("keep", "plan.keep"),
    ("rho", "plan.rho"),
    ("form", "plan.form"),
    ("train_data", "data.train"),
    ("sequence", "data.sequence"),
    ("bf16", "training.bf16"),
    ("device", "training.device"),
    ("train_seed", "training.seed"),
    ("warmup_start", "warmup.start"),
    ("warmup_weighting", "warmup.weighting"),
    ("warmup_tokens", "warmup.tokens"),
    ("warmup_steps", "warmup.steps"),
    ("warmup_batch_tokens", "warmup.batch_tokens"),
    ("warmup_lr", "warmup.lr"),
    ("finetune_steps", "finetune.steps"),
    ("finetune_batch_tokens", "finetune.batch_tokens"),
    ("finetune_lr", "finetune.lr"),
    ("finetune_distill", "finetune.distill"),
    ("finetune_norms", "finetune.norms"),
    ("finetune_mlps", "finetune.mlps"),
    ("finetune_save_every", "finetune.save_every"),
    ("finetune_cold", "finetune.cold"),
    ("export_dtype", "export.dtype"),
    ("export_dense", "export.dense"),
    ("recipe", "quantize.recipe"),
    ("quantize_tokens", "quantize.tokens"),
    ("repair_steps", "quantize.repair_steps"),
    ("repair_lr", "quantize.repair_lr"),
    ("rows", "evaluate.rows"),
    ("texts", "evaluate.texts"),
    ("text_tokens", "evaluate.text_tokens"),
    ("eval_window", "evaluate.window"),
    ("eval_stride", "evaluate.stride"),
    ("tasks", "evaluate.tasks"),
    ("task_limit", "evaluate.task_limit"),
    ("bench_prompt_tokens", "benchmark.prompt_tokens"),
    ("bench_decode_tokens", "benchmark.decode_tokens"),
    ("bench_repeats", "benchmark.repeats"),
    ("prompts", "report.prompts"),
    ("sample_tokens", "report.sample_tokens"),
    ("beside", "report.compare_with"),
];

/// Refuses a table with old keys, and says how each of them is called now.
pub(super) fn check(table: &Table) -> Result<()> {
    // A section may be called as an old key was.
    let old = |(key, value): (&String, &Value)| {
        RENAMED.iter().find(|(old, _)| old == key).filter(|_| !value.is_table()).copied()
    };
    let found: Vec<String> =
        table.iter().filter_map(old).map(|(old, new)| format!("\n  {old} is now {new}")).collect();
    if !found.is_empty() {
        bail!(
            "keys are in sections now, for example [finetune] and steps = 8, or --set finetune.steps=8:{}\nWhere 0 or \
             \"\" meant nothing given, leave the key out or write \"none\"",
            found.concat()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::layers::keys;

    /// Every key of the last flat configuration, in its order. Never to be changed.
    const FLAT: &str = "model dtype seed threads held_out calibration calibration_tokens window delta_nll_tokens strategy group \
        explicit cost remove targets keep rho form train_data sequence bf16 device train_seed warmup_start warmup_weighting \
        warmup_tokens warmup_steps warmup_batch_tokens warmup_lr finetune_steps finetune_batch_tokens finetune_lr \
        finetune_distill finetune_norms finetune_mlps finetune_save_every finetune_cold export_dtype export_dense recipe \
        quantize_tokens repair_steps repair_lr rows texts text_tokens eval_window eval_stride tasks task_limit \
        bench_prompt_tokens bench_decode_tokens bench_repeats prompts sample_tokens beside";

    #[test]
    fn every_flat_key_has_a_new_name_that_exists() {
        let keys = keys();
        for old in FLAT.split_whitespace() {
            match RENAMED.iter().find(|(name, _)| *name == old) {
                Some((_, new)) => assert!(keys.iter().any(|key| key == new), "{old} -> {new}"),
                None => assert!(["model", "seed", "threads"].contains(&old), "{old} has no new name"),
            }
        }
        assert_eq!(RENAMED.len() + 3, FLAT.split_whitespace().count());
        let mut new: Vec<&str> = RENAMED.iter().map(|(_, new)| *new).collect();
        new.sort_unstable();
        new.dedup();
        assert_eq!(new.len(), RENAMED.len(), "two old keys would be one");
    }
}
