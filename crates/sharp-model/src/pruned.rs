//! Which neurons of a pruned MLP stay, by the weights alone. Where activations are known, training decides
//! better.

use crate::checkpoint::source::TensorRef;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::names;
use crate::projection::PerProjection;

/// Finds the `keep` largest of an MLP's `neurons` from its weights `[gate (f, d), up (f, d), down (d, f)]`;
/// returns their numbers, ascending. A neuron's size is the product of the norms of its gate row, its up row
/// and its down column; at equal size the earlier stays.
pub fn largest_neurons([gate, up, down]: [&[f32]; 3], neurons: usize, keep: usize) -> Vec<usize> {
    let square = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let width = (gate.len() / neurons.max(1)).max(1);
    let mut columns = vec![0.0; neurons];
    for row in down.chunks_exact(neurons.max(1)) {
        columns.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v).powi(2));
    }
    let mut order: Vec<(usize, f64)> = gate
        .chunks_exact(width)
        .zip(up.chunks_exact(width))
        .zip(&columns)
        .map(|((gate, up), column)| square(gate) * square(up) * column)
        .enumerate()
        .collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.truncate(keep);
    let mut kept: Vec<usize> = order.into_iter().map(|(j, _)| j).collect();
    kept.sort_unstable();
    kept
}

/// Keeps the `neurons` neurons of a layer's MLP with the largest weights, as they are: gate `(k, d)`, up `(k,
/// d)`, down `(d, k)`, named as in a checkpoint ([`largest_neurons`]). It is what pruning without any data
/// gives, the plan without training ([`crate::Plan::untrained`]). `weights` are the whole ones, row-major.
///
/// # Errors
/// None but those of [`TensorRef::from_f32`].
pub(crate) fn keep_largest(
    layer: usize,
    config: &ModelConfig,
    weights: &PerProjection<Vec<f32>>,
    neurons: usize,
) -> Result<PerProjection<TensorRef>> {
    let (d, f) = (config.hidden_size, config.intermediate_size);
    let PerProjection { gate, up, down } = weights;
    let kept = largest_neurons([gate, up, down], f, neurons);
    let rows = |from: &[f32]| -> Vec<f32> {
        kept.iter().flat_map(|&j| &from[j * d..(j + 1) * d]).copied().collect()
    };
    let columns = down.chunks_exact(f).flat_map(|row| kept.iter().map(|&j| row[j])).collect();
    let values = PerProjection { gate: rows(gate), up: rows(up), down: columns };
    PerProjection::try_from_fn(|p| {
        let (out, input) = p.shape_with(d, kept.len());
        TensorRef::from_f32(names::mlp_weight(layer, p), &[out, input], &values[p])
    })
}
