//! What `auto` in `[training]` means on a machine: a fingerprint holds that, so that a run that is moved is
//! not continued with other arithmetic.

use sharp_schema::Bf16;

use crate::config::{Device, Training};

/// What a machine has that `auto` goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// Its processor multiplies bf16 in hardware.
    pub(super) bf16: bool,
    /// It has a GPU. Whether libtorch can use it shows only when a program is built against that libtorch.
    pub(super) gpu: bool,
}

impl Machine {
    /// Describes this machine.
    pub(super) fn this() -> Self {
        Self { bf16: sharp_host::multiplies_bf16(), gpu: sharp_host::has_gpu() }
    }

    /// Returns where training computes.
    pub(super) fn device(self, training: &Training) -> String {
        match (training.device, self.gpu) {
            (Device::Auto, true) => "cuda where libtorch has it".to_owned(),
            (Device::Auto, false) => Device::Cpu.to_string(),
            (named, _) => named.to_string(),
        }
    }

    /// Returns the number type of training's matrix products.
    pub(super) fn number_type(self, training: &Training) -> &'static str {
        match (training.bf16, training.device) {
            (Bf16::On, _) => "bf16",
            (Bf16::Off, _) => "f32",
            (Bf16::Auto, Device::Cuda | Device::CudaIndex(_)) => "bf16",
            (Bf16::Auto, _) if self.bf16 => "bf16",
            (Bf16::Auto, Device::Auto) if self.gpu => "bf16 on cuda, f32 on cpu",
            (Bf16::Auto, _) => "f32",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_what_the_machine_makes_of_it() {
        let resolved = |bf16, device, machine: Machine| {
            let training = Training { bf16, device, seed: None };
            (machine.number_type(&training), machine.device(&training))
        };
        let plain = Machine { bf16: false, gpu: false };
        let amx = Machine { bf16: true, ..plain };
        let gpu = Machine { gpu: true, ..plain };
        assert_eq!(resolved(Bf16::Auto, Device::Auto, plain), ("f32", "cpu".into()));
        assert_eq!(resolved(Bf16::Auto, Device::Auto, amx), ("bf16", "cpu".into()));
        assert_eq!(
            resolved(Bf16::Auto, Device::Auto, gpu),
            ("bf16 on cuda, f32 on cpu", "cuda where libtorch has it".into())
        );
        assert_eq!(resolved(Bf16::Auto, Device::Cpu, gpu), ("f32", "cpu".into()));
        assert_eq!(resolved(Bf16::Auto, Device::CudaIndex(1), plain), ("bf16", "cuda:1".into()));
        for machine in [plain, amx, gpu] {
            assert_eq!(resolved(Bf16::On, Device::Cpu, machine), ("bf16", "cpu".into()));
            assert_eq!(resolved(Bf16::Off, Device::Cuda, machine), ("f32", "cuda".into()));
        }
    }
}
