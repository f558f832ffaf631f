//! Matrices of checkpoints and packed files, each in memory once however many layers use it.

use std::collections::HashMap;
use std::sync::Arc;

use sharp_model::{
    TensorBytes, TensorRef,
    packed::{BlobFormat, PackedTensor},
};
use sharp_quant::{DType, Error as QuantError, PackedFormat, ScaleRule, Team};

use crate::error::{Error, Result};
use crate::linear::{DenseWeight, PackedWeight, Weight};

/// Rows repacked at a time; a multiple of the layouts' groups of 16.
const ROWS: usize = 512;

/// Matrices by the address and shape of their bytes.
#[derive(Default)]
pub(crate) struct TensorCache {
    known: HashMap<(usize, usize, usize), Weight>,
    /// The threads that pack block-quantised matrices; without, these become floats.
    packer: Option<Arc<Team>>,
}

impl TensorCache {
    /// Makes a cache that packs block-quantised matrices of checkpoints.
    pub(crate) fn packing(team: Arc<Team>) -> Self {
        Self { packer: Some(team), ..Self::default() }
    }

    /// Takes a matrix (rows, cols) of a checkpoint: floats as they lie there.
    pub(crate) fn checkpoint(&mut self, tensor: &TensorRef, (rows, cols): (usize, usize)) -> Result<Weight> {
        let (true, Some(team)) = (tensor.dtype().is_quantized(), &self.packer) else {
            return self.floats(tensor, (rows, cols));
        };
        // Bytes that were made for this call may lie where earlier ones did.
        let key = tensor.bytes.is_mapped().then_some((tensor.bytes.as_ptr() as usize, rows, cols));
        if let Some(known) = key.and_then(|key| self.known.get(&key)) {
            return Ok(known.clone());
        }
        let (format, bytes) = match tensor.dtype() {
            DType::Q4_0 => (PackedFormat::Q4, sharp_quant::pack_q4_0(rows, cols, &tensor.bytes)),
            DType::Q8_0 => (PackedFormat::Q8, sharp_quant::pack_q8_0(rows, cols, &tensor.bytes)),
            _ => (PackedFormat::Q8, eight_bits(team, tensor, (rows, cols))),
        };
        let weight = bytes
            .and_then(|bytes| PackedWeight::new(format, rows, cols, TensorBytes::owned(bytes)))
            .map_err(Error::tensor(tensor.name()))?;
        let weight = Weight::Packed(Arc::new(weight));
        if let Some(key) = key {
            self.known.insert(key, weight.clone());
        }
        Ok(weight)
    }

    fn floats(&mut self, tensor: &TensorRef, (rows, cols): (usize, usize)) -> Result<Weight> {
        let (dtype, bytes) = if tensor.dtype().is_quantized() {
            let values = tensor.f32()?;
            (DType::F32, TensorBytes::owned(values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        } else {
            (tensor.dtype(), tensor.bytes.clone())
        };
        let weight = DenseWeight::new(dtype, rows, cols, bytes).map_err(Error::tensor(tensor.name()))?;
        Ok(self.one_of(Weight::Dense(Arc::new(weight))))
    }

    /// Takes a matrix of a packed file.
    pub(crate) fn packed(&mut self, name: &str, tensor: PackedTensor) -> Result<Weight> {
        let PackedTensor { format, rows, cols, bytes, .. } = tensor;
        let weight = match format {
            BlobFormat::Packed(format) => {
                PackedWeight::new(format, rows, cols, bytes).map(|w| Weight::Packed(Arc::new(w)))
            }
            BlobFormat::F32 => {
                DenseWeight::new(DType::F32, rows, cols, bytes).map(|w| Weight::Dense(Arc::new(w)))
            }
            other => return Err(Error::argument(format!("{name} is stored as {}", other.name()))),
        };
        Ok(self.one_of(weight.map_err(Error::tensor(name))?))
    }

    /// Returns the matrix already known for these bytes, or else keeps this one.
    fn one_of(&mut self, weight: Weight) -> Weight {
        let key = (weight.bytes().as_ptr() as usize, weight.rows(), weight.cols());
        self.known.entry(key).or_insert(weight).clone()
    }
}

/// Rounds blocks of a kind that the kernels do not have to Q8_0's numbers, a run of rows at a time.
fn eight_bits(team: &Team, tensor: &TensorRef, (rows, cols): (usize, usize)) -> Result<Vec<u8>, QuantError> {
    let mut out = vec![0; PackedFormat::Q8.nbytes(rows, cols)?];
    let mut values = vec![0.0; ROWS.min(rows) * cols];
    let piece = PackedFormat::Q8.nbytes(ROWS.min(rows), cols)?;
    let (block, bytes) = (tensor.dtype().block_len(), tensor.dtype().block_bytes());
    let rule = ScaleRule::default();
    for (out, stored) in out.chunks_mut(piece).zip(tensor.bytes.chunks(ROWS * cols / block * bytes)) {
        let count = stored.len() / bytes * block;
        let values = &mut values[..count];
        sharp_quant::dequantize(tensor.dtype(), stored, values)?;
        let shape = (count / cols, cols);
        sharp_quant::pack_f32_parallel(team, PackedFormat::Q8, rule, shape, values, None, out)?;
    }
    Ok(out)
}
