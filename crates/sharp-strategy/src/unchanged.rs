//! The strategy that changes nothing: `none`.

use sharp_schema::StrategyName;

use crate::Result;
use crate::problem::{Choice, Problem, Strategy};

/// No layer changes, whatever the budget: fine-tuning alone then says what training without compression does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unchanged;

impl Strategy for Unchanged {
    fn name(&self) -> &str {
        StrategyName::None.name()
    }

    fn choose(&self, _: &Problem<'_>) -> Result<Vec<Choice>> {
        Ok(Vec::new())
    }
}
