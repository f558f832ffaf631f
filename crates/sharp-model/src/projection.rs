//! The three matrices of a gated MLP, and values that there is one of for each.

use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;

/// One of the three matrices of a gated MLP: `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// `(intermediate_size, hidden_size)`, through SiLU.
    Gate,
    /// `(intermediate_size, hidden_size)`.
    Up,
    /// `(hidden_size, intermediate_size)`.
    Down,
}

impl Projection {
    /// In the order of the computation.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    /// `gate_proj`, `up_proj` or `down_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// `(out, in)` of the weight.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        self.shape_with(config.hidden_size, config.intermediate_size)
    }

    /// `(out, in)` of the weight in an MLP of `neurons` neurons between vectors of width `hidden`.
    pub fn shape_with(self, hidden: usize, neurons: usize) -> (usize, usize) {
        match self {
            Self::Gate | Self::Up => (neurons, hidden),
            Self::Down => (hidden, neurons),
        }
    }
}

/// A value for each projection of an MLP.
///
/// ```
/// use sharp_model::{PerProjection, Projection};
/// let mut ranks = PerProjection::uniform(8);
/// ranks[Projection::Down] = 16;
/// assert_eq!(ranks.map(|r| 2 * r), PerProjection { gate: 16, up: 16, down: 32 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct PerProjection<T> {
    /// Of the gate projection.
    pub gate: T,
    /// Of the up projection.
    pub up: T,
    /// Of the down projection.
    pub down: T,
}

impl<T> PerProjection<T> {
    /// Makes each projection's value with `f`, in the order of [`Projection::ALL`].
    pub fn from_fn(mut f: impl FnMut(Projection) -> T) -> Self {
        Self { gate: f(Projection::Gate), up: f(Projection::Up), down: f(Projection::Down) }
    }

    /// Makes each projection's value with `f`, which may fail, in the order of [`Projection::ALL`].
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_from_fn<E>(mut f: impl FnMut(Projection) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self { gate: f(Projection::Gate)?, up: f(Projection::Up)?, down: f(Projection::Down)? })
    }

    /// Applies `f` to each value, in the order of [`Projection::ALL`].
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> PerProjection<U> {
        PerProjection { gate: f(self.gate), up: f(self.up), down: f(self.down) }
    }

    /// Pairs the values of two of them.
    pub fn zip<U>(self, other: PerProjection<U>) -> PerProjection<(T, U)> {
        PerProjection {
            gate: (self.gate, other.gate),
            up: (self.up, other.up),
            down: (self.down, other.down),
        }
    }

    /// Borrows each value.
    pub fn each_ref(&self) -> PerProjection<&T> {
        PerProjection { gate: &self.gate, up: &self.up, down: &self.down }
    }

    /// Returns the projections with their values, in the order of [`Projection::ALL`].
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Projection, &T)> {
        self.each_ref().into_iter()
    }

    /// Returns the values alone, in the order of [`Projection::ALL`].
    pub fn values(&self) -> impl ExactSizeIterator<Item = &T> {
        [&self.gate, &self.up, &self.down].into_iter()
    }
}

impl<T: Clone> PerProjection<T> {
    /// The same value for all three.
    pub fn uniform(value: T) -> Self {
        Self { gate: value.clone(), up: value.clone(), down: value }
    }
}

impl<T> IntoIterator for PerProjection<T> {
    type Item = (Projection, T);
    type IntoIter = std::array::IntoIter<(Projection, T), 3>;

    fn into_iter(self) -> Self::IntoIter {
        [(Projection::Gate, self.gate), (Projection::Up, self.up), (Projection::Down, self.down)].into_iter()
    }
}

impl<T> Index<Projection> for PerProjection<T> {
    type Output = T;

    fn index(&self, projection: Projection) -> &T {
        match projection {
            Projection::Gate => &self.gate,
            Projection::Up => &self.up,
            Projection::Down => &self.down,
        }
    }
}

impl<T> IndexMut<Projection> for PerProjection<T> {
    fn index_mut(&mut self, projection: Projection) -> &mut T {
        match projection {
            Projection::Gate => &mut self.gate,
            Projection::Up => &mut self.up,
            Projection::Down => &mut self.down,
        }
    }
}
