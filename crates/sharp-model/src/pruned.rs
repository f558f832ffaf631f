//! Pruned MLPs: fewer neurons of a layer's own. Which ones stay is decided where activations are known; by the weights alone here.

use crate::error::Result;
use crate::model::ModelSource;
use crate::names;
use crate::projection::Projection;
use crate::source::TensorRef;

/// The numbers, ascending, of the `keep` largest of an MLP's `neurons`, from its weights `[gate (f, d), up (f, d), down (d, f)]`. A
/// neuron's size is the product of the norms of its gate row, its up row and its down column; at equal size the earlier stays.
pub fn largest([gate, up, down]: [&[f32]; 3], neurons: usize, keep: usize) -> Vec<usize> {
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

/// The `neurons` neurons of a layer's MLP with the largest weights, as they are: gate `(k, d)`, up `(k, d)`, down `(d, k)`, named as
/// in a checkpoint ([`largest`]). It is what pruning without any data gives, the plan without training ([`crate::Plan::untrained`]).
///
/// # Errors
/// [`Error::NoTensor`](crate::Error::NoTensor) and [`Error::Plan`](crate::Error::Plan) as [`ModelSource::projection`];
/// [`Error::Quant`](crate::Error::Quant) if stored bytes cannot be converted.
pub fn largest_neurons(source: &ModelSource, layer: usize, neurons: usize) -> Result<[TensorRef; 3]> {
    let weight = |p| -> Result<(Vec<f32>, usize)> {
        let part = source.projection(layer, p)?;
        Ok((part.effective_f32()?, part.in_features))
    };
    let ((gate, d), (up, _), (down, f)) =
        (weight(Projection::Gate)?, weight(Projection::Up)?, weight(Projection::Down)?);
    let kept = largest([&gate, &up, &down], f, neurons);
    let rows = |from: &[f32]| -> Vec<f32> {
        kept.iter().flat_map(|&j| from.get(j * d..(j + 1) * d).unwrap_or_default()).copied().collect()
    };
    let columns: Vec<f32> =
        down.chunks_exact(f).flat_map(|row| kept.iter().filter_map(|&j| row.get(j)).copied()).collect();
    let k = kept.len();
    let name = |p| names::mlp_weight(layer, p);
    Ok([
        TensorRef::from_f32(name(Projection::Gate), &[k, d], &rows(&gate))?,
        TensorRef::from_f32(name(Projection::Up), &[k, d], &rows(&up))?,
        TensorRef::from_f32(name(Projection::Down), &[columns.len() / k.max(1), k], &columns)?,
    ])
}
