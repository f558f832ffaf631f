//! The error type of this crate.

/// What can go wrong when weights are converted, packed or multiplied.
///
/// Callers that know a tensor's name or a file's path add it around these errors; this crate sees only bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer has another length than its shape and format ask for.
    #[error("{what}: expected {expected}, found {found}")]
    Length {
        /// Which buffer, in words, with its unit.
        what: &'static str,
        /// The length that the shape and format ask for.
        expected: usize,
        /// The length that the buffer has.
        found: usize,
    },
    /// The number of elements does not divide into whole blocks.
    #[error("{elements} elements are not a multiple of {dtype}'s block of {block}")]
    NotWholeBlocks {
        /// Name of the format.
        dtype: &'static str,
        /// Elements in a block.
        block: usize,
        /// Elements given.
        elements: usize,
    },
    /// A size does not fit `usize`.
    #[error("{what} overflows: {rows} x {cols}")]
    Overflow {
        /// Which size, in words.
        what: &'static str,
        /// Rows of the matrix (1 where there are only elements).
        rows: usize,
        /// Columns of the matrix, or elements.
        cols: usize,
    },
    /// A matrix has no rows or no columns.
    #[error("a matrix of {rows} x {cols} has no weights")]
    Empty {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// A weight is NaN or infinite, or so large that its block's scale does not fit a 16-bit float.
    #[error("element {index} is {value}: not finite, or too large for a 16-bit scale")]
    NotFinite {
        /// Index of the element in the input (of the block's first element, where the scale overflows).
        index: usize,
        /// The value, printed, because a float is not `Eq`.
        value: String,
    },
    /// The format can be read, and nothing here writes it.
    #[error("{dtype} is read and not written")]
    ReadOnly {
        /// Name of the format.
        dtype: &'static str,
    },
    /// No format or instruction set has this name.
    #[error("unknown {what} {name:?}; known: {known}")]
    Unknown {
        /// What was being named.
        what: &'static str,
        /// The name given.
        name: String,
        /// Names that would do.
        known: String,
    },
    /// The instruction set exists, but this processor or this build lacks it.
    #[error("this processor cannot run {name}; it has: {available}")]
    IsaUnavailable {
        /// Name of the instruction set.
        name: &'static str,
        /// What this processor has.
        available: String,
    },
    /// A matrix and the activations it is multiplied with have different widths, or an output has another
    /// shape.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which extent, in words.
        what: &'static str,
        /// What the other operand asks for.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// More tokens, columns, matrices or ranks than a preallocated buffer was made for.
    #[error("{what}: room for {capacity}, {wanted} wanted")]
    Capacity {
        /// Which buffer, in words.
        what: &'static str,
        /// What it was made for.
        capacity: usize,
        /// What was asked for.
        wanted: usize,
    },
    /// The system has not so much memory to give.
    #[error("the system did not give {bytes} bytes of memory for {what}")]
    Memory {
        /// Which buffer, in words.
        what: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// Second moments that no inputs can have, or that cannot be factored.
    #[error("second moments of the inputs, column {column}: {what}")]
    Moments {
        /// What is wrong, in words.
        what: &'static str,
        /// The first column where it shows.
        column: usize,
    },
    /// The operating system refused a thread.
    #[error("cannot start worker thread {index}: {reason}")]
    Thread {
        /// Index of the thread in its team.
        index: usize,
        /// What the operating system said.
        reason: String,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn check_len(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::Length { what, expected, found }) }
}

pub(crate) fn check_shape(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::Shape { what, expected, found }) }
}
