//! The keys of configurations before they had sections, and how each is called now.

use toml::Table;

use crate::error::{Result, bail};

/// Old key, new key. The three that are still called so are not here.
pub(super) const RENAMED: [(&str, &str); 53] = [
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
    let old = RENAMED.iter().filter(|(old, _)| table.contains_key(*old));
    let found: Vec<String> = old.map(|(old, new)| format!("\n  {old} is now {new}")).collect();
    if !found.is_empty() {
        bail!(
            "keys are in sections now, for example [finetune] and steps = 8, or --set finetune.steps=8:{}\nWhere 0 or \
             \"\" meant nothing given, leave the key out or write \"none\"",
            found.concat()
        );
    }
    Ok(())
}
