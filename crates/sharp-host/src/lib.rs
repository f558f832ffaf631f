#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;

/// Answers nothing, where the system is not known.
#[cfg(not(target_os = "linux"))]
mod system {
    pub(crate) fn total_memory() -> Option<u64> {
        None
    }

    pub(crate) fn memory_limit() -> Option<u64> {
        None
    }

    pub(crate) fn available_memory() -> Option<u64> {
        None
    }

    pub(crate) fn resident_memory(_: Option<u32>) -> Option<u64> {
        None
    }

    pub(crate) fn address_space_left() -> Option<u64> {
        None
    }

    pub(crate) fn peak_memory(_: Option<u32>) -> Option<u64> {
        None
    }

    pub(crate) fn processor() -> Option<String> {
        None
    }

    pub(crate) fn has_gpu() -> bool {
        false
    }
}

/// Returns the bytes of memory that the machine has.
pub fn total_memory() -> Option<u64> {
    system::total_memory()
}

/// Returns the bytes of memory and swap that this process may use at most: the machine's, or its control
/// group's.
pub fn memory_limit() -> Option<u64> {
    system::memory_limit()
}

/// Returns the bytes of memory that can be had without pushing other processes out: the machine's, or what is
/// left of its control group's.
pub fn available_memory() -> Option<u64> {
    system::available_memory()
}

/// Returns the bytes of address space that this process may still take; `None` where it has no limit
/// (`ulimit -v`).
pub fn address_space_left() -> Option<u64> {
    system::address_space_left()
}

/// Returns the resident memory of this process, in bytes.
pub fn resident_memory() -> Option<u64> {
    system::resident_memory(None)
}

/// Returns the resident memory of another process, in bytes; `None` once it has ended.
pub fn resident_memory_of(process: u32) -> Option<u64> {
    system::resident_memory(Some(process))
}

/// Returns the largest resident memory that this process has had, in bytes.
pub fn peak_memory() -> Option<u64> {
    system::peak_memory(None)
}

/// Returns the largest resident memory that another process has had so far, in bytes; `None` once it has
/// ended.
pub fn peak_memory_of(process: u32) -> Option<u64> {
    system::peak_memory(Some(process))
}

/// Returns the processor's name, such as `AMD EPYC 9554 64-Core Processor`.
pub fn processor() -> Option<String> {
    system::processor()
}

/// Returns true where the processor multiplies bf16 in hardware. AMX is seen by `avx512_bf16`, which every
/// processor with AMX has.
pub fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Returns true where the machine lends this process an NVIDIA GPU. A program may still be built without
/// CUDA.
pub fn has_gpu() -> bool {
    system::has_gpu()
}
