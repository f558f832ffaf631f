//! 16-bit floats among stored bytes.

use half::{f16, slice::HalfFloatSliceExt};

/// Reads the f16 at byte `at` of `bytes`; panics if it does not lie there whole.
pub(crate) fn read_f16(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Converts little-endian f16 bytes of any alignment to f32.
///
/// The `half` crate uses the processor's own conversion where it has one, and wants a typed slice for it.
pub(crate) fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    let mut typed = [f16::ZERO; 64];
    for (b, o) in bytes.chunks(128).zip(out.chunks_mut(64)) {
        for (t, b) in typed.iter_mut().zip(b.as_chunks::<2>().0) {
            *t = f16::from_le_bytes(*b);
        }
        typed[..o.len()].convert_to_f32_slice(o);
    }
}
