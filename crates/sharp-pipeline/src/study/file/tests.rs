//! Grids, and the typing errors in them.

use std::num::NonZeroU64;

use sharp_schema::Form;

use super::*;
use crate::error::chain;
use crate::workspace::tests::workspace;

const BASE: &str = "model = \"synth:tiny\"\ndata = { calibration = \"data/tiny.txt\", train = [\"data/tiny.txt\"] }\n\
                    evaluate = { texts = [\"tiny=data/tiny.txt\"], rows = [\"original\", \"slw_sft\"] }\n";

const GRID: &str = "base = \"configs/tiny.toml\"\nseeds = [1, 2]\nset = { finetune.steps = 3 }\n\
    [[axes]]\nname = \"method\"\n[[axes.values]]\nname = \"ours\"\n[[axes.values]]\nname = \"paper\"\nset = { plan.form = \"low_rank\", plan.rho = 0.2 }\n\
    [[axes]]\nname = \"size\"\n[[axes.values]]\nname = \"20\"\nset = { plan.remove = 0.2 }\n[[axes.values]]\nname = \"10\"\nset = { plan.remove = 0.1 }\n";

pub(in crate::study) fn study(text: &str) -> Result<Study> {
    let read = toml::from_str::<StudyFile>(text).context("the study")?;
    Study::new(
        &workspace(),
        "mine".into(),
        Path::new("mine.toml"),
        read,
        &BASE.parse().unwrap(),
        &toml::Table::new(),
    )
}

pub(in crate::study) fn grid() -> Study {
    study(GRID).unwrap()
}

fn refused(text: &str) -> String {
    chain(&study(text).unwrap_err())
}

#[test]
fn a_grid_is_every_combination_in_the_order_of_the_file() {
    let study = grid();
    let names: Vec<&str> = study.cells.iter().map(|cell| cell.name.as_str()).collect();
    let expected = [
        "ours-20-s1",
        "ours-20-s2",
        "ours-10-s1",
        "ours-10-s2",
        "paper-20-s1",
        "paper-20-s2",
        "paper-10-s1",
        "paper-10-s2",
    ];
    assert_eq!(names, expected);
    let cell = &study.cells[7];
    assert_eq!(
        (cell.config.plan.form, cell.config.plan.remove, cell.config.plan.rho),
        (Form::LowRank, 0.1, 0.2)
    );
    assert_eq!(
        (cell.finetune_steps(), cell.config.training.seed, cell.config.seed),
        (3, NonZeroU64::new(2), 1)
    );
    assert_eq!(study.cells[0].config.plan.rho, Config::default().plan.rho, "what no axis sets is the base's");
    assert_eq!((study.plot.lines.as_str(), &study.plot.rows[..]), ("method", &[Row::SlwSft][..]));
}

#[test]
fn a_combination_may_need_keys_of_its_own_and_the_command_line_has_the_last_word() {
    let text = format!(
        "{GRID}[[when]]\nis = {{ method = \"paper\", size = \"10\" }}\nset = {{ plan.rho = 0.3, finetune.steps = 4 }}\n"
    );
    let found = study(&text).unwrap();
    let of = |name: &str| {
        let cell = found.cells.iter().find(|cell| cell.name == name).unwrap();
        (cell.config.plan.rho, cell.finetune_steps())
    };
    assert_eq!(of("paper-10-s1"), (0.3, 4));
    assert_eq!(of("paper-20-s1"), (0.2, 3));
    let read: StudyFile = toml::from_str(&text).unwrap();
    let overrides = assignments(&["finetune.steps=9".into()]).unwrap();
    let longer = Study::new(
        &workspace(),
        "mine".into(),
        Path::new("mine.toml"),
        read,
        &BASE.parse().unwrap(),
        &overrides,
    )
    .unwrap();
    assert!(longer.cells.iter().all(|cell| cell.finetune_steps() == 9));
}

#[test]
fn typing_errors_are_named_with_their_place_and_a_suggestion() {
    for (from, to, expected) in [
        ("seeds =", "seedz =", "unknown field `seedz`"),
        (
            "plan.form =",
            "plan.fromm =",
            "the axis \"method\", value \"paper\": there is no key \"fromm\" in [plan]; did you mean `form`?",
        ),
        (
            "finetune.steps",
            "finetune.step",
            "[set]: there is no key \"step\" in [finetune]; did you mean `steps`?",
        ),
        (
            "\"low_rank\"",
            "\"lowrank\"",
            "the cell paper-20-s1: plan.form: unknown form `lowrank`; did you mean `low_rank`?",
        ),
        ("plan.remove = 0.1", "plan.remove = 1.5", "the cell ours-10-s1: plan.remove: 1.5"),
        ("plan.remove = 0.1", "plan.rho = 0.1", "plan.rho is set by the axis \"method\" too"),
        ("name = \"paper\"", "name = \"ours\"", "the axis \"method\": \"ours\" is there twice"),
        ("name = \"paper\"", "name = \"../paper\"", "\"../paper\" is not a name"),
        ("name = \"size\"", "name = \"method\"", "axes: \"method\" is there twice"),
        ("[1, 2]", "[1, 1]", "seeds: 1 is there twice"),
        ("[1, 2]", "[0]", "seeds: a list of numbers from 1"),
        (
            "{ finetune.steps = 3 }",
            "{ evaluate.rows = [\"slw_sft\", \"original\"] }",
            "evaluate.rows: begin with \"original\"",
        ),
        ("{ finetune.steps = 3 }", "{ evaluate.texts = [] }", "a text"),
        ("{ finetune.steps = 3 }", "{ training.seed = 3 }", "training.seed: the study sets it"),
    ] {
        assert!(GRID.contains(from), "{from}");
        let error = refused(&GRID.replacen(from, to, 1));
        assert!(error.contains(expected), "{to}: {error}");
    }
    let when = |is: &str| refused(&format!("{GRID}[[when]]\nis = {{ {is} }}\nset = {{}}\n"));
    assert!(when("metod = \"ours\"").contains("there is no axis \"metod\"; did you mean `method`?"));
    assert!(when("method = \"our\"").contains("did you mean `ours`?"));
    let plot = |text: &str| refused(&format!("{GRID}[plot]\n{text}\n"));
    assert!(plot("lines = \"methods\"").contains("did you mean `method`?"));
    assert!(plot("rows = [\"slwsft\"]").contains("did you mean `slw_sft`?"));
    assert!(
        plot("panels = \"sizes\"").contains("plot.panels: there is no axis \"sizes\"; did you mean `size`?")
    );
    assert!(refused("base = \"x\"").contains("axes: there are none"));
}

#[test]
fn what_no_file_can_hold_is_measured_by_the_fine_tuning_alone() {
    let twice = GRID.replace("finetune.steps = 3", "finetune.steps = 3, finetune.run_twice = [1]");
    assert!(refused(&twice).contains("until = \"finetune\""), "{}", refused(&twice));
    let found = study(&format!("until = \"finetune\"\n{twice}")).unwrap();
    assert_eq!(found.until, Until::Finetune);
    assert_eq!(found.cells[0].config.finetune.run_twice, [1]);
}

#[test]
fn a_cell_is_chosen_by_name() {
    let study = grid();
    assert_eq!(study.chosen(&[]).unwrap().len(), 8);
    assert_eq!(study.chosen(&["ours-10-s2".into()]).unwrap()[0].name, "ours-10-s2");
    let error = study.chosen(&["ours-10-s3".into()]).unwrap_err().to_string();
    assert!(error.contains("did you mean `ours-10-s"), "{error}");
}

#[test]
fn the_shipped_studies_load() {
    let names = workspace().listed("configs/studies");
    assert!(names.len() >= 3, "{names:?}");
    for name in names {
        let study = Study::load(&workspace(), Path::new(&name), &[])
            .unwrap_or_else(|e| panic!("{name}: {}", chain(&e)));
        let text = std::fs::read_to_string(workspace().root().join(&name)).unwrap();
        assert!(text.starts_with(&format!("# cargo xtask study {name}\n")), "{name}");
        assert!(study.cells.len() > 1);
    }
}
