//! What the stages read, write and ask the programs for.

use super::*;
use crate::config::Config;

fn run() -> Run {
    let text = "model = \"synth:tiny\"\ncalibration = \"pinned:boolq-train\"\ntrain_data = [\"pinned:boolq-train\"]\n\
                texts = [\"boolq=pinned:boolq-train#passage\"]\ntasks = [\"pinned:sciq\"]\n";
    let workspace = crate::workspace::tests::workspace();
    let config = config::parse(&workspace, text, &["train_seed=7".into(), "repair_steps=5".into()]).unwrap();
    Run { workspace, config, config_file: "x.toml".into(), folder: "/run".into(), siblings: Vec::new() }
}

#[test]
fn every_configuration_key_belongs_to_a_stage() {
    let mut used: Vec<String> = steps(&run())
        .unwrap()
        .iter()
        .flat_map(|step| step.config.keys().cloned().collect::<Vec<_>>())
        .collect();
    // Which steps there are, and how the model is brought in, is told by these.
    used.extend(["finetune_cold".to_owned(), "dtype".to_owned()]);
    for key in config::keys() {
        assert!(used.contains(&key), "{key} is in no stage's fingerprint");
    }
}

#[test]
fn steps_read_only_what_earlier_steps_wrote() {
    let steps = steps(&run()).unwrap();
    for (index, step) in steps.iter().enumerate() {
        assert!(index == 0 || steps[index - 1].stage <= step.stage, "{} is out of order", step.folder);
        for input in &step.inputs {
            if let Input::From(folder, _) = input {
                assert!(steps[..index].iter().any(|earlier| earlier.folder == *folder), "{}", step.folder);
            }
        }
    }
}

#[test]
fn only_what_the_rows_read_is_needed() {
    let folders = |rows: &[&str]| -> Vec<&str> {
        let mut run = run();
        run.config.rows = rows.iter().map(|row| (*row).to_owned()).collect();
        needed_for(EVALUATE, steps(&run).unwrap()).iter().map(|step| step.folder).collect()
    };
    assert_eq!(folders(&["original", "direct"]), [IMPORT, ANALYZE, PLAN, EVALUATE]);
    assert_eq!(folders(&["original", "sft"]), [IMPORT, ANALYZE, PLAN, FINETUNE_COLD, EVALUATE]);
    assert_eq!(
        folders(&["original", "slw_sft"]),
        [IMPORT, ANALYZE, PLAN, WARMUP, FINETUNE, EXPORT, EVALUATE]
    );
}

#[test]
fn memory_is_checked_before_the_warm_up_where_fine_tuning_follows() {
    let first = |rows: &[&str]| -> (usize, bool) {
        let mut run = run();
        run.config.rows = rows.iter().map(|row| (*row).to_owned()).collect();
        let mut steps = needed_for(EVALUATE, steps(&run).unwrap());
        check_memory_first(&run, &mut steps).unwrap();
        let warmup = steps.iter().find(|step| step.folder == WARMUP).unwrap();
        let checks = |line: &Invocation| line.arguments.iter().any(|word| word == "--check");
        (warmup.invocations.len(), checks(&warmup.invocations[0]))
    };
    assert_eq!(first(&["original", "slw_sft"]), (2, true));
    assert_eq!(first(&["original", "slw"]), (1, false));
}

#[test]
fn dropped_mlps_are_not_warmed_up_and_another_training_seed_keeps_the_split() {
    let mut run = run();
    run.config.form = "drop".into();
    run.config.rows = vec!["original".into(), "slw_sft".into()];
    let made = needed_for(EVALUATE, steps(&run).unwrap());
    assert!(!made.iter().any(|step| step.folder == WARMUP));
    let line = |folder: &str| {
        let step = made.iter().find(|step| step.folder == folder).unwrap();
        step.invocations[0].arguments.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
    };
    assert!(line(PLAN).contains("--drop") && !line(PLAN).contains("--form"));
    assert!(line(FINETUNE).contains("--seed 7 --split-seed 1") && !line(FINETUNE).contains("--recovery"));
    assert!(line(ANALYZE).contains("--seed 1"));
}

#[test]
fn files_are_calibrated_on_the_training_side_alone() {
    let mut run = run();
    let arguments = |run: &Run| -> Vec<Vec<String>> {
        let steps = steps(run).unwrap();
        let step = steps.iter().find(|step| step.stage == Stage::Quantize).unwrap();
        assert_eq!(
            step.inputs.iter().any(|input| matches!(input, Input::Pinned(_))),
            step.config.contains_key("calibration")
        );
        let word = |word: &OsString| word.to_string_lossy().into_owned();
        step.invocations.iter().map(|line| line.arguments.iter().map(word).collect()).collect()
    };
    let rounding = |run: &Run| -> Vec<Vec<String>> {
        let all = arguments(run).into_iter();
        all.filter(|line| line[0] == "quantize" && !line.iter().any(|w| w == "--onto")).collect()
    };
    assert_eq!((rounding(&run).len(), arguments(&run).len()), (2, 4));
    for line in rounding(&run) {
        let after = |flag: &str| line[line.iter().position(|w| w == flag).unwrap() + 1].clone();
        assert!(after("--calibrate").contains("boolq"), "{line:?}");
        assert_eq!([after("--split"), after("--held-out")], ["train", "0.05"]);
        assert_eq!([after("--calibration-tokens"), after("--seed")], ["4096", "1"]);
    }
    (run.config.quantize_tokens, run.config.repair_steps) = (0, 0);
    for line in arguments(&run) {
        assert!(!line.iter().any(|w| w == "--calibrate"), "{line:?}");
    }
}

#[test]
fn without_the_cold_fine_tuning_nothing_asks_for_it() {
    let mut run = run();
    run.config = Config {
        finetune_cold: false,
        rows: run.config.rows.iter().filter(|row| *row != "sft").cloned().collect(),
        ..run.config
    };
    let steps = steps(&run).unwrap();
    assert!(!steps.iter().any(|step| step.folder == FINETUNE_COLD));
    assert!(
        !steps
            .iter()
            .any(|step| step.inputs.iter().any(|input| matches!(input, Input::From(FINETUNE_COLD, _))))
    );
}
