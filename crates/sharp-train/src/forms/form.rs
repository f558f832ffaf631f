//! What a recovery form is.

use sharp_model::Projection;
use sharp_model::names;
use tch::Tensor;

use crate::error::Result;
use crate::params::Group;

/// One value for each piece that a projection has: its tensors, their gradients, their shapes. What a form
/// does not have is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces<T = Tensor> {
    /// `A (r, in)`.
    pub a: Option<T>,
    /// `B (out, r)`.
    pub b: Option<T>,
    /// `row_scale (out)`.
    pub row: Option<T>,
    /// `col_scale (in)`.
    pub col: Option<T>,
    /// The whole weight `(out, in)`, where the layer has one of its own.
    pub weight: Option<T>,
    /// Neurons of the layer's own beside a reference: the last `k` rows `(k, in)` of gate and up, the last
    /// `k` columns `(out, k)` of down.
    pub neurons: Option<T>,
}

impl<T> Default for Pieces<T> {
    fn default() -> Self {
        Self { a: None, b: None, row: None, col: None, weight: None, neurons: None }
    }
}

impl<T> Pieces<T> {
    /// Returns the pieces there are, in the order of [`Piece::ALL`].
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Piece, &T)> {
        Piece::ALL.into_iter().filter_map(|piece| Some((piece, self.get(piece)?)))
    }

    pub(crate) fn get(&self, piece: Piece) -> Option<&T> {
        match piece {
            Piece::A => self.a.as_ref(),
            Piece::B => self.b.as_ref(),
            Piece::Row => self.row.as_ref(),
            Piece::Col => self.col.as_ref(),
            Piece::Weight => self.weight.as_ref(),
            Piece::Neurons => self.neurons.as_ref(),
        }
    }

    /// Makes a value of each piece there is, in the order of [`Piece::ALL`].
    pub(crate) fn try_map<U>(&self, mut f: impl FnMut(Piece, &T) -> Result<U>) -> Result<Pieces<U>> {
        let mut of = |piece| self.get(piece).map(|value| f(piece, value)).transpose();
        Ok(Pieces {
            a: of(Piece::A)?,
            b: of(Piece::B)?,
            row: of(Piece::Row)?,
            col: of(Piece::Col)?,
            weight: of(Piece::Weight)?,
            neurons: of(Piece::Neurons)?,
        })
    }
}

/// Names a field of [`Pieces`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    A,
    B,
    Row,
    Col,
    Weight,
    Neurons,
}

impl Piece {
    /// In the order in which they lie among the parameters.
    pub(crate) const ALL: [Self; 6] = [Self::A, Self::B, Self::Row, Self::Col, Self::Weight, Self::Neurons];

    /// The tensor's name in a recovery file.
    pub(crate) fn tensor_name(self, layer: usize, projection: Projection) -> String {
        match self {
            Self::A => names::lora_a(layer, projection),
            Self::B => names::lora_b(layer, projection),
            Self::Row => names::row_scale(layer, projection),
            Self::Col => names::col_scale(layer, projection),
            Self::Weight => names::mlp_weight(layer, projection),
            Self::Neurons => names::neurons(layer, projection),
        }
    }

    /// How the optimiser treats it.
    pub(crate) fn group(self) -> Group {
        match self {
            Self::A | Self::B => Group::Factor,
            Self::Row | Self::Col => Group::Scale,
            Self::Weight => Group::Pruned,
            Self::Neurons => Group::Neurons,
        }
    }
}

/// How large a projection and its pieces are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Which of the three.
    pub projection: Projection,
    /// Rows of the effective weight, neurons beside a reference included.
    pub out: usize,
    /// Columns of the effective weight, neurons beside a reference included.
    pub input: usize,
    /// Rank of the low-rank factors; 0: there are none.
    pub rank: usize,
    /// Neurons of the layer's own, beside a reference or alone.
    pub neurons: usize,
}

/// What passes through a projection in one backward pass.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// Its input, `(n, in)`.
    pub x: &'a Tensor,
    /// Its output before any bias, `(n, out)`.
    pub y: &'a Tensor,
    /// Its output's gradient, `(n, out)`.
    pub dy: &'a Tensor,
    /// Its input's gradient through this projection alone, `(n, in)`; given if [`Form::needs_input_grad`].
    pub dx: Option<&'a Tensor>,
}

/// Makes a layer's weight `(out, in)` from a reference's and a few pieces, and takes the pieces' gradients.
///
/// A form of one's own implements this trait; [`fit_form`](crate::warmup::fit_form) fits it to a layer. The
/// forms that a plan can name are in this module.
pub trait Form: Send + Sync + std::fmt::Debug {
    /// Names the form, for messages.
    fn name(&self) -> &str;

    /// Returns the shapes of the pieces that a projection has.
    fn shapes(&self, size: &Size) -> Pieces<Vec<usize>>;

    /// Writes the effective weight into `out (out, in)`, float32.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if a piece or the reference is missing; from libtorch if
    /// shapes differ.
    fn effective_into(&self, out: &mut Tensor, reference: Option<&Tensor>, pieces: &Pieces) -> Result<()>;

    /// Whether the zero start draws `B` at random, as it does `A`. Needed where `B A` is all that there is:
    /// with `B` at zero every gradient of gate and up would stay zero.
    fn draws_b(&self) -> bool {
        false
    }

    /// Whether [`Form::gradients`] reads [`Flow::dx`].
    fn needs_input_grad(&self) -> bool {
        false
    }

    /// Whether training takes [`Form::weight_gradients`] even where no reference is trained.
    fn needs_weight_grad(&self) -> bool {
        false
    }

    /// Computes the pieces' gradients from what passed through the projection.
    ///
    /// # Errors
    /// As [`Form::effective_into`].
    fn gradients(&self, pieces: &Pieces, flow: &Flow<'_>) -> Result<Pieces>;

    /// Computes the pieces' gradients and the reference's `(out, in)` from the effective weight's gradient
    /// `dw (out, in)`.
    ///
    /// Exact everywhere and dearer by one full product; needed where the reference is trained too.
    /// `reference` is given only where it is trained: otherwise it is `None`, also for a layer that has
    /// one.
    ///
    /// # Errors
    /// As [`Form::effective_into`].
    fn weight_gradients(
        &self,
        reference: Option<&Tensor>,
        pieces: &Pieces,
        dw: &Tensor,
    ) -> Result<(Pieces, Option<Tensor>)>;
}
