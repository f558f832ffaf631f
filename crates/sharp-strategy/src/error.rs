//! What can go wrong while a plan is made.

/// Why no plan could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A budget, rank, window or group size makes no sense.
    #[error("invalid {what}: {value}; {expected}")]
    InvalidOption {
        /// Which option.
        what: &'static str,
        /// The value as given.
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// The measured costs do not fit the model, or hold values that cannot be compared.
    #[error("replacement costs: {0}")]
    InvalidCosts(String),
    /// The strategy decides by measured costs and was given none.
    #[error("strategy `{strategy}` decides by {needed}, and none were measured (run `sharp analyze` first)")]
    MissingCosts {
        /// The strategy.
        strategy: String,
        /// What it would have needed.
        needed: &'static str,
    },
    /// The strategy has no size of its own and was given no budget.
    #[error(
        "strategy `{strategy}` needs a budget: a number of layers or a fraction of MLP parameters to remove"
    )]
    MissingBudget {
        /// The strategy.
        strategy: String,
    },
    /// The budget asks for more replaced layers than the strategy can find.
    #[error(
        "strategy `{strategy}` can replace {possible} of {layers} MLPs here, the budget asks for {asked}; {advice}"
    )]
    BudgetUnreachable {
        /// The strategy.
        strategy: String,
        /// How many targets it can find.
        possible: usize,
        /// How many the budget asks for.
        asked: usize,
        /// How many layers the model has.
        layers: usize,
        /// What to change.
        advice: String,
    },
    /// The budget cannot be met because a target's recovery parameters outweigh the MLP it gives up.
    #[error(
        "replacing a layer saves nothing: recovery parameters {recovery} against {mlp} of the MLP; use smaller ranks"
    )]
    NothingSaved {
        /// Recovery parameters of one target layer.
        recovery: u64,
        /// Parameters of one MLP.
        mlp: u64,
    },
    /// An explicit decision contradicts another one or an option.
    #[error("layer {layer}: {problem}")]
    InvalidDecision {
        /// The layer named in the decision.
        layer: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The finished plan does not fit the model.
    #[error("the plan does not fit the model: {0}")]
    Plan(#[from] sharp_model::Error),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
