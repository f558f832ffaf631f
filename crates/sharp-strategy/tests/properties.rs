//! Every plan is valid and meets its budget; `optimal` is never beaten by brute force.

use proptest::prelude::*;
use sharp_model::{ModelConfig, Plan, Ranks, Treatment};
use sharp_strategy::{
    Back, Budget, Cost, Error, Even, Explicit, Form, Front, Greedy, Groups, LayerCosts, Optimal, Options,
    Pairs, Strategy as Sharing, StrategyName, by_name, make_plan,
};

fn config(layers: usize) -> ModelConfig {
    ModelConfig::llama(64, 176, layers, 4, 2, 256).unwrap()
}

#[derive(Debug, Clone)]
struct Case {
    costs: LayerCosts,
    keep: Vec<usize>,
    asked: usize,
}

/// Random directed costs within a window, some pairs missing, some costs negative or equal.
fn cases() -> impl Strategy<Value = Case> {
    (2usize..=9, 1usize..=4).prop_flat_map(|(layers, window)| {
        let pairs: Vec<(usize, usize)> = (0..layers)
            .flat_map(|t| (0..layers).map(move |r| (t, r)))
            .filter(|&(t, r)| t != r && t.abs_diff(r) <= window)
            .collect();
        let cost = prop_oneof![3 => (-100i32..1000).prop_map(|c| Some(f64::from(c) / 100.0)),
                               1 => Just(Some(1.0)), 1 => Just(None)];
        (
            Just(pairs.clone()),
            proptest::collection::vec(cost, pairs.len()),
            proptest::collection::vec(0.0f64..10.0, layers),
            proptest::collection::btree_set(0..layers, 0..=2),
            0..layers,
        )
            .prop_map(move |(pairs, values, importance, keep, asked)| Case {
                costs: LayerCosts {
                    num_layers: layers,
                    metric: "delta_nll".into(),
                    costs: pairs
                        .into_iter()
                        .zip(values)
                        .filter_map(|((target, reference), c)| c.map(|cost| Cost { target, reference, cost }))
                        .collect(),
                    importance,
                },
                keep: keep.into_iter().collect(),
                asked,
            })
    })
}

fn lookup(costs: &LayerCosts, t: usize, r: usize) -> Option<f64> {
    costs.costs.iter().find(|c| c.target == t && c.reference == r).map(|c| c.cost)
}

/// The least total over *all* sets of targets of the size asked for.
fn brute_force(case: &Case) -> Option<f64> {
    let n = case.costs.num_layers;
    (0u32..1 << n)
        .filter(|set| set.count_ones() as usize == case.asked)
        .filter(|set| case.keep.iter().all(|&k| set >> k & 1 == 0))
        .filter_map(|set| {
            (0..n)
                .filter(|&t| set >> t & 1 == 1)
                .map(|t| {
                    (0..n)
                        .filter(|&r| set >> r & 1 == 0)
                        .filter_map(|r| lookup(&case.costs, t, r))
                        .min_by(f64::total_cmp)
                })
                .try_fold(0.0, |sum, c| c.map(|c| sum + c))
        })
        .min_by(f64::total_cmp)
}

fn total(case: &Case, plan: &Plan) -> f64 {
    decisions(plan).into_iter().map(|(layer, reference)| lookup(&case.costs, layer, reference).unwrap()).sum()
}

fn all(size: usize) -> Vec<Box<dyn Sharing>> {
    vec![
        Box::new(Pairs),
        Box::new(Groups { size }),
        Box::new(Back { size: Some(size) }),
        Box::new(Back { size: None }),
        Box::new(Front { size: Some(size) }),
        Box::new(Front { size: None }),
        Box::new(Greedy),
        Box::new(Optimal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn optimal_is_never_beaten_by_brute_force(case in cases()) {
        let config = config(case.costs.num_layers);
        let options = Options { keep: case.keep.clone(), ..Options::default() };
        let plan = make_plan(&config, &Optimal, &case.costs, Budget::Targets(case.asked), &options);
        match (plan, brute_force(&case)) {
            (Ok(plan), Some(best)) => {
                prop_assert_eq!(plan.changes.len(), case.asked);
                let found = total(&case, &plan);
                prop_assert!((found - best).abs() < 1e-9, "optimal found {}, brute force {}", found, best);
            }
            (Err(Error::BudgetUnreachable { possible, asked, .. }), None) => {
                prop_assert_eq!(asked, case.asked);
                // What it says is possible is possible, and one more is not.
                let reachable = |asked| brute_force(&Case { asked, ..case.clone() }).is_some();
                prop_assert!(reachable(possible) && !reachable(possible + 1));
            }
            (Err(Error::MissingCosts { .. }), None) => prop_assert!(case.costs.costs.is_empty()),
            (plan, best) => prop_assert!(false, "optimal {plan:?}, brute force {best:?}"),
        }
    }

    #[test]
    fn greedy_is_valid_and_not_better_than_optimal(case in cases()) {
        let config = config(case.costs.num_layers);
        let options = Options { keep: case.keep.clone(), ..Options::default() };
        let plan = make_plan(&config, &Greedy, &case.costs, Budget::Targets(case.asked), &options);
        if let Ok(plan) = plan {
            prop_assert_eq!(plan.changes.len(), case.asked);
            prop_assert!(total(&case, &plan) >= brute_force(&case).unwrap() - 1e-9);
        }
    }

    #[test]
    fn every_plan_is_valid_and_meets_its_budget(
        case in cases(), size in 2usize..5, fraction in 0.0f64..0.9, first in 0usize..3,
        form in prop_oneof![
            Just(Form::LowRank), Just(Form::Neurons), Just(Form::LowRankOnly), Just(Form::Drop)
        ],
    ) {
        let layers = case.costs.num_layers;
        let config = config(layers);
        let options = Options {
            keep: case.keep.clone(), first: first.min(layers), form, ..Options::default()
        };
        for strategy in all(size) {
            for budget in [Budget::Pattern, Budget::Targets(case.asked), Budget::MlpFractionRemoved(fraction)] {
                let Ok(plan) = make_plan(&config, strategy.as_ref(), &case.costs, budget, &options) else { continue };
                plan.validate(&config).unwrap();
                for t in &plan.changes {
                    prop_assert!(!case.keep.contains(&t.layer), "{} replaced kept {}", strategy.name(), t.layer);
                    prop_assert!(t.layer >= options.first);
                    prop_assert!(!t.reason.is_empty());
                    prop_assert_eq!(t.treatment.form(), form);
                    let shares = matches!(form, Form::LowRank | Form::Neurons);
                    prop_assert_eq!(t.treatment.reference().is_some(), shares);
                }
                match budget {
                    Budget::Targets(n) => prop_assert_eq!(plan.changes.len(), n),
                    Budget::MlpFractionRemoved(f) => {
                        let saved = plan.saved_fraction(&config);
                        prop_assert!(saved >= f - 1e-9, "{}: saved {saved} of {f}", strategy.name());
                        // And not one target more than needed.
                        let one = saved / plan.changes.len().max(1) as f64;
                        prop_assert!(plan.changes.is_empty() || saved - one < f);
                    }
                    _ => {}
                }
            }
        }
    }
}

fn decisions(plan: &Plan) -> Vec<(usize, usize)> {
    plan.changes.iter().map(|t| (t.layer, t.treatment.reference().unwrap())).collect()
}

fn pattern(strategy: &dyn Sharing, layers: usize, budget: Budget, options: &Options) -> Vec<(usize, usize)> {
    decisions(
        &make_plan(&config(layers), strategy, &LayerCosts::unmeasured(layers), budget, options).unwrap(),
    )
}

#[test]
fn patterns_are_what_their_names_say() {
    let o = Options::default();
    assert_eq!(pattern(&Pairs, 7, Budget::Pattern, &o), [(1, 0), (3, 2), (5, 4)]);
    assert_eq!(pattern(&Pairs, 8, Budget::Targets(2), &o), [(5, 4), (7, 6)]);
    assert_eq!(pattern(&Groups { size: 3 }, 7, Budget::Pattern, &o), [(1, 0), (2, 0), (4, 3), (5, 3)]);
    assert_eq!(pattern(&Back { size: Some(3) }, 7, Budget::Targets(3), &o), [(3, 1), (5, 4), (6, 4)]);
    // Pairs give only four of eight; groups of three reach five.
    assert_eq!(
        pattern(&Back { size: None }, 8, Budget::Targets(5), &o),
        [(1, 0), (3, 2), (4, 2), (6, 5), (7, 5)]
    );
    assert_eq!(pattern(&Front { size: None }, 8, Budget::Targets(3), &o), [(1, 0), (3, 2), (5, 4)]);
    assert_eq!(
        pattern(&Front { size: Some(4) }, 9, Budget::Targets(4), &o),
        [(1, 0), (2, 0), (3, 0), (5, 4)]
    );
    let o = Options { first: 2, end: Some(7), ..Options::default() };
    assert_eq!(pattern(&Pairs, 8, Budget::Pattern, &o), [(3, 2), (5, 4)]);
    // A kept layer is the reference of what follows it in its group.
    let o = Options { keep: vec![1, 5], ..Options::default() };
    assert_eq!(pattern(&Groups { size: 3 }, 6, Budget::Pattern, &o), [(2, 1), (4, 3)]);
}

#[test]
fn a_budget_takes_the_cheapest_pairs_where_costs_are_measured() {
    let cost = |target: usize, cost| Cost { target, reference: target - 1, cost };
    let costs = LayerCosts {
        num_layers: 8,
        metric: "delta_nll".into(),
        costs: vec![cost(1, 0.1), cost(3, 2.0), cost(5, 0.2), cost(7, 0.3), cost(2, 0.0)],
        importance: vec![],
    };
    let plan = make_plan(&config(8), &Pairs, &costs, Budget::Targets(2), &Options::default()).unwrap();
    assert_eq!(decisions(&plan), [(1, 0), (5, 4)]);
    assert_eq!(
        plan.changes[0].reason,
        "every second layer, among the cheapest 2 of the pattern's 4; delta_nll 0.1000, the only reference measured"
    );
}

#[test]
fn the_papers_figures_come_out() {
    // Llama2-7B: 14 of 32 MLPs at rank 400 save 37.9 %, 24 of 32 save 65.0 %.
    let config = ModelConfig::llama(4096, 11008, 32, 32, 32, 32000).unwrap();
    let costs = LayerCosts::unmeasured(32);
    let ranks = Some(Ranks::uniform(400));
    let options = Options { ranks, ..Options::default() };
    for (budget, targets) in [(0.378, 14), (0.379, 15), (0.65, 25), (0.649, 24)] {
        let plan = make_plan(&config, &Back::default(), &costs, Budget::MlpFractionRemoved(budget), &options)
            .unwrap();
        assert_eq!(plan.changes.len(), targets, "{budget}");
    }
    let stored = 32 * 3 * 4096 * 11008 * 62 / 100;
    let plan =
        make_plan(&config, &Back::default(), &costs, Budget::StoredMlpParameters(stored), &options).unwrap();
    assert!(plan.stored_mlp_parameters(&config) <= stored);
}

#[test]
fn explicit_lists_are_read_and_checked() {
    let costs = LayerCosts::unmeasured(6);
    let try_list = |text: &str, options: &Options| {
        Explicit::parse(text).and_then(|e| make_plan(&config(6), &e, &costs, Budget::Pattern, options))
    };
    let o = Options::default();
    assert_eq!(decisions(&try_list("3<-2, 1 <- 0", &o).unwrap()), [(1, 0), (3, 2)]);
    for (bad, message) in [
        ("3<-x", "explicit decision: x"),
        ("3<-9", "layer 9: the model has layers 0 to 5"),
        ("3<-3", "layer 3: cannot use its own MLP"),
        ("3<-2, 3<-4", "layer 3: is a target twice"),
        ("3<-2, 2<-1", "layer 3: uses the MLP of layer 2, which gives up its own"),
        ("3", "layer 3: has no reference"),
    ] {
        let error = try_list(bad, &o).unwrap_err().to_string();
        assert!(error.contains(message), "{bad}: {error}");
    }
    let keep = Options { keep: vec![3], ..Options::default() };
    assert!(try_list("3<-2", &keep).unwrap_err().to_string().contains("is to keep its MLP"));
    let alone = Options { form: Form::LowRankOnly, ..Options::default() };
    let plan = try_list("3, 4", &alone).unwrap();
    assert_eq!(plan.changes[1].treatment.form(), Form::LowRankOnly);
}

#[test]
fn what_cannot_be_done_is_refused_with_its_reason() {
    let config = config(6);
    let none = LayerCosts::unmeasured(6);
    let o = Options::default();
    let message = |s: &dyn Sharing, c: &LayerCosts, b, o: &Options| {
        make_plan(&config, s, c, b, o).unwrap_err().to_string()
    };
    assert!(message(&Optimal, &none, Budget::Targets(1), &o).contains("run `sharp analyze` first"));
    assert!(message(&Greedy, &none, Budget::Pattern, &o).contains("needs a budget"));
    assert!(
        message(&Pairs, &none, Budget::Targets(4), &o)
            .contains("can replace 3 of 6 MLPs here, the budget asks for 4")
    );
    assert!(message(&Pairs, &none, Budget::Targets(6), &o).contains("less than the model's 6 layers"));
    assert!(
        message(&Pairs, &none, Budget::MlpFractionRemoved(f64::NAN), &o).contains("from 0 to less than 1")
    );
    assert!(message(&Groups { size: 1 }, &none, Budget::Pattern, &o).contains("at least 2"));
    assert!(
        message(&Pairs, &LayerCosts::unmeasured(5), Budget::Pattern, &o)
            .contains("measured on a model of 5 layers")
    );
    let heavy = Options { ranks: Some(Ranks::uniform(64)), ..o.clone() };
    assert!(message(&Pairs, &none, Budget::MlpFractionRemoved(0.1), &heavy).contains("saves nothing"));
    let huge = Options { ranks: Some(Ranks { gate: 65, up: 1, down: 1 }), ..o.clone() };
    assert!(make_plan(&config, &Pairs, &none, Budget::Pattern, &huge).is_err());
    let rho = Options { rho: 0.0, ..o.clone() };
    assert!(message(&Pairs, &none, Budget::Pattern, &rho).contains("rho"));
    let keep = Options { keep: vec![6], ..o.clone() };
    assert!(message(&Pairs, &none, Budget::Pattern, &keep).contains("layers 0 to 5"));
    let range = Options { first: 5, end: Some(4), ..o.clone() };
    assert!(message(&Pairs, &none, Budget::Pattern, &range).contains("5..4"));
    for (bad, what) in [
        (vec![Cost { target: 1, reference: 1, cost: 0.0 }], "layer 1 with the MLP of layer 1"),
        (vec![Cost { target: 6, reference: 1, cost: 0.0 }], "layer 6"),
        (vec![Cost { target: 1, reference: 0, cost: f64::NAN }], "finite"),
        (vec![Cost { target: 1, reference: 0, cost: 0.0 }; 2], "listed twice"),
    ] {
        let costs = LayerCosts { costs: bad, ..none.clone() };
        assert!(message(&Pairs, &costs, Budget::Pattern, &o).contains(what));
    }
}

#[test]
fn wide_windows_can_be_narrowed_for_optimal() {
    let layers = 24;
    let costs = LayerCosts {
        num_layers: layers,
        metric: "delta_nll".into(),
        costs: (0..layers)
            .flat_map(|t| (0..layers).filter(move |&r| r != t).map(move |r| (t, r)))
            .map(|(target, reference)| Cost { target, reference, cost: target.abs_diff(reference) as f64 })
            .collect(),
        importance: vec![],
    };
    let config = config(layers);
    let error = make_plan(&config, &Optimal, &costs, Budget::Targets(3), &Options::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("invalid window: 23; at most 6"), "{error}");
    let narrow = Options { window: Some(6), ..Options::default() };
    let plan = make_plan(&config, &Optimal, &costs, Budget::Targets(18), &narrow).unwrap();
    let sum: usize = decisions(&plan).into_iter().map(|(layer, reference)| layer.abs_diff(reference)).sum();
    // Six references, each with one user at distance 1 on each side: 12 at 1, and 6 more at 2.
    assert_eq!(sum, 12 + 12);
}

#[test]
fn names_are_known_or_nearly() {
    for &name in StrategyName::ALL {
        match by_name(name, None) {
            Ok(strategy) => assert_eq!(strategy.name(), name.name()),
            Err(e) => assert!(name == StrategyName::Explicit && e.to_string().contains("list"), "{e}"),
        }
    }
    let error = "gready".parse::<StrategyName>().unwrap_err().to_string();
    assert!(error.contains("did you mean `greedy`?"), "{error}");
    assert!(by_name(StrategyName::Pairs, Some(3)).is_err());
}

#[test]
fn neurons_beside_a_reference_are_whole_blocks_and_have_no_ranks() {
    let plan = |intermediate, options: &Options| {
        let config = ModelConfig::llama(64, intermediate, 6, 4, 2, 90).unwrap();
        make_plan(&config, &Pairs, &LayerCosts::unmeasured(6), Budget::Pattern, options)
    };
    let options = |rho| Options { form: Form::Neurons, rho, ..Options::default() };
    let kept = |intermediate, rho| {
        let plan = plan(intermediate, &options(rho)).unwrap();
        assert_eq!(plan.changes.len(), 3);
        plan.changes[0].treatment.neurons()
    };
    // The nearest number of blocks of 32, at least one; single neurons where the width is no whole blocks.
    assert_eq!([kept(256, 0.25), kept(256, 0.134), kept(256, 0.01)], [64, 32, 32]);
    assert_eq!(kept(250, 0.1), 25);
    let ranked = Options { ranks: Some(Ranks::uniform(4)), ..options(0.25) };
    let error = plan(256, &ranked).unwrap_err().to_string();
    assert!(error.contains("none with the form `neurons`"), "{error}");
}

/// Layers that keep a part of their neurons, and how many.
fn neurons(plan: &Plan) -> Vec<(usize, usize)> {
    let neurons = |treatment| match treatment {
        Treatment::Prune { neurons } => neurons,
        other => panic!("{other:?}"),
    };
    plan.changes.iter().map(|c| (c.layer, neurons(c.treatment))).collect()
}

fn pruned(remove: f64, keep: &[usize], importance: &[f64]) -> Result<Plan, Error> {
    let costs = LayerCosts { importance: importance.to_vec(), ..LayerCosts::unmeasured(9) };
    let options = Options { keep: keep.to_vec(), form: Form::Pruned, ..Options::default() };
    make_plan(&config(9), &Even, &costs, Budget::MlpFractionRemoved(remove), &options)
}

proptest! {
    #[test]
    fn even_meets_its_budget_with_layers_that_differ_by_one_step(
        remove in 0.01f64..0.8,
        keep in proptest::collection::btree_set(0usize..9, 0..=3),
        importance in proptest::collection::vec(0.0f64..10.0, 9),
    ) {
        let keep: Vec<usize> = keep.into_iter().collect();
        // config() has 176 neurons, no multiple of 32: they come singly.
        let plan = match pruned(remove, &keep, &importance) {
            Ok(plan) => plan,
            Err(Error::BudgetUnreachable { .. }) => {
                prop_assert!(remove > (9 - keep.len()) as f64 * 175.0 / (9.0 * 176.0) - 1e-9);
                return Ok(());
            }
            Err(e) => return Err(TestCaseError::fail(e.to_string())),
        };
        let saved = plan.saved_fraction(&config(9));
        prop_assert!(saved >= remove - 1e-9, "{saved} of {remove}");
        prop_assert!(saved < remove + 1.0 / (9.0 * 176.0) + 1e-9, "{saved} of {remove}: too much");
        prop_assert_eq!(plan.changes.len(), 9 - keep.len());
        let kept = neurons(&plan);
        let least = kept.iter().map(|&(_, neurons)| neurons).min().unwrap();
        let most = kept.iter().map(|&(_, neurons)| neurons).max().unwrap();
        prop_assert!(most - least <= 1);
        // Who keeps one more is missed more than who does not.
        for ((more, less), (more_kept, less_kept)) in
            kept.iter().flat_map(|a| kept.iter().map(move |b| ((a.0, b.0), (a.1, b.1))))
        {
            if more_kept > less_kept {
                prop_assert!(importance[more] >= importance[less]);
            }
        }
        for layer in keep {
            prop_assert!(plan.is_unchanged(layer));
        }
    }
}

#[test]
fn even_keeps_whole_blocks_and_takes_forms_that_share_nothing() {
    let wide = ModelConfig::llama(64, 192, 4, 4, 2, 256).unwrap();
    let budget = Budget::MlpFractionRemoved(0.3);
    let make = |form| {
        let options = Options { form, keep: vec![0], ..Options::default() };
        make_plan(&wide, &Even, &LayerCosts::unmeasured(4), budget, &options)
    };
    let plan = make(Form::Pruned).unwrap();
    // 537 of 768 neurons may stay, 192 of them in layer 0: ten blocks of 32 for three layers.
    assert_eq!(neurons(&plan), [(1, 128), (2, 96), (3, 96)]);
    assert!(plan.saved_fraction(&wide) >= 0.3);
    let plan = make(Form::LowRankOnly).unwrap();
    let low_rank = |t: &Treatment| matches!(t, Treatment::LowRank { ranks } if ranks.gate > 20);
    assert!(plan.changes.iter().all(|t| low_rank(&t.treatment)));
    assert!((0.3..0.32).contains(&plan.saved_fraction(&wide)));
    assert!(make(Form::LowRank).unwrap_err().to_string().contains("even"));
    let options = Options { form: Form::Pruned, ..Options::default() };
    let error = make_plan(&wide, &Optimal, &LayerCosts::unmeasured(4), budget, &options).unwrap_err();
    assert!(error.to_string().contains("even"), "{error}");
    assert!(matches!(pruned(0.9, &[0, 1, 2], &[]), Err(Error::BudgetUnreachable { .. })));
}
