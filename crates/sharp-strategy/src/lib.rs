#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod costs;
mod error;
mod even;
mod options;
mod patterns;
mod problem;
mod search;

pub use costs::{Cost, LayerCosts, Table};
pub use error::{Error, Result};
pub use even::Even;
pub use options::{Budget, Options, Replacement};
pub use patterns::{Back, Explicit, Front, Groups, Pairs};
pub use problem::{Choice, Problem, Strategy};
pub use search::{Greedy, MAX_OPTIMAL_WINDOW, Optimal};

use sharp_model::{ModelConfig, Ranks, RecoveryForm, SharingPlan, Target};

/// The names [`by_name`] knows. `explicit` is not among them: it needs its list ([`Explicit::parse`]).
pub const STRATEGIES: [&str; 7] = ["pairs", "back", "front", "groups", "greedy", "optimal", "even"];

/// The strategy of this name. `group` is the group size of `groups` (default 3), `back` and `front` (default: the
/// smallest that meets the budget).
///
/// # Errors
/// [`Error::UnknownStrategy`] with the nearest name; [`Error::InvalidOption`] where a group size is given to a
/// strategy that has none.
pub fn by_name(name: &str, group: Option<usize>) -> Result<Box<dyn Strategy>> {
    if let ("pairs" | "greedy" | "optimal" | "even", Some(size)) = (name, group) {
        return Err(Error::InvalidOption {
            what: "group size",
            value: size.to_string(),
            expected: format!("none with `{name}`; only `groups`, `back` and `front` have one"),
        });
    }
    Ok(match name {
        "pairs" => Box::new(Pairs),
        "back" => Box::new(Back { size: group }),
        "front" => Box::new(Front { size: group }),
        "groups" => Box::new(Groups { size: group.unwrap_or(3) }),
        "greedy" => Box::new(Greedy),
        "optimal" => Box::new(Optimal),
        "even" => Box::new(Even),
        _ => {
            let known = || STRATEGIES.into_iter().chain(["explicit"]);
            return Err(Error::UnknownStrategy {
                name: name.into(),
                similar: sharp_model::suggest::nearest(name, known()).map(str::to_owned),
                known: known().collect::<Vec<_>>().join(", "),
            });
        }
    })
}

/// Makes a plan: the strategy's decisions with the options' recovery form and ranks, each with its reason, sorted by
/// target and validated against the model.
///
/// # Errors
/// Costs that do not fit the model, a budget out of the strategy's reach, ranks too large for the model, and whatever
/// else [`Error`] lists.
pub fn make_plan(
    config: &ModelConfig,
    strategy: &dyn Strategy,
    costs: &LayerCosts,
    budget: Budget,
    options: &Options,
) -> Result<SharingPlan> {
    if costs.num_layers != config.num_hidden_layers {
        return Err(Error::InvalidCosts(format!(
            "measured on a model of {} layers, but this one has {}",
            costs.num_layers, config.num_hidden_layers
        )));
    }
    let form = options.effective_form();
    if strategy.name() == Even.name() {
        return even::plan(config, costs, budget, options);
    }
    if options.replacement == Replacement::Prune {
        return Err(Error::InvalidOption {
            what: "strategy",
            value: strategy.name().into(),
            expected: "`even` with the form `pruned`: every layer keeps some of its neurons".into(),
        });
    }
    let ranks = ranks(config, options, form)?;
    let target = |layer, reference, reason| Target {
        layer,
        reference,
        form,
        ranks,
        reason,
        neurons: 0,
        dropped: options.replacement == Replacement::Drop,
    };
    // What a target's recovery costs is the plan's own arithmetic, asked for one target.
    let sample = target(0, (options.replacement == Replacement::Share).then_some(1), String::new());
    let wanted = problem::count(config, budget, sample.recovery_parameters(config))?;
    let problem = Problem::new(costs, options, wanted)?;
    let mut choices = strategy.choose(&problem)?;
    choices.sort_by_key(|c| c.target);
    let targets = choices.into_iter().map(|c| target(c.target, c.reference, c.reason)).collect();
    let plan = SharingPlan::new(strategy.name(), targets);
    plan.validate(config)?;
    Ok(plan)
}

/// The baseline twin of a plan: the same targets with the same ranks, low-rank matrices alone and nothing shared.
///
/// Its stored size equals the plan's for the plain low-rank form (scales, where a form has them, fall away).
pub fn without_sharing(plan: &SharingPlan) -> SharingPlan {
    let twin = |t: &Target| Target::low_rank_only(t.layer, t.ranks).because(t.reason.clone());
    SharingPlan::new(format!("{}, without sharing", plan.strategy), plan.targets.iter().map(twin).collect())
}

fn ranks(config: &ModelConfig, options: &Options, form: RecoveryForm) -> Result<Ranks> {
    if form == RecoveryForm::None {
        return Ok(Ranks::default());
    }
    if let Some(ranks) = options.ranks {
        return Ok(ranks);
    }
    if !(options.rho > 0.0 && options.rho < 1.0) {
        return Err(Error::InvalidOption {
            what: "rho",
            value: options.rho.to_string(),
            expected: "a fraction of one MLP between 0 and 1 (the paper: 0.134)".into(),
        });
    }
    Ok(Ranks::uniform(sharp_model::plan::rank_for_rho(config, options.rho)))
}
