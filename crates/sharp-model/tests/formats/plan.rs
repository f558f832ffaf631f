//! Plan files, version 1: read and written as ever, and refused where they mean nothing.

use std::path::Path;

use proptest::prelude::*;
use sharp_model::{Error, LayerChange, ModelConfig, Plan, Ranks, Repair, Scales, Treatment};

use crate::golden;

fn here() -> &'static Path {
    Path::new("plan.toml")
}

fn ranks(least: usize) -> impl Strategy<Value = Ranks> {
    (least..50, least..50, least..50).prop_map(|(gate, up, down)| Ranks { gate, up, down })
}

fn repairs() -> impl Strategy<Value = Repair> {
    let scaled = prop_oneof![Just(Scales::Rows), Just(Scales::RowsAndColumns)];
    prop_oneof![
        Just(Repair::None),
        // Without scales and ranks it would be no repair.
        (ranks(0), 1usize..50).prop_map(|(ranks, down)| Repair::low_rank(Ranks { down, ..ranks })),
        (scaled, ranks(0)).prop_map(|(scales, ranks)| Repair::LowRank { scales, ranks }),
        (1usize..4000).prop_map(|neurons| Repair::Neurons { neurons }),
    ]
}

fn treatments() -> impl Strategy<Value = Treatment> {
    prop_oneof![
        (0usize..40, repairs()).prop_map(|(reference, repair)| Treatment::Share { reference, repair }),
        ranks(1).prop_map(|ranks| Treatment::LowRank { ranks }),
        (1usize..4000).prop_map(|neurons| Treatment::Prune { neurons }),
        Just(Treatment::Drop),
    ]
}

fn plans() -> impl Strategy<Value = Plan> {
    let change = (0usize..40, treatments(), ".{0,20}").prop_map(|(layer, treatment, reason)| LayerChange {
        layer,
        treatment,
        reason,
    });
    ("[a-z, ]{0,12}", proptest::collection::vec(change, 0..6))
        .prop_map(|(strategy, changes)| Plan::new(strategy, changes))
}

proptest! {
    #[test]
    fn every_plan_survives_toml_and_json(plan in plans()) {
        prop_assert_eq!(&Plan::from_toml(here(), &plan.to_toml()).unwrap(), &plan);
        let json = serde_json::to_value(&plan).unwrap();
        prop_assert_eq!(&Plan::from_json_value(here(), json.clone()).unwrap(), &plan);
        prop_assert_eq!(&serde_json::from_value::<Plan>(json).unwrap(), &plan);
    }

    #[test]
    fn a_treatment_is_made_again_of_its_words_and_numbers(treatment in treatments()) {
        let (reference, ranks, neurons) = (treatment.reference(), treatment.ranks(), treatment.neurons());
        let again = Treatment::new(treatment.form(), reference, ranks, neurons);
        prop_assert_eq!(again.unwrap(), treatment);
    }
}

/// Everything but the comments, which may say it better.
fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_file_of_version_1_is_read_and_written_unchanged() {
    let text = std::fs::read_to_string(golden("plan/v1.toml")).unwrap();
    let plan = Plan::load(golden("plan/v1.toml")).unwrap();
    let share = |layer, reference, repair| LayerChange::share(layer, reference, repair);
    let uniform = Ranks::uniform(2);
    let expected = [
        share(1, 0, Repair::None).because("as listed; replacement cost not measured"),
        share(2, 0, Repair::low_rank(Ranks { gate: 2, up: 0, down: 3 })).because("as listed; \"quoted\""),
        share(3, 8, Repair::scaled(Ranks::default())).because("as listed"),
        share(4, 8, Repair::row_column_scaled(uniform)).because("as listed"),
        LayerChange::low_rank(5, uniform).because("as listed"),
        LayerChange::prune(6, 26)
            .because("keeps 26 of 37 neurons; every layer that is not kept whole gives up the same part"),
        LayerChange::drop(7).because("as listed"),
    ];
    assert_eq!((plan.version, plan.strategy.as_str(), &plan.changes[..]), (1, "explicit", &expected[..]));
    assert_eq!(without_comments(&plan.to_toml()), without_comments(&text));

    // The same in a compact checkpoint: keys, their order and values.
    let json = std::fs::read_to_string(golden("plan/v1.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(Plan::from_json_value(here(), value.clone()).unwrap(), plan);
    assert_eq!(serde_json::to_string(&plan).unwrap(), value.to_string());
}

#[test]
fn ranks_may_be_one_number_and_what_is_left_out_is_nothing() {
    let text = "version = 1\n[[targets]]\nlayer = 1\nreference = 0\nform = \"low_rank\"\nranks = 4\n\
                [[targets]]\nlayer = 2\nreference = 0\n";
    let plan = Plan::from_toml(here(), text).unwrap();
    let repairs = [Repair::low_rank(Ranks::uniform(4)), Repair::None];
    let expected: Vec<LayerChange> =
        repairs.into_iter().enumerate().map(|(i, repair)| LayerChange::share(i + 1, 0, repair)).collect();
    assert_eq!(plan, Plan::new("", expected));
}

/// The error of a plan whose layer 7 has these lines.
fn refused(lines: &str) -> String {
    let text = format!("version = 1\n[[targets]]\nlayer = 7\n{lines}\n");
    let error = Plan::from_toml(here(), &text).unwrap_err();
    let value: toml::Table = toml::from_str(&text).unwrap();
    let value = serde_json::to_value(value).unwrap();
    let from_json = Plan::from_json_value(here(), value.clone()).unwrap_err();
    assert_eq!(from_json.to_string(), error.to_string(), "{lines}");
    if let Error::Plan { .. } = error {
        let by_serde = serde_json::from_value::<Plan>(value).unwrap_err();
        assert_eq!(by_serde.to_string(), error.to_string(), "{lines}");
    }
    error.to_string()
}

#[test]
fn combinations_that_mean_nothing_are_refused_when_read_and_the_layer_is_named() {
    for (lines, message) in [
        ("dropped = true\nreference = 1", "dropped, and yet it has a reference"),
        ("dropped = true\nranks = 2", "dropped, and yet it has recovery parameters"),
        ("dropped = true\nform = \"low_rank\"", "dropped, and yet it has recovery parameters"),
        ("dropped = true\nform = \"pruned\"\nneurons = 3", "dropped, and yet it keeps neurons"),
        (
            "dropped = true\nneurons = 3",
            "form `none` keeps no neurons of its own; only `pruned` and `neurons` have `neurons`",
        ),
        ("form = \"drop\"", "form `drop` is written `dropped = true`"),
        (
            "form = \"pruned\"\nneurons = 3\nreference = 1",
            "form `pruned` shares nothing, and yet reference 1",
        ),
        ("form = \"pruned\"\nneurons = 3\nranks = 1", "form `pruned` has no ranks, only `neurons`"),
        (
            "form = \"low_rank_only\"\nranks = 3\nreference = 1",
            "shares nothing, and yet reference 1 is given",
        ),
        ("form = \"low_rank_only\"\nranks = { gate = 3, up = 3 }", "needs a rank for each projection"),
        ("form = \"low_rank_only\"\nranks = 3\nneurons = 2", "keeps no neurons of its own"),
        ("form = \"low_rank\"\nranks = 3", "form `low_rank` needs a reference"),
        ("form = \"none\"", "form `none` needs a reference"),
        ("form = \"scaled_low_rank\"\nranks = 3", "form `scaled_low_rank` needs a reference"),
        ("reference = 1\nranks = 3", "form `none` has no ranks; did you mean `low_rank`?"),
        ("reference = 1\nform = \"low_rank\"", "form `low_rank` with all ranks 0; use `none`"),
        ("reference = 1\nform = \"low_rank\"\nranks = 2\nneurons = 5", "only `pruned` and `neurons`"),
        ("form = \"neurons\"\nneurons = 3", "form `neurons` needs a reference"),
        ("form = \"neurons\"\nreference = 1\nneurons = 3\nranks = 2", "form `neurons` has no ranks"),
        ("dropped = true\nform = \"neurons\"\nneurons = 3", "dropped, and yet it keeps neurons"),
    ] {
        let error = refused(lines);
        assert!(error.contains(message) && error.contains("layer 7"), "{lines}: {error}");
    }
}

#[test]
fn misspelt_words_and_other_versions_are_refused_with_what_was_meant() {
    let error = refused("form = \"low_rnk\"");
    assert!(error.contains("layer 7") && error.contains("`low_rank`"), "{error}");
    let error = refused("referense = 1");
    assert!(error.contains("layer 7") && error.contains("`reference`"), "{error}");
    let error = refused("reference = 1\nform = \"low_rank\"\nranks = { gate = 1, upp = 1, down = 1 }");
    assert!(error.contains("layer 7") && error.contains("`up`"), "{error}");
    let error = Plan::from_toml(here(), "version = 2\n").unwrap_err().to_string();
    assert!(error.contains("version 2; this program reads version 1"), "{error}");
    let error = Plan::from_toml(here(), "version = 1\n[[targets]]\nlayer = \"x\"\n").unwrap_err().to_string();
    assert!(error.contains("line 3"), "{error}");
}

#[test]
fn a_plan_that_does_not_fit_the_model_is_refused_and_the_layer_is_named() {
    let config = ModelConfig::llama(24, 40, 4, 4, 2, 64).unwrap();
    let share = |reference| LayerChange::share(2, reference, Repair::None);
    let neurons = |neurons| LayerChange::share(2, 1, Repair::Neurons { neurons });
    let ranks = |up| Ranks { gate: 1, up, down: 1 };
    for (changes, message) in [
        (vec![LayerChange::drop(4)], "layer 4: the model has layers 0 to 3"),
        (vec![LayerChange::drop(2), LayerChange::prune(2, 3)], "layer 2: named twice"),
        (vec![share(4)], "layer 2: reference 4: the model has layers 0 to 3"),
        (vec![share(2)], "layer 2: its reference is itself"),
        (vec![share(1), LayerChange::drop(1)], "layer 2: its reference 1 is a target too"),
        (vec![LayerChange::low_rank(2, ranks(25))], "layer 2: rank 25 of up_proj is above min(d, f) = 24"),
        (vec![LayerChange::low_rank(2, ranks(0))], "layer 2: form `low_rank_only` needs a rank"),
        (vec![LayerChange::share(2, 1, Repair::low_rank(Ranks::default()))], "layer 2: form `low_rank`"),
        (vec![LayerChange::prune(2, 0)], "layer 2: keeps 0 neurons; the MLP has 40"),
        (vec![LayerChange::prune(2, 41)], "layer 2: keeps 41 neurons; the MLP has 40"),
        (vec![neurons(0)], "layer 2: keeps 0 neurons; the MLP has 40"),
        (vec![neurons(41)], "layer 2: keeps 41 neurons; the MLP has 40"),
    ] {
        let error = Plan::new("x", changes).validate(&config).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let changes = vec![share(1), LayerChange::prune(3, 40), LayerChange::drop(0)];
    Plan::new("x", changes).validate(&config).unwrap();
}

#[test]
fn treatments_are_told_in_words() {
    let words = |treatment: Treatment| treatment.describe();
    let share = |repair| words(Treatment::Share { reference: 3, repair });
    assert_eq!(share(Repair::None), "the MLP of layer 3 as it is");
    assert_eq!(share(Repair::low_rank(Ranks::uniform(56))), "the MLP of layer 3, low_rank of rank 56");
    let ranks = Ranks { gate: 1, up: 2, down: 3 };
    assert_eq!(share(Repair::scaled(ranks)), "the MLP of layer 3, scaled_low_rank of ranks 1/2/3");
    assert_eq!(share(Repair::Neurons { neurons: 192 }), "the MLP of layer 3 and 192 neurons of its own");
    assert_eq!(words(Treatment::LowRank { ranks }), "a low-rank MLP of ranks 1/2/3");
    assert_eq!(words(Treatment::Prune { neurons: 736 }), "736 neurons of its own MLP");
    assert_eq!(words(Treatment::Drop), "no MLP");
}
