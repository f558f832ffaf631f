//! Converts between checkpoints' bytes and libtorch's tensors.

use sharp_model::TensorRef;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Converts a size to libtorch's type.
///
/// # Errors
/// [`Error::Invalid`] beyond `i64::MAX`.
pub(crate) fn dim(n: usize) -> Result<i64> {
    i64::try_from(n).map_err(|_| Error::invalid(format!("size {n} is too large")))
}

/// Converts a size of a tensor to Rust's type.
pub(crate) fn size(n: i64) -> usize {
    usize::try_from(n).expect("a tensor's sizes are not negative")
}

/// Copies a stored tensor of any type to a float32 tensor on `device`.
pub(crate) fn from_ref(tensor: &TensorRef, device: Device) -> Result<Tensor> {
    from_f32(&tensor.f32()?, tensor.shape(), device)
}

/// Makes a tensor of `shape` from row-major values.
pub(crate) fn from_f32(values: &[f32], shape: &[usize], device: Device) -> Result<Tensor> {
    let sizes = shape.iter().map(|&n| dim(n)).collect::<Result<Vec<_>>>()?;
    if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) != Some(values.len()) {
        return Err(Error::Shape {
            what: "values".into(),
            expected: shape.to_vec(),
            found: vec![values.len()],
        });
    }
    Ok(Tensor::f_from_slice(values)?.f_reshape(&sizes[..])?.f_to_device(device)?)
}

/// Makes a tensor `(n)` of int64 from token numbers.
pub(crate) fn from_tokens(tokens: &[u32], device: Device) -> Result<Tensor> {
    let wide: Vec<i64> = tokens.iter().map(|&t| i64::from(t)).collect();
    Ok(Tensor::f_from_slice(&wide)?.f_to_device(device)?)
}

/// Copies a tensor's values, row-major, as float32.
pub(crate) fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0.0; flat.numel()];
    flat.f_copy_data(&mut values, flat.numel())?;
    Ok(values)
}

/// Returns the value of a tensor of one element.
pub(crate) fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.f_double_value(&[])?)
}

/// Returns a tensor's shape in `usize`.
pub(crate) fn shape_of(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&n| size(n)).collect()
}
