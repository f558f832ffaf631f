//! Metadata values.

/// One metadata value. All integer widths are kept as 64 bits.
#[derive(Debug, Clone, PartialEq)]
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

/// A metadata array; every element has the same type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Unsigned integers of any width.
    Unsigned(Vec<u64>),
    /// Signed integers of any width.
    Signed(Vec<i64>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// UTF-8 texts.
    Strings(Vec<String>),
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
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Unsigned(v) => v.len(),
            Self::Signed(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::Strings(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The texts of a string array.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Strings(v) => Some(v),
            _ => None,
        }
    }

    /// The elements as whole numbers; `None` unless all are.
    pub fn as_integers(&self) -> Option<Vec<i64>> {
        match self {
            Self::Unsigned(v) => v.iter().map(|&x| i64::try_from(x).ok()).collect(),
            Self::Signed(v) => Some(v.clone()),
            _ => None,
        }
    }

    /// The elements as floats; `None` unless the array holds numbers.
    pub fn as_floats(&self) -> Option<Vec<f64>> {
        match self {
            Self::F32(v) => Some(v.iter().map(|&x| f64::from(x)).collect()),
            Self::F64(v) => Some(v.clone()),
            Self::Unsigned(v) => Some(v.iter().map(|&x| x as f64).collect()),
            Self::Signed(v) => Some(v.iter().map(|&x| x as f64).collect()),
            _ => None,
        }
    }
}
