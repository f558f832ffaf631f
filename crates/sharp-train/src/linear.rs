//! A matrix product with a stored weight, in the chosen number type.

use tch::{Kind, Tensor};

use crate::device::Precision;
use crate::error::Result;

/// `y = x Wᵀ + bias`.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `(out, in)`, in the products' number type.
    pub(crate) weight: Tensor,
    /// `(out)`, float32.
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    /// Makes a product with a float32 `weight (out, in)`, converted if the precision asks for it.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>, precision: Precision) -> Result<Self> {
        Ok(Self { weight: weight.f_to_kind(precision.kind())?, bias })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.as_ref().map(Tensor::shallow_clone) }
    }

    /// Computes `y (n, out)`, of the products' number type, from `x (n, in)` of any.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = product(x, &self.weight.f_tr()?)?;
        if let Some(bias) = &self.bias {
            let _ = y.f_add_(bias)?;
        }
        Ok(y)
    }

    /// Computes the input's gradient `(n, in)`, of the products' number type, from the output's `(n, out)` of
    /// any.
    pub(crate) fn input_grad(&self, dy: &Tensor) -> Result<Tensor> {
        product(dy, &self.weight)
    }

    /// Computes the weight's gradient `(out, in)`, float32, from the input `(n, in)` and the output's
    /// gradient `(n, out)`.
    pub(crate) fn weight_grad(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let grad = product(&dy.f_tr()?, &x.f_to_kind(self.weight.f_kind()?)?)?;
        Ok(grad.f_to_kind(Kind::Float)?)
    }

    /// Subtracts the bias from `y`.
    pub(crate) fn without_bias(&self, y: &Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => Ok(y.f_sub(bias)?),
            None => Ok(y.shallow_clone()),
        }
    }
}

/// Computes `x @ w` in the number type of `w`.
fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_kind(w.f_kind()?)?.f_mm(w)?)
}
