#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod costs;
mod error;
mod even;
mod options;
mod patterns;
mod problem;
mod search;
mod unchanged;

pub use costs::{Cost, LayerCosts, Table};
pub use error::{Error, Result};
pub use even::Even;
pub use options::{Budget, Options};
pub use patterns::{Back, Explicit, Front, Groups, Pairs};
pub use problem::{Choice, Problem, Strategy};
pub use search::{Greedy, MAX_OPTIMAL_WINDOW, Optimal};
pub use sharp_schema::{Form, StrategyName};
pub use unchanged::Unchanged;

use sharp_model::{LayerChange, ModelConfig, Plan};

/// Returns the strategy of this name. `group` is the group size of `groups` (default 3), `back` and `front`
/// (default: the smallest that meets the budget).
///
/// # Errors
/// [`Error::InvalidOption`] where a group size is given to a strategy that has none, and for `explicit`,
/// which needs its list ([`Explicit::parse`]).
pub fn by_name(name: StrategyName, group: Option<usize>) -> Result<Box<dyn Strategy>> {
    let strategy: Box<dyn Strategy> = match name {
        StrategyName::Back => return Ok(Box::new(Back { size: group })),
        StrategyName::Front => return Ok(Box::new(Front { size: group })),
        StrategyName::Groups => return Ok(Box::new(Groups { size: group.unwrap_or(3) })),
        StrategyName::Pairs => Box::new(Pairs),
        StrategyName::Greedy => Box::new(Greedy),
        StrategyName::Optimal => Box::new(Optimal),
        StrategyName::Even => Box::new(Even),
        StrategyName::None => Box::new(Unchanged),
        StrategyName::Explicit => {
            return Err(Error::InvalidOption {
                what: "strategy",
                value: name.to_string(),
                expected: "a list of decisions with it, such as `11<-10, 13<-12`".into(),
            });
        }
    };
    match group {
        None => Ok(strategy),
        Some(size) => Err(Error::InvalidOption {
            what: "group size",
            value: size.to_string(),
            expected: format!("none with `{name}`; only `groups`, `back` and `front` have one"),
        }),
    }
}

/// Makes a plan: the strategy's decisions, each with its reason, sorted by layer and validated against the
/// model.
///
/// # Errors
/// Costs that do not fit the model, a budget out of the strategy's reach, ranks too large for the model, and
/// whatever else [`Error`] lists.
pub fn make_plan(
    config: &ModelConfig,
    strategy: &dyn Strategy,
    costs: &LayerCosts,
    budget: Budget,
    options: &Options,
) -> Result<Plan> {
    let problem = Problem::new(config, costs, budget, options)?;
    let mut choices = strategy.choose(&problem)?;
    choices.sort_by_key(|c| c.layer);
    let change = |Choice { layer, treatment, reason }| LayerChange { layer, treatment, reason };
    let plan = Plan::new(strategy.name(), choices.into_iter().map(change).collect());
    plan.validate(config)?;
    Ok(plan)
}
