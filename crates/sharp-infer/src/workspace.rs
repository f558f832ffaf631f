//! The buffers of a forward pass, allocated once.

use sharp_model::{ModelConfig, Rotary};
use sharp_quant::{Activations, Scratch};

use crate::error::Result;
use crate::model::Needs;
use crate::products::ProductBuffers;

/// Buffers for `n` tokens at once at positions below `positions`.
pub(crate) struct Workspace {
    /// Tokens there is room for.
    pub(crate) n: usize,
    /// The residual stream (n, d).
    pub(crate) hidden: Vec<f32>,
    pub(crate) run: Buffers,
}

/// Everything but the residual stream.
pub(crate) struct Buffers {
    /// (n, d)
    pub(crate) normed: Vec<f32>,
    /// (n, heads, head_dim)
    pub(crate) q: Vec<f32>,
    /// (n, kv_heads, head_dim)
    pub(crate) k: Vec<f32>,
    /// (n, kv_heads, head_dim)
    pub(crate) v: Vec<f32>,
    /// (n, heads, head_dim)
    pub(crate) mixed: Vec<f32>,
    /// (n, d): what attention or the MLP adds.
    pub(crate) delta: Vec<f32>,
    /// (n, d): another layer's MLP's output, while neurons of the layer's own run beside it.
    pub(crate) beside: Vec<f32>,
    /// (n, f); not used where the packed kernels fuse it.
    pub(crate) gate: Vec<f32>,
    /// (n, f)
    pub(crate) up: Vec<f32>,
    /// (n, f): input of the packed down projection.
    pub(crate) mlp_acts: Activations,
    pub(crate) products: ProductBuffers,
    pub(crate) rope: RopeTables,
}

/// The rotations of every position, for every kind of layer of a model.
pub(crate) struct RopeTables {
    /// Of the model's RoPE.
    global: RopeTable,
    /// Of the RoPE that some layers have of their own.
    local: Option<RopeTable>,
}

impl RopeTables {
    /// Computes the rotations of positions `0..positions`.
    fn new(config: &ModelConfig, positions: usize) -> Self {
        Self {
            global: RopeTable::new(&config.inv_freq(), positions),
            local: config.local_inv_freq().map(|freq| RopeTable::new(&freq, positions)),
        }
    }

    /// Returns the table that a layer rotates its queries and keys by; `None` where it does not.
    pub(crate) fn of(&self, rotary: Rotary) -> Option<&RopeTable> {
        match rotary {
            Rotary::None => None,
            Rotary::Global => Some(&self.global),
            Rotary::Local => {
                Some(self.local.as_ref().expect("layers with a RoPE of their own have a base for it"))
            }
        }
    }
}

/// Cosines and sines of every position's angles, each (positions, head_dim / 2).
pub(crate) struct RopeTable {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl Workspace {
    pub(crate) fn new(config: &ModelConfig, needs: Needs, n: usize, positions: usize) -> Result<Self> {
        let n = n.max(1);
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.query_size(), config.key_value_size());
        let wide = d.max(f).max(q);
        // Where nothing is packed the integer kernels' buffers stay empty, and the other way round.
        let packed = if needs.packed { n } else { 1 };
        let ops = if needs.packed { 2 } else { 0 };
        let floats = |wanted: bool, width: usize| vec![0.0; if wanted { n * width } else { 0 }];
        let activations = if needs.floats { Activations::new } else { Activations::integers };
        Ok(Self {
            n,
            hidden: vec![0.0; n * d],
            run: Buffers {
                normed: vec![0.0; n * d],
                q: vec![0.0; n * q],
                k: vec![0.0; n * kv],
                v: vec![0.0; n * kv],
                mixed: vec![0.0; n * q],
                delta: vec![0.0; n * d],
                beside: floats(needs.own_neurons, d),
                gate: floats(needs.unfused_mlp, f),
                up: floats(needs.unfused_mlp, f),
                mlp_acts: activations(packed, f)?,
                products: ProductBuffers {
                    acts: activations(packed, wide)?,
                    scratch: Scratch::new(ops, n, needs.rank, if needs.col_scale { wide } else { 0 })?,
                    low: [floats(needs.dense, needs.rank), floats(needs.dense, needs.rank)],
                    scaled: floats(needs.dense && needs.col_scale, wide),
                },
                rope: RopeTables::new(config, positions),
            },
        })
    }
}

impl Workspace {
    /// Returns at least the bytes of a workspace.
    pub(crate) fn bytes(config: &ModelConfig, needs: Needs, n: usize, positions: usize) -> u64 {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.query_size(), config.key_value_size());
        // Activations hold a float and an 8-bit number for each column, and a little for each block.
        let row = 5 * d + 2 * q + 2 * kv + 4 * f + 6 * d.max(f).max(q) + 3 * needs.rank;
        let tables = if config.local_inv_freq().is_some() { 2 } else { 1 };
        4 * (n as u64 * row as u64 + tables * positions as u64 * config.head_dim as u64)
    }
}

impl RopeTable {
    /// Angles are products in f32, as in the models' own training code.
    fn new(frequencies: &[f64], positions: usize) -> Self {
        let mut cos = Vec::with_capacity(positions * frequencies.len());
        let mut sin = Vec::with_capacity(positions * frequencies.len());
        for position in 0..positions {
            for f in frequencies {
                let (s, c) = f64::from(position as f32 * *f as f32).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        Self { cos, sin }
    }
}
