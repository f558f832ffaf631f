//! What a configuration may say, and how it is refused.

use std::fs;
use std::path::Path;

use sharp_schema::{Form, StrategyName};

use super::checked::Config;
use super::keys::{check_keys, keys};
use super::layers::{assignments, lay_over};
use super::old_keys::RENAMED;
use super::values::{Device, Row};
use crate::error::{Result, chain};
use crate::workspace::tests::workspace;

const SMALLEST: &str = "model = \"synth:tiny\"\n[data]\ncalibration = \"pinned:boolq-train\"\ntrain = [\"pinned:boolq-train\"]\n";

/// The smallest configuration with values of `--set`.
fn with(overrides: &[&str]) -> Result<Config> {
    let mut table: toml::Table = SMALLEST.parse().unwrap();
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    lay_over(&mut table, assignments(&overrides)?);
    Config::from_table(&workspace(), table)
}

fn refused(overrides: &[&str]) -> String {
    chain(&with(overrides).unwrap_err())
}

#[test]
fn typos_are_refused_with_a_suggestion() {
    for (typed, meant) in [
        ("plan.stratgey=pairs", "there is no key \"stratgey\" in [plan]; did you mean `strategy`?"),
        ("plna.strategy=pairs", "there is no section [plna]; did you mean `plan`?"),
        ("plan.strategy=optimale", "plan.strategy: unknown strategy `optimale`; did you mean `optimal`?"),
        ("evaluate.tasks=[\"pinned:sciqq\"]", "did you mean `sciq`?"),
        ("evaluate.rows=[\"orignal\"]", "evaluate.rows[0]: unknown row `orignal`; did you mean `original`?"),
        ("save_evry=3", "did you mean \"finetune.save_every\"?"),
        ("steps=3", "did you mean one of warmup.steps, finetune.steps?"),
        ("plan.steps=3", "; there is warmup.steps and finetune.steps; [plan] has: strategy"),
        ("finetune=3", "finetune: this is a section"),
        ("plan.remove.much=3", "plan.remove: invalid type"),
        ("training.device=gpu", "training.device: unknown device `gpu`"),
    ] {
        let error = refused(&[typed]);
        assert!(error.contains(meant), "{typed}: {error}");
    }
}

#[test]
fn impossible_values_are_refused_by_key() {
    for (typed, key) in [
        (&["plan.remove=1.5"][..], "plan.remove"),
        (&["plan.rho=0.0"], "plan.rho"),
        (&["analyze.window=0"], "analyze.window"),
        (&["analyze.window=two"], "analyze.window"),
        (&["analyze.window=-1"], "analyze.window"),
        (&["warmup.lr=-1.0"], "warmup.lr"),
        (&["evaluate.stride=1024"], "evaluate.stride"),
        (&["evaluate.texts=[\"pinned:boolq-train\"]"], "evaluate.texts"),
        (&["evaluate.rows=[\"slw\"]"], "evaluate.rows"),
        (&["plan.strategy=explicit"], "plan.explicit"),
        (&["plan.form=none"], "plan.form"),
        (&["plan.form=pruned"], "plan.strategy"),
        (&["plan.strategy=even"], "plan.form"),
        (&["plan.strategy=even", "plan.form=pruned", "plan.targets=3"], "plan.targets"),
        (&["report.compare_with=[\"runs/paper\"]"], "report.compare_with"),
        (&["report.compare_with=[\"v1.0=runs/paper\"]"], "report.compare_with"),
        (&["plan.form=drop", "finetune.mlps=shared"], "plan.form"),
        (&["data.train=[\"no/such/file\"]"], "data.train"),
    ] {
        let error = refused(typed);
        assert!(error.starts_with(&format!("{key}: ")), "{typed:?}: {error}");
    }
    assert!(refused(&["threads=0"]).contains("threads: 0 is no value: leave the key out"));
    assert!(refused(&["plan.cost="]).contains("plan.cost: \"\" is no value"));
}

#[test]
fn set_lays_values_of_every_type_over_the_file() {
    let config = with(&[
        "plan.remove=0.4",
        "plan.strategy=pairs",
        "plan.keep=[0, 1]",
        "export.dense=true",
        "plan.form = \"scaled_low_rank\"",
        "training.device=cuda:1",
    ])
    .unwrap();
    assert_eq!((config.plan.remove, config.plan.strategy), (0.4, StrategyName::Pairs));
    assert_eq!((config.export.dense, config.plan.form), (true, Form::ScaledLowRank));
    assert_eq!((config.plan.keep, config.training.device), (vec![0, 1], Device::CudaIndex(1)));
    assert_eq!(with(&["quantize.tokens=none"]).unwrap().quantize.tokens, None);
    assert!(chain(&with(&["plan.remove"]).unwrap_err()).contains("expected key=value"));
}

#[test]
fn flat_keys_are_refused_with_their_new_names() {
    let error = refused(&["finetune_steps=8"]);
    assert!(
        error.contains("--set finetune_steps=8: ") && error.contains("finetune_steps is now finetune.steps"),
        "{error}"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("old.toml");
    fs::write(&file, "model = \"synth:tiny\"\nthreads = 0\nrecipe = \"q4\"\nbeside = []\n").unwrap();
    let error = chain(&Config::load(&workspace(), &file, &[]).unwrap_err());
    for part in
        ["old.toml", "recipe is now quantize.recipe", "beside is now report.compare_with", "write \"none\""]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn rows_that_cannot_be_are_left_out_with_a_word() {
    let left_out = |overrides: &[&str]| with(overrides).unwrap().rows().1;
    assert!(left_out(&[]).is_empty());
    assert_eq!(left_out(&["finetune.cold=false"]).len(), 1);
    let drop = left_out(&["plan.form=drop", "finetune.norms=true"]);
    assert!(drop[0].starts_with("the row slw is left out") && drop[1].starts_with("the row sft"), "{drop:?}");
    let all = "evaluate.rows=[\"original\", \"direct\", \"unrepaired_q4\"]";
    assert!(left_out(&[all])[0].contains("quantize.repair_steps is not given"));
    let repaired = with(&[all, "quantize.repair_steps=4"]).unwrap();
    assert_eq!(repaired.rows(), (vec![Row::Original, Row::Untrained, Row::UnrepairedQ4], Vec::new()));
    assert!(left_out(&[all, "quantize.repair_steps=4", "quantize.recipe=f16"])[0].contains("no rounding"));
}

#[test]
fn a_file_says_what_differs_from_the_one_it_extends() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    let load = |path: &Path, set: &[&str]| {
        let set: Vec<String> = set.iter().map(|text| (*text).to_owned()).collect();
        Config::load(&workspace(), path, &set)
    };
    let refused = |path: &Path| chain(&load(path, &[]).unwrap_err());
    write("base.toml", &format!("{SMALLEST}[plan]\nremove = 0.3\nkeep = [0]\n[evaluate]\ntask_limit = 5\n"));
    write("deeper/middle.toml", "extends = \"../base.toml\"\n[plan]\nrho = 0.5\nkeep = []\n");
    let top = write(
        "top.toml",
        "extends = \"deeper/middle.toml\"\n[evaluate]\ntask_limit = \"none\"\n[plan]\nrho = 0.25\n",
    );
    let config = load(&top, &["plan.remove=0.4"]).unwrap();
    assert_eq!((config.plan.remove, config.plan.rho, config.plan.keep.len()), (0.4, 0.25, 0));
    assert_eq!((config.evaluate.task_limit, config.model.as_str()), (None, "synth:tiny"));

    write("a.toml", "extends = \"b.toml\"\n");
    let circle = write("b.toml", "extends = \"a.toml\"\n");
    let error = refused(&circle);
    assert!(error.contains("extends itself") && error.contains("a.toml"), "{error}");
    let error = refused(&write("gone.toml", "extends = \"nothing.toml\"\n"));
    assert!(error.contains("in the configuration") && error.contains("gone.toml"), "{error}");
    assert!(
        error.contains("extends: reading the configuration") && error.contains("nothing.toml"),
        "{error}"
    );
    let error = refused(&write("number.toml", "extends = 3\n"));
    assert!(error.contains("number.toml: extends: 3 is not the path of a file"), "{error}");
    write("typo.toml", &format!("{SMALLEST}sequnce = 5\n"));
    let error = refused(&write("of_typo.toml", "extends = \"typo.toml\"\n"));
    assert!(
        error.contains("typo.toml: there is no key \"sequnce\" in [data]; did you mean `sequence`?"),
        "{error}"
    );
    assert!(refused(&write("no.toml", "model = [")).contains("this is not TOML"));
}

#[test]
fn a_resolved_configuration_is_read_as_it_is_written() {
    let path = workspace().root().join("configs/tiny.toml");
    let set = ["threads=2".into(), "quantize.tokens=none".into()];
    let config = Config::load(&workspace(), &path, &set).unwrap();
    let text = toml::to_string(&config).unwrap();
    assert_eq!(Config::from_table(&workspace(), text.parse().unwrap()).unwrap(), config);
}

#[test]
fn the_shipped_configurations_load_and_the_default_one_explains_every_key() {
    let workspace = workspace();
    let files = workspace.listed("configs");
    assert!(files.len() >= 5, "{files:?}");
    for file in &files {
        let path = workspace.root().join(file);
        Config::load(&workspace, &path, &[]).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with(&format!("# cargo xtask pipeline --config {file}\n#\n# ")), "{file}");
    }
    let text = fs::read_to_string(workspace.root().join("configs/smollm2-135m.toml")).unwrap();
    let (mut section, mut explained, mut named) = (String::new(), false, Vec::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            section = format!("{}.", name.0);
        }
        // A key that may be left out is there as a comment.
        let key = line.split_once(" = ").map(|(key, _)| format!("{section}{}", key.trim_start_matches("# ")));
        match key.filter(|key| keys().contains(key)) {
            Some(key) => {
                assert!(explained, "no comment above {line}");
                // What is commented out is as it would be typed.
                let typed = format!("{section}{}", line.trim_start_matches("# "));
                check_keys(&typed.parse().unwrap()).unwrap();
                named.push(key);
                explained = false;
            }
            None => explained = line.starts_with("# "),
        }
    }
    for key in keys() {
        assert!(named.contains(&key), "configs/smollm2-135m.toml does not explain {key}");
    }
}

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
