//! Which instruction set the kernels use.

use crate::error::{Error, Result};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(dead_code)] // each build has the scalar kernels and those of its own processor family
pub(crate) enum Kind {
    Scalar,
    NeonPlain,
    Neon,
    NeonI8mm,
    Avx2,
    Avx512Vnni,
}

const ALL: [Kind; 6] =
    [Kind::Avx512Vnni, Kind::Avx2, Kind::NeonI8mm, Kind::Neon, Kind::NeonPlain, Kind::Scalar];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Scalar => "scalar",
            Kind::NeonPlain => "neon-plain",
            Kind::Neon => "neon",
            Kind::NeonI8mm => "neon-i8mm",
            Kind::Avx2 => "avx2",
            Kind::Avx512Vnni => "avx512vnni",
        }
    }

    fn detected(self) -> bool {
        match self {
            Kind::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => {
                Kind::Avx2.detected()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Kind::NeonPlain => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => Kind::NeonPlain.detected() && std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Kind::NeonI8mm => Kind::Neon.detected() && std::arch::is_aarch64_feature_detected!("i8mm"),
            #[allow(unreachable_patterns)] // the arms above depend on the processor family
            _ => false,
        }
    }
}

/// An instruction set that this processor has: a value exists only where its kernels can run.
///
/// Names: `scalar`, `neon-plain`, `neon` (with dot product), `neon-i8mm` (with 8-bit matrix products too),
/// `avx2` (with FMA and F16C), `avx512vnni`. Results are bit-equal on all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Kind);

impl Isa {
    /// The environment variable that [`Isa::from_env`] reads.
    pub const ENV: &'static str = "SHARP_ISA";

    /// Returns the portable reference.
    pub fn scalar() -> Self {
        Isa(Kind::Scalar)
    }

    /// Returns the fastest that this processor has.
    pub fn best() -> Self {
        ALL.into_iter().find(|k| k.detected()).map_or(Isa(Kind::Scalar), Isa)
    }

    /// Lists everything that this processor has, fastest first.
    pub fn available() -> Vec<Self> {
        ALL.into_iter().filter(|k| k.detected()).map(Isa).collect()
    }

    /// Finds an instruction set by name.
    ///
    /// # Errors
    /// [`Error::Unknown`] and [`Error::IsaUnavailable`].
    pub fn named(name: &str) -> Result<Self> {
        let kind = ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| Error::Unknown {
            what: "instruction set",
            name: name.to_owned(),
            known: ALL.map(Kind::name).join(", "),
        })?;
        if kind.detected() {
            Ok(Isa(kind))
        } else {
            let available: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
            Err(Error::IsaUnavailable { name: kind.name(), available: available.join(", ") })
        }
    }

    /// Finds the instruction set that the environment variable `SHARP_ISA` names; unset or empty: the best.
    ///
    /// # Errors
    /// Those of [`Isa::named`].
    pub fn from_env() -> Result<Self> {
        match std::env::var_os(Isa::ENV) {
            Some(name) if !name.is_empty() => Isa::named(&name.to_string_lossy()),
            _ => Ok(Isa::best()),
        }
    }

    /// Returns the name.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
