//! What the stages read, write and ask the programs for.

use std::num::NonZeroU64;

use sharp_schema::run::{ANALYZE, EXPORT, FINETUNE_COLD, IMPORT, PLAN, QUANTIZE};
use sharp_schema::{Form, StrategyName};

use super::*;
use crate::config::{Config, Row};
use crate::workspace::tests::workspace;

fn run() -> Run {
    let text = "model = \"synth:tiny\"\n[data]\ncalibration = \"pinned:boolq-train\"\ntrain = [\"pinned:boolq-train\"]\n\
                [training]\nseed = 7\n[quantize]\nrepair_steps = 5\n\
                [evaluate]\ntexts = [\"boolq=pinned:boolq-train#passage\"]\ntasks = [\"pinned:sciq\"]\n";
    let config = Config::from_table(&workspace(), text.parse().unwrap()).unwrap();
    Run {
        workspace: workspace(),
        config,
        config_file: "x.toml".into(),
        folder: "/run".into(),
        siblings: Vec::new(),
    }
}

fn folders(steps: &[Step]) -> Vec<StageFolder> {
    steps.iter().map(|step| step.folder).collect()
}

fn words(line: &CommandLine) -> Vec<String> {
    line.arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

#[test]
fn every_key_of_a_configuration_belongs_to_a_stage() {
    let mut used: Vec<String> = steps(&run())
        .unwrap()
        .iter()
        .flat_map(|step| step.settings.values().keys().cloned().collect::<Vec<_>>())
        .collect();
    // Which steps there are, and how the model is brought in, is told by these.
    used.extend(["finetune.cold".to_owned(), "import.dtype".to_owned()]);
    for key in crate::config::keys() {
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
    let needed = |rows: &[Row]| {
        let mut run = run();
        run.config.evaluate.rows = rows.to_vec();
        folders(&steps_to_evaluate(&run).unwrap())
    };
    use Row::{Original, Sft, SlwSft, Untrained};
    assert_eq!(needed(&[Original, Untrained]), [IMPORT, ANALYZE, PLAN, EVALUATE]);
    assert_eq!(needed(&[Original, Sft]), [IMPORT, ANALYZE, PLAN, FINETUNE_COLD, EVALUATE]);
    assert_eq!(needed(&[Original, SlwSft]), [IMPORT, ANALYZE, PLAN, WARMUP, FINETUNE, EXPORT, EVALUATE]);
}

#[test]
fn memory_is_checked_before_the_warm_up_where_fine_tuning_follows() {
    let first = |rows: &[Row]| -> (usize, bool) {
        let mut run = run();
        run.config.evaluate.rows = rows.to_vec();
        let mut steps = steps_to_evaluate(&run).unwrap();
        check_memory_first(&run, &mut steps).unwrap();
        let warmup = steps.iter().find(|step| step.folder == WARMUP).unwrap();
        (warmup.command_lines.len(), words(&warmup.command_lines[0]).contains(&"--check".to_owned()))
    };
    assert_eq!(first(&[Row::Original, Row::SlwSft]), (2, true));
    assert_eq!(first(&[Row::Original, Row::Slw]), (1, false));
}

#[test]
fn a_model_of_ones_own_is_checked_before_its_import_where_training_follows() {
    let checked = |model: &str, rows: &[Row]| -> bool {
        let mut run = run();
        run.config.model = model.into();
        run.config.evaluate.rows = rows.to_vec();
        let mut steps = steps_to_evaluate(&run).unwrap();
        check_model_first(&run, &mut steps).unwrap();
        words(&steps[0].command_lines[0]).contains(&"--trainable".to_owned())
    };
    let own = env!("CARGO_MANIFEST_DIR");
    assert!(checked(own, &[Row::Original, Row::Slw]));
    assert!(!checked(own, &[Row::Original, Row::Untrained]));
    assert!(!checked("synth:tiny", &[Row::Original, Row::SlwSft]));
}

#[test]
fn dropped_mlps_are_not_warmed_up_and_another_training_seed_keeps_the_split() {
    let mut run = run();
    run.config.plan.form = Form::Drop;
    run.config.evaluate.rows = vec![Row::Original, Row::Slw, Row::Sft, Row::SlwSft];
    assert_eq!(run.config.rows().0, [Row::Original, Row::SlwSft]);
    let made = steps_to_evaluate(&run).unwrap();
    assert!(!folders(&made).contains(&WARMUP));
    assert!(!folders(&steps(&run).unwrap()).contains(&FINETUNE_COLD));
    let line = |folder: StageFolder| {
        words(&made.iter().find(|step| step.folder == folder).unwrap().command_lines[0]).join(" ")
    };
    assert!(line(PLAN).contains("--drop") && !line(PLAN).contains("--form"));
    assert!(line(FINETUNE).contains("--seed 7 --split-seed 1") && !line(FINETUNE).contains("--recovery"));
    assert!(line(ANALYZE).contains("--seed 1"));
}

#[test]
fn the_original_is_fine_tuned_where_no_layer_changes() {
    let mut run = run();
    run.config.plan.strategy = StrategyName::None;
    run.config.evaluate.rows = vec![Row::Original, Row::Slw, Row::Sft, Row::SlwSft];
    assert_eq!(run.config.rows().0, [Row::Original, Row::SlwSft]);
    let made = steps_to_evaluate(&run).unwrap();
    assert!(!folders(&made).contains(&WARMUP));
    let line = |folder: StageFolder| {
        words(&made.iter().find(|step| step.folder == folder).unwrap().command_lines[0]).join(" ")
    };
    assert!(line(PLAN).contains("--strategy none") && !line(PLAN).contains("--remove"));
    assert!(!line(FINETUNE).contains("--recovery"));
}

#[test]
fn without_a_seed_of_its_own_training_has_the_seed_of_the_run() {
    let mut run = run();
    run.config.training.seed = None;
    assert_eq!(training::order_seed(&run), 1);
    run.config.training.seed = NonZeroU64::new(3);
    assert_eq!(training::order_seed(&run), 3);
}

#[test]
fn files_are_calibrated_on_the_training_side_alone() {
    let mut run = run();
    let lines = |run: &Run| -> Vec<Vec<String>> {
        let step = quantize::step(run).unwrap();
        assert_eq!(
            step.inputs.iter().any(|input| matches!(input, Input::Pinned(_))),
            step.settings.values().contains_key("data.calibration")
        );
        step.command_lines.iter().map(words).collect()
    };
    let rounding: Vec<Vec<String>> = lines(&run)
        .into_iter()
        .filter(|line| line[0] == "quantize" && !line.contains(&"--onto".to_owned()))
        .collect();
    assert_eq!((rounding.len(), lines(&run).len()), (2, 4));
    for line in rounding {
        let after = |flag: &str| line[line.iter().position(|word| word == flag).unwrap() + 1].clone();
        assert!(after("--calibrate").contains("boolq"), "{line:?}");
        assert_eq!([after("--split"), after("--held-out")], ["train", "0.05"]);
        assert_eq!([after("--calibration-tokens"), after("--seed")], ["4096", "1"]);
    }
    (run.config.quantize.tokens, run.config.quantize.repair_steps) = (None, None);
    for line in lines(&run) {
        assert!(!line.contains(&"--calibrate".to_owned()), "{line:?}");
    }
}

#[test]
fn auto_is_in_a_fingerprint_as_what_it_means_on_the_machine() {
    let run = run();
    let on = |bf16| training::training_settings_on(arithmetic::Machine { bf16, gpu: false }, &run);
    assert_eq!(on(true).values()["training.bf16"], "bf16");
    assert_eq!(on(false).values()["training.bf16"], "f32");
    assert_eq!(on(false).values()["training.device"], "cpu");
    let step = training::warmup(&run).unwrap();
    let here = arithmetic::Machine::this().number_type(&run.config.training);
    assert_eq!(step.settings.values()["training.bf16"], here);
    assert!(
        words(&step.command_lines[0]).join(" ").contains("--bf16 auto"),
        "the program resolves it itself"
    );
}

#[test]
fn what_decides_nothing_is_in_no_fingerprint() {
    let settings = |change: &dyn Fn(&mut Config)| -> Vec<Settings> {
        let mut run = run();
        change(&mut run.config);
        [training::finetune(&run, true).unwrap(), quantize::step(&run).unwrap()]
            .map(|step| step.settings)
            .into()
    };
    let before = settings(&|_| {});
    assert_eq!(before, settings(&|config| config.finetune.cold = false));
    let faster = settings(&|config| config.finetune.lr = 0.5);
    assert_ne!(before[0], faster[0]);
    assert_eq!(before[1], faster[1], "the repair has a learning rate of its own");
    assert_ne!(before[1], settings(&|config| config.quantize.repair_lr = 0.5)[1]);
}

#[test]
fn without_the_cold_fine_tuning_nothing_asks_for_it_and_its_row_is_left_out() {
    let mut run = run();
    run.config.finetune.cold = false;
    let steps = steps(&run).unwrap();
    assert!(!folders(&steps).contains(&FINETUNE_COLD));
    let asks = |step: &Step| step.inputs.iter().any(|input| matches!(input, Input::From(FINETUNE_COLD, _)));
    assert!(!steps.iter().any(asks));
    let evaluate = steps.iter().find(|step| step.folder == EVALUATE).unwrap();
    assert_eq!(
        evaluate.notes,
        ["the row sft is left out: finetune.cold = false, and nothing else trains it"]
    );
    assert!(!evaluate.files[0].1.contains("\"sft\""), "{}", evaluate.files[0].1);
    assert!(evaluate.files[0].1.contains("\"direct\""), "the results' name of the untrained row");
}

#[test]
fn sixteen_bits_leave_nothing_to_repair() {
    let mut run = run();
    run.config.quantize.recipe = crate::config::Recipe::F16;
    run.config.evaluate.rows = vec![Row::Original, Row::UnrepairedQ4, Row::SlwSftQ4];
    let step = quantize::step(&run).unwrap();
    assert_eq!((step.command_lines.len(), step.resumable), (2, false));
    assert!(step.notes[0].contains("repair_steps is left out"), "{:?}", step.notes);
    let (rows, left_out) = run.config.rows();
    assert_eq!((rows, left_out.len()), (vec![Row::Original, Row::SlwSftQ4], 1));
    assert!(folders(&steps_to_evaluate(&run).unwrap()).contains(&QUANTIZE));
    assert!(folders(&steps_to_evaluate(&run).unwrap()).contains(&EXPORT));
}

#[test]
fn a_run_that_reuses_weights_ends_with_the_fine_tuning_and_says_so() {
    let mut run = run();
    run.config.finetune.run_twice = vec![1, 2];
    let steps = steps(&run).unwrap();
    let finetune = steps.last().unwrap();
    assert_eq!(finetune.folder, FINETUNE);
    assert!(words(&finetune.command_lines[0]).windows(2).any(|pair| pair == ["--run-twice", "1,2"]));
    assert!(finetune.notes[0].contains("the run ends with the fine-tuning"), "{:?}", finetune.notes);
    assert!(!finetune.must_write.contains(&"recovery.safetensors"));
}

#[test]
fn a_fine_tuning_that_is_measured_reads_the_texts_of_the_evaluation() {
    let steps = steps_to_finetune(&run()).unwrap();
    let finetune = steps.last().unwrap();
    assert_eq!(finetune.folder, FINETUNE);
    assert!(!steps.iter().any(|step| step.folder == FINETUNE_COLD));
    let texts = words(&finetune.command_lines[0]);
    let at = texts.iter().position(|word| word == "--texts").unwrap();
    assert_eq!(texts[at + 1], "/run/05-finetune/texts.toml");
    let (name, text) = &finetune.files[0];
    assert_eq!(*name, "texts.toml");
    assert!(text.contains("name = \"boolq\"") && text.contains("rows = []"), "{text}");
    assert!(finetune.settings.values().contains_key("evaluate.texts"));
}
