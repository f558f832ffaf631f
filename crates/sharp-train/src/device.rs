//! Says where and how to compute: device, number type of the linears, and threads.

use tch::{Cuda, Device, Kind};

use crate::error::{Error, Result};

/// The number type of matrix products. Everything else (norms, softmax, losses, moments, master weights) is
/// float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// float32 throughout.
    #[default]
    F32,
    /// bfloat16 products where the CPU has instructions for them (or on CUDA), with float32 master weights.
    Bf16,
}

impl Precision {
    /// Chooses the faster type of a device. Without `avx512_bf16` or AMX, libtorch's bfloat16 products run at
    /// about a hundredth of float32's speed.
    pub fn best(device: Device) -> Self {
        if device.is_cuda() || sharp_host::multiplies_bf16() { Self::Bf16 } else { Self::F32 }
    }

    /// Returns libtorch's name of the type.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// Where and how to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    /// CPU or a CUDA device.
    pub device: Device,
    /// Number type of the matrix products.
    pub precision: Precision,
    /// Worker threads; each runs its own sequences with a single-threaded libtorch. On CUDA always 1.
    pub threads: usize,
}

impl Compute {
    /// Computes on the CPU with this many workers, in float32. Tells libtorch to use one thread per worker.
    pub fn cpu(threads: usize) -> Self {
        Self { device: Device::Cpu, precision: Precision::F32, threads: threads.max(1) }.applied()
    }

    /// Resolves a device name (`auto`, `cpu`, `cuda`, `cuda:1`) and a precision name (`auto`, `f32`, `bf16`).
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown name or a device this libtorch does not have.
    pub fn from_names(device: &str, precision: &str, threads: usize) -> Result<Self> {
        let device = match device {
            "cpu" => Device::Cpu,
            "auto" => Device::cuda_if_available(),
            name => {
                let index = match name.strip_prefix("cuda") {
                    Some("") => Some(0),
                    Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse::<usize>().ok()),
                    None => None,
                }
                .ok_or_else(|| Error::invalid(format!("device `{name}`: use auto, cpu, cuda or cuda:N")))?;
                let found = usize::try_from(Cuda::device_count()).unwrap_or(0);
                if index >= found {
                    return Err(Error::invalid(format!(
                        "device `{name}`: this libtorch sees {found} CUDA devices"
                    )));
                }
                Device::Cuda(index)
            }
        };
        let precision = match precision {
            "f32" => Precision::F32,
            "bf16" => Precision::Bf16,
            "auto" => Precision::best(device),
            name => return Err(Error::invalid(format!("precision `{name}`: use auto, f32 or bf16"))),
        };
        let threads = if device.is_cuda() { 1 } else { threads.max(1) };
        Ok(Self { device, precision, threads }.applied())
    }

    /// Chooses how many sequences of `time` tokens a worker takes through the model together. On a CPU one:
    /// workers divide a step, and what is kept for the backward pass stays small. On a GPU as many as keep it
    /// busy.
    pub(crate) fn sequences_at_once(&self, time: usize) -> usize {
        if self.device.is_cuda() { (16_384 / time.max(1)).max(1) } else { 1 }
    }

    /// Limits libtorch to one thread a worker. Matrix products of a few hundred rows gain more from
    /// independent sequences than from splitting one, and the results do not depend on the number of workers.
    fn applied(self) -> Self {
        tch::set_num_threads(1);
        self
    }
}
