//! The layers that two models have in common, so that work done for one serves the other.

use std::sync::Arc;

use crate::linear::{Linear, Weight};
use crate::model::{Attention, Layer, Mlp, Model};

/// Equal weights: at one address, or byte for byte (models opened from files of their own).
fn weight(a: &Weight, b: &Weight) -> bool {
    if a.is_same(b) {
        return true;
    }
    let (x, y) = (a.bytes(), b.bytes());
    a.format_name() == b.format_name()
        && (a.rows(), a.cols()) == (b.rows(), b.cols())
        && x.len() == y.len()
        && (x.as_ptr() == y.as_ptr() || x[..] == y[..])
}

fn linear(a: &Linear, b: &Linear) -> bool {
    (a.base().is_some(), a.rank()) == (b.base().is_some(), b.rank())
        && (&a.row_scale, &a.col_scale, &a.bias) == (&b.row_scale, &b.col_scale, &b.bias)
        && (a.rows(), a.cols()) == (b.rows(), b.cols())
        && a.weights().zip(b.weights()).all(|(a, b)| weight(&a, &b))
}

fn attention(a: &Attention, b: &Attention) -> bool {
    (&a.norm, &a.after, &a.q_norm, &a.k_norm) == (&b.norm, &b.after, &b.q_norm, &b.k_norm)
        && a.kind == b.kind
        && a.projections().into_iter().zip(b.projections()).all(|(a, b)| linear(a, b))
}

fn mlp(a: &Mlp, b: &Mlp) -> bool {
    (a.zero, a.activation) == (b.zero, b.activation)
        && a.projections().into_iter().zip(b.projections()).all(|(a, b)| linear(a, b))
}

fn layer(a: &Layer, b: &Layer) -> bool {
    (Arc::ptr_eq(&a.attention, &b.attention) || attention(&a.attention, &b.attention))
        && (&a.mlp_norm, &a.after_mlp) == (&b.mlp_norm, &b.after_mlp)
        && (Arc::ptr_eq(&a.mlp, &b.mlp) || mlp(&a.mlp, &b.mlp))
}

impl Model {
    /// How many layers from the first on, with the embedding, are the same in both models: what enters that
    /// layer in one enters it in the other, to the bit. `None` if not even the embedding is the same.
    pub fn shared_prefix(&self, other: &Model) -> Option<usize> {
        let (a, b) = (self.config(), other.config());
        let shape = |c: &sharp_model::ModelConfig| {
            (
                c.hidden_size,
                c.head_dim,
                c.num_attention_heads,
                c.num_key_value_heads,
                c.rms_norm_eps.to_bits(),
            )
        };
        if shape(a) != shape(b)
            || (a.inv_freq(), a.local_inv_freq()) != (b.inv_freq(), b.local_inv_freq())
            || a.scales != b.scales
            || !weight(self.embedding(), other.embedding())
        {
            return None;
        }
        // One pass works on one set of kernels.
        if self.team().isa() != other.team().isa() {
            return Some(0);
        }
        Some(self.layers().iter().zip(other.layers()).take_while(|(a, b)| layer(a, b)).count())
    }
}
