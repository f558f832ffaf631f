//! Which stages are wanted, and how closely what they have written is looked at.

use crate::manifest::Look;
use crate::stages::Stage;

/// Says which stages are wanted, and how closely what they have written is looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Span {
    /// Make this stage and all after it again.
    pub from: Option<Stage>,
    /// Stop after this stage.
    pub until: Option<Stage>,
    /// Make this one stage again.
    pub again: Option<Stage>,
    /// How closely files are looked at.
    pub look: Look,
}

impl Span {
    pub(super) fn contains(self, stage: Stage) -> bool {
        self.until.is_none_or(|until| stage <= until)
    }

    pub(super) fn forces(self, stage: Stage) -> bool {
        self.from.is_some_and(|from| stage >= from) || self.again == Some(stage)
    }
}
