//! What a layer of the compressed model has in place of its MLP.

use sharp_schema::Form;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::projection::{PerProjection, Projection};

/// The rank `r` of `A (r, in)` and `B (out, r)` for each projection; 0: no such matrices.
pub type Ranks = PerProjection<usize>;

/// What a layer has in place of its MLP. `W` is a projection's weight `(out, in)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Treatment {
    /// The MLP of another layer, which keeps its own, repaired.
    Share {
        /// The layer whose MLP it is.
        reference: usize,
        /// What is added to bring it nearer to the layer's own.
        repair: Repair,
    },
    /// Low-rank matrices alone, `B A`: the baseline that shares nothing.
    LowRank {
        /// At least 1 for each projection.
        ranks: Ranks,
    },
    /// Some neurons of its own MLP: structured pruning.
    Prune {
        /// How many it keeps, at least 1.
        neurons: usize,
    },
    /// Nothing: the MLP's output is zero (the layer-pruning baseline).
    Drop,
}

/// What repairs another layer's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Repair {
    /// Nothing: `W_ref`, direct sharing.
    #[default]
    None,
    /// `diag(row_scale) W_ref diag(col_scale) + B A`, with the scales that `scales` says. Without scales it
    /// is the paper's form (Wang et al., arXiv 2502.07832).
    LowRank {
        /// Which scales it has.
        scales: Scales,
        /// Ranks of `B A`. Without scales at least one is above 0.
        ranks: Ranks,
    },
    /// Neurons of the layer's own MLP beside the reference's, whose output has a scale for each channel:
    /// `y = row_scale * MLP_ref(x) + MLP_own(x)`.
    Neurons {
        /// How many, at least 1.
        neurons: usize,
    },
}

/// Which scales a repair has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scales {
    /// None.
    #[default]
    None,
    /// `row_scale (out)`.
    Rows,
    /// `row_scale (out)` and `col_scale (in)`.
    RowsAndColumns,
}

impl Scales {
    /// Whether there is a `row_scale (out)`.
    pub fn rows(self) -> bool {
        matches!(self, Self::Rows | Self::RowsAndColumns)
    }

    /// Whether there is a `col_scale (in)`.
    pub fn columns(self) -> bool {
        self == Self::RowsAndColumns
    }
}

impl Repair {
    /// Low-rank matrices without scales.
    pub fn low_rank(ranks: Ranks) -> Self {
        Self::LowRank { scales: Scales::None, ranks }
    }

    /// Low-rank matrices with row scales.
    pub fn scaled(ranks: Ranks) -> Self {
        Self::LowRank { scales: Scales::Rows, ranks }
    }

    /// Low-rank matrices with row and column scales.
    pub fn row_column_scaled(ranks: Ranks) -> Self {
        Self::LowRank { scales: Scales::RowsAndColumns, ranks }
    }

    fn form(self) -> Form {
        match self {
            Self::None => Form::None,
            Self::LowRank { scales: Scales::None, .. } => Form::LowRank,
            Self::LowRank { scales: Scales::Rows, .. } => Form::ScaledLowRank,
            Self::LowRank { scales: Scales::RowsAndColumns, .. } => Form::RowColumnScaledLowRank,
            Self::Neurons { .. } => Form::Neurons,
        }
    }
}

impl Treatment {
    /// Builds a treatment from the words and numbers that plan files and configurations have for it. What a
    /// form has no use for is `None` or 0.
    ///
    /// # Errors
    /// [`Error::Plan`] for a combination that means nothing.
    pub fn new(form: Form, reference: Option<usize>, ranks: Ranks, neurons: usize) -> Result<Self> {
        let fault = |what: String| Err(Error::plan(None, what));
        let unranked = ranks == Ranks::default();
        if !unranked && matches!(form, Form::Pruned | Form::Neurons) {
            return fault(format!("form `{form}` has no ranks, only `neurons`"));
        }
        if neurons != 0 && !matches!(form, Form::Pruned | Form::Neurons) {
            let name = if form == Form::Drop { Form::None } else { form };
            return fault(format!(
                "form `{name}` keeps no neurons of its own; only `pruned` and `neurons` have `neurons`"
            ));
        }
        let scales = match form {
            Form::None | Form::LowRank | Form::Neurons => Scales::None,
            Form::ScaledLowRank => Scales::Rows,
            Form::RowColumnScaledLowRank => Scales::RowsAndColumns,
            Form::Drop if reference.is_some() => return fault("dropped, and yet it has a reference".into()),
            Form::Drop if !unranked => return fault("dropped, and yet it has recovery parameters".into()),
            Form::Drop => return Ok(Self::Drop),
            Form::Pruned | Form::LowRankOnly if reference.is_some() => {
                let reference = reference.unwrap_or_default();
                return fault(format!(
                    "form `{form}` shares nothing, and yet reference {reference} is given"
                ));
            }
            Form::Pruned => return Ok(Self::Prune { neurons }),
            Form::LowRankOnly => return Self::LowRank { ranks }.checked(),
        };
        let Some(reference) = reference else { return fault(format!("form `{form}` needs a reference")) };
        let repair = match form {
            Form::None if !unranked => {
                return fault("form `none` has no ranks; did you mean `low_rank`?".into());
            }
            Form::None => Repair::None,
            Form::Neurons => Repair::Neurons { neurons },
            _ => Repair::LowRank { scales, ranks },
        };
        Self::Share { reference, repair }.checked()
    }

    fn checked(self) -> Result<Self> {
        self.check_ranks().map_err(|what| Error::plan(None, what)).map(|()| self)
    }

    /// Refuses ranks of 0 where they leave nothing.
    pub(super) fn check_ranks(&self) -> Result<(), String> {
        match self {
            Self::Share { repair: Repair::LowRank { scales: Scales::None, ranks }, .. }
                if *ranks == Ranks::default() =>
            {
                Err("form `low_rank` with all ranks 0; use `none` for direct sharing".into())
            }
            Self::LowRank { ranks } if ranks.values().any(|&r| r == 0) => {
                Err("form `low_rank_only` needs a rank for each projection".into())
            }
            Self::Share { .. } | Self::LowRank { .. } | Self::Prune { .. } | Self::Drop => Ok(()),
        }
    }

    /// The word that plan files and configurations have for it.
    pub fn form(&self) -> Form {
        match self {
            Self::Share { repair, .. } => repair.form(),
            Self::LowRank { .. } => Form::LowRankOnly,
            Self::Prune { .. } => Form::Pruned,
            Self::Drop => Form::Drop,
        }
    }

    /// The layer whose MLP it runs with, where that is another's.
    pub fn reference(&self) -> Option<usize> {
        match self {
            Self::Share { reference, .. } => Some(*reference),
            Self::LowRank { .. } | Self::Prune { .. } | Self::Drop => None,
        }
    }

    /// The layer under whose name the weights are stored that `layer` runs with under this treatment. `None`:
    /// it runs with no stored weights.
    pub fn owner_of_weights(&self, layer: usize) -> Option<usize> {
        match self {
            Self::Share { reference, .. } => Some(*reference),
            Self::Prune { .. } => Some(layer),
            Self::LowRank { .. } | Self::Drop => None,
        }
    }

    /// How many neurons of the layer's own MLP it keeps.
    pub fn neurons(&self) -> usize {
        match self {
            Self::Prune { neurons } | Self::Share { repair: Repair::Neurons { neurons }, .. } => *neurons,
            Self::Share { .. } | Self::LowRank { .. } | Self::Drop => 0,
        }
    }

    /// Whether it has neurons of its own beside another layer's MLP.
    pub fn has_neurons_beside(&self) -> bool {
        matches!(self, Self::Share { repair: Repair::Neurons { .. }, .. })
    }

    /// Whether the layer stores MLP weights under its own name.
    pub fn stores_weights(&self) -> bool {
        match self {
            Self::Prune { .. } => true,
            Self::Share { .. } | Self::LowRank { .. } | Self::Drop => false,
        }
    }

    /// Ranks of its low-rank matrices; 0 where there are none.
    pub fn ranks(&self) -> Ranks {
        match self {
            Self::Share { repair: Repair::LowRank { ranks, .. }, .. } | Self::LowRank { ranks } => *ranks,
            Self::Share { .. } | Self::Prune { .. } | Self::Drop => Ranks::default(),
        }
    }

    /// Which scales a projection has.
    pub fn scales(&self, projection: Projection) -> Scales {
        match self {
            Self::Share { repair: Repair::LowRank { scales, .. }, .. } => *scales,
            Self::Share { repair: Repair::Neurons { .. }, .. } if projection == Projection::Down => {
                Scales::Rows
            }
            Self::Share { .. } | Self::LowRank { .. } | Self::Prune { .. } | Self::Drop => Scales::None,
        }
    }

    /// `(out, in)` of a projection as the layer computes it: the model's shape, that of fewer neurons, or,
    /// with neurons beside a reference's, of more.
    pub fn shape(&self, projection: Projection, config: &ModelConfig) -> (usize, usize) {
        let whole = config.intermediate_size;
        let neurons = match self {
            Self::Prune { neurons } => *neurons,
            Self::Share { repair: Repair::Neurons { neurons }, .. } => whole + neurons,
            Self::Share { .. } | Self::LowRank { .. } | Self::Drop => whole,
        };
        projection.shape_with(config.hidden_size, neurons)
    }

    /// `(out, in)` of what is stored of a projection for the layer's own neurons; without neurons one of the
    /// two is 0.
    pub fn own_shape(&self, projection: Projection, config: &ModelConfig) -> (usize, usize) {
        projection.shape_with(config.hidden_size, self.neurons())
    }

    /// How many parameters the layer stores of its own: low-rank matrices and scales, or the neurons it
    /// keeps.
    pub fn stored_parameters(&self, config: &ModelConfig) -> u64 {
        self.matrix_parameters(config) + self.scale_parameters(config)
    }

    /// Of [`Treatment::stored_parameters`], those in matrices.
    pub(super) fn matrix_parameters(&self, config: &ModelConfig) -> u64 {
        let ranks = self.ranks();
        let of = |p: Projection| {
            let ((out, input), (own_out, own_input)) = (p.shape(config), self.own_shape(p, config));
            ranks[p] as u64 * (out + input) as u64 + own_out as u64 * own_input as u64
        };
        Projection::ALL.into_iter().map(of).sum()
    }

    /// Of [`Treatment::stored_parameters`], those in scales.
    pub(super) fn scale_parameters(&self, config: &ModelConfig) -> u64 {
        let of = |p: Projection| {
            let (scales, (out, input)) = (self.scales(p), p.shape(config));
            (if scales.rows() { out as u64 } else { 0 }) + if scales.columns() { input as u64 } else { 0 }
        };
        Projection::ALL.into_iter().map(of).sum()
    }

    /// What is left of it without training: another layer's MLP as it is, and nothing of low-rank matrices
    /// or of neurons beside it. Pruning stays what it is.
    #[must_use]
    pub fn untrained(self) -> Self {
        match self {
            Self::Share { reference, .. } => Self::Share { reference, repair: Repair::None },
            Self::LowRank { .. } | Self::Drop => Self::Drop,
            Self::Prune { .. } => self,
        }
    }

    /// What the layer has, in words that follow "layer 5:": `the MLP of layer 4, low_rank of rank 56`.
    pub fn describe(&self) -> String {
        match self {
            Self::Share { reference, repair: Repair::None } => {
                format!("the MLP of layer {reference} as it is")
            }
            Self::Share { reference, repair: Repair::Neurons { neurons: 1 } } => {
                format!("the MLP of layer {reference} and 1 neuron of its own")
            }
            Self::Share { reference, repair: Repair::Neurons { neurons } } => {
                format!("the MLP of layer {reference} and {neurons} neurons of its own")
            }
            Self::Share { reference, repair } => {
                format!("the MLP of layer {reference}, {} of {}", repair.form(), in_words(self.ranks()))
            }
            Self::LowRank { ranks } => format!("a low-rank MLP of {}", in_words(*ranks)),
            Self::Prune { neurons: 1 } => "1 neuron of its own MLP".into(),
            Self::Prune { neurons } => format!("{neurons} neurons of its own MLP"),
            Self::Drop => "no MLP".into(),
        }
    }
}

fn in_words(ranks: Ranks) -> String {
    let Ranks { gate, up, down } = ranks;
    if gate == up && up == down { format!("rank {gate}") } else { format!("ranks {gate}/{up}/{down}") }
}
