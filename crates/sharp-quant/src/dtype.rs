//! Names and sizes of the stored number formats.

use crate::error::{Error, Result};
use std::{fmt, str::FromStr};

/// Elements that share a scale in the formats that are written.
pub const BLOCK: usize = 32;
/// Elements of a super-block, the block of the K formats.
pub(crate) const SUPER_BLOCK: usize = 256;

/// A stored number format. The block formats are ggml's to the byte; those marked so are read and never
/// written.
///
/// | format | elements a block | bytes a block | layout |
/// |---|---|---|---|
/// | `F32`, `F16`, `BF16` | 1 | 4, 2, 2 | little endian |
/// | `Q8_0` | 32 | 34 | f16 scale `d`, 32 signed bytes; weight = `d * q` |
/// | `Q4_0` | 32 | 18 | f16 scale `d`, 16 bytes; low nibble = `j`, high = `16 + j`; weight = `d * (q - 8)` |
/// | `Q4_1` | 32 | 20 | f16 scale `d`, f16 minimum `m`, 16 bytes as in `Q4_0`; weight = `d * q + m` |
/// | `Q5_0`, `Q5_1` | 32 | 22, 24 | as `Q4_0` (with `q - 16`) and `Q4_1` with a fifth bit; read only |
/// | `IQ4_NL` | 32 | 18 | as `Q4_0` with 16 uneven levels; read only |
/// | `Q4_K`, `Q5_K` | 256 | 144, 176 | eight 6-bit scales and minimums under two f16 scales; read only |
/// | `Q6_K` | 256 | 210 | sixteen 8-bit scales under one f16 scale; read only |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// 8 bits a weight and a scale for every 32.
    Q8_0,
    /// 4 bits a weight and a scale for every 32.
    Q4_0,
    /// 4 bits a weight, a scale and a minimum for every 32.
    Q4_1,
    /// 5 bits a weight and a scale for every 32.
    Q5_0,
    /// 5 bits a weight, a scale and a minimum for every 32.
    Q5_1,
    /// 4 bits a weight that number uneven levels, a scale for every 32.
    IQ4_NL,
    /// 4 bits a weight in super-blocks of 256.
    Q4_K,
    /// 5 bits a weight in super-blocks of 256.
    Q5_K,
    /// 6 bits a weight in super-blocks of 256.
    Q6_K,
}

impl DType {
    /// Every format, for tables and messages.
    pub const ALL: [DType; 12] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::IQ4_NL,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
    ];

    /// Elements in a block: 1, 32 or 256.
    pub const fn block_len(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::IQ4_NL => BLOCK,
            DType::Q4_K | DType::Q5_K | DType::Q6_K => SUPER_BLOCK,
        }
    }

    /// Bytes in a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Q8_0 => 34,
            DType::Q4_0 => 18,
            DType::Q4_1 => 20,
            DType::Q5_0 => 22,
            DType::Q5_1 => 24,
            DType::IQ4_NL => 18,
            DType::Q4_K => 144,
            DType::Q5_K => 176,
            DType::Q6_K => 210,
        }
    }

    /// Bytes that `elements` elements take.
    ///
    /// # Errors
    /// [`Error::NotWholeBlocks`] and [`Error::Overflow`].
    pub fn nbytes(self, elements: usize) -> Result<usize> {
        let block = self.block_len();
        if !elements.is_multiple_of(block) {
            return Err(Error::NotWholeBlocks { dtype: self.name(), block, elements });
        }
        (elements / block).checked_mul(self.block_bytes()).ok_or(Error::Overflow {
            what: "size in bytes",
            rows: 1,
            cols: elements,
        })
    }

    /// The name as ggml and safetensors write it.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::Q8_0 => "Q8_0",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
            DType::Q5_0 => "Q5_0",
            DType::Q5_1 => "Q5_1",
            DType::IQ4_NL => "IQ4_NL",
            DType::Q4_K => "Q4_K",
            DType::Q5_K => "Q5_K",
            DType::Q6_K => "Q6_K",
        }
    }

    /// Whether several elements share a scale.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    /// Reads a name without regard to case; `f32`, `Q4_0`, `bf16`.
    fn from_str(s: &str) -> Result<Self> {
        DType::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(s)).ok_or_else(|| Error::Unknown {
            what: "number format",
            name: s.to_owned(),
            known: DType::ALL.map(DType::name).join(", "),
        })
    }
}
