//! Metadata values.

use crate::checkpoint::source::TensorBytes;

/// One metadata value. All integer widths are kept as 64 bits.
#[derive(Debug, Clone)]
pub enum Value {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// A flat array (arrays of arrays are refused on reading).
    Array(Array),
}

/// A metadata array as it lies in the file; every element has the same type.
#[derive(Debug, Clone)]
pub struct Array {
    kind: Element,
    len: usize,
    bytes: TensorBytes,
}

/// The type of an array's elements, by GGUF's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    U64,
    I64,
    F64,
}

impl Element {
    pub(super) fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of an element; the least of them for a text.
    pub(super) fn size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

/// The decimal a person would have written for a 32-bit float, as 64 bits: 1e-5 and not 9.999999747378752e-6.
pub(crate) fn widen(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

impl Value {
    /// The text of a string value.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }

    /// A whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(v) => Some(v),
            Self::Signed(v) => u64::try_from(v).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(widen(v)),
            Self::F64(v) => Some(v),
            Self::Unsigned(v) => Some(v as f64),
            Self::Signed(v) => Some(v as f64),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(a) => Some(a),
            _ => None,
        }
    }

    /// What kind of value this is, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::F32(_) | Self::F64(_) => "a float",
            Self::Bool(_) => "a truth value",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
        }
    }
}

impl Array {
    /// Takes the bytes of `len` elements that have been checked.
    pub(super) fn new(kind: Element, len: usize, bytes: TensorBytes) -> Self {
        Self { kind, len, bytes }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The texts of a string array.
    pub fn as_strings(&self) -> Option<Vec<&str>> {
        if self.kind != Element::Text {
            return None;
        }
        let mut rest: &[u8] = &self.bytes;
        let mut texts = Vec::with_capacity(self.len);
        while let Some((length, after)) = rest.split_first_chunk() {
            let (text, after) = after.split_at_checked(u64::from_le_bytes(*length) as usize)?;
            texts.push(std::str::from_utf8(text).ok()?);
            rest = after;
        }
        Some(texts)
    }

    /// The elements as whole numbers; `None` unless all are.
    pub fn as_integers(&self) -> Option<Vec<i64>> {
        Some(match self.kind {
            Element::U8 => self.each(|[b]: [u8; 1]| i64::from(b)),
            Element::I8 => self.each(|b| i64::from(i8::from_le_bytes(b))),
            Element::U16 => self.each(|b| i64::from(u16::from_le_bytes(b))),
            Element::I16 => self.each(|b| i64::from(i16::from_le_bytes(b))),
            Element::U32 => self.each(|b| i64::from(u32::from_le_bytes(b))),
            Element::I32 => self.each(|b| i64::from(i32::from_le_bytes(b))),
            Element::I64 => self.each(i64::from_le_bytes),
            Element::U64 => {
                let words = self.bytes.as_chunks().0.iter();
                return words.map(|b| i64::try_from(u64::from_le_bytes(*b)).ok()).collect();
            }
            Element::F32 | Element::F64 | Element::Bool | Element::Text => return None,
        })
    }

    /// The elements as floats; `None` unless the array holds numbers.
    pub fn as_floats(&self) -> Option<Vec<f64>> {
        match self.kind {
            Element::F32 => Some(self.each(|b| f64::from(f32::from_le_bytes(b)))),
            Element::F64 => Some(self.each(f64::from_le_bytes)),
            Element::U64 => Some(self.each(|b| u64::from_le_bytes(b) as f64)),
            _ => Some(self.as_integers()?.into_iter().map(|x| x as f64).collect()),
        }
    }

    fn each<const N: usize, T>(&self, read: impl Fn([u8; N]) -> T) -> Vec<T> {
        self.bytes.as_chunks().0.iter().map(|b| read(*b)).collect()
    }
}
