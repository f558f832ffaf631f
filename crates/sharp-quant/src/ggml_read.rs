//! ggml's block formats that are read and never written: what GGUF files are often stored in.

use crate::{
    dtype::{BLOCK, SUPER_BLOCK},
    f16_bytes::read_f16,
};

/// Levels of `IQ4_NL`, closer together near zero.
const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Calls `read` for every block of `BYTES` bytes and the `LEN` elements it stands for.
fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (b, o) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<LEN>().0) {
        read(b, o);
    }
}

/// The fifth bit of element `j`.
fn fifth(high: [u8; 4], j: usize) -> u8 {
    ((u32::from_le_bytes(high) >> j & 1) as u8) << 4
}

/// f16 scale, 32 fifth bits, 16 bytes of nibbles; weight = `d * (q - 16)`.
pub(crate) fn q5_0(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 22], o: &mut [f32; BLOCK]| {
        let d = read_f16(b, 0).to_f32();
        let high = [b[2], b[3], b[4], b[5]];
        for (j, &q) in b[6..].iter().enumerate() {
            o[j] = d * (f32::from(q & 15 | fifth(high, j)) - 16.0);
            o[j + 16] = d * (f32::from(q >> 4 | fifth(high, j + 16)) - 16.0);
        }
    });
}

/// f16 scale, f16 minimum, 32 fifth bits, 16 bytes of nibbles; weight = `d * q + m`.
pub(crate) fn q5_1(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 24], o: &mut [f32; BLOCK]| {
        let (d, m) = (read_f16(b, 0).to_f32(), read_f16(b, 2).to_f32());
        let high = [b[4], b[5], b[6], b[7]];
        for (j, &q) in b[8..].iter().enumerate() {
            o[j] = d * f32::from(q & 15 | fifth(high, j)) + m;
            o[j + 16] = d * f32::from(q >> 4 | fifth(high, j + 16)) + m;
        }
    });
}

/// f16 scale, 16 bytes of nibbles that number the levels of [`IQ4_NL`].
pub(crate) fn iq4_nl(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 18], o: &mut [f32; BLOCK]| {
        let d = read_f16(b, 0).to_f32();
        for (j, &q) in b[2..].iter().enumerate() {
            o[j] = d * f32::from(IQ4_NL[usize::from(q & 15)]);
            o[j + 16] = d * f32::from(IQ4_NL[usize::from(q >> 4)]);
        }
    });
}

/// Scale and minimum of each 32 elements of a super-block: 6 bits each, the upper two of the last four apart.
fn scales_and_minimums(packed: &[u8; 12]) -> [(f32, f32); 8] {
    std::array::from_fn(|j| {
        let (scale, min) = if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
        };
        (f32::from(scale), f32::from(min))
    })
}

/// The `N` bytes from `at` on, which a block must have.
fn chunk<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("a part of a block lies inside it")
}

/// A super-block of 4 or 5 bits: f16 scale and f16 scale of the minimums, 12 bytes of scales, what the fifth
/// bits are, nibbles; weight = `d * scale * q - dmin * min`.
fn q45_k(begin: &[u8; 16], fifth: Option<&[u8; 32]>, nibbles: &[u8; 128], out: &mut [f32; SUPER_BLOCK]) {
    let (d, dmin) = (read_f16(begin, 0).to_f32(), read_f16(begin, 2).to_f32());
    let mut packed = [0; 12];
    packed.copy_from_slice(&begin[4..]);
    let scales = scales_and_minimums(&packed);
    for (j, (o, (scale, min))) in out.as_chunks_mut::<32>().0.iter_mut().zip(scales).enumerate() {
        let (scale, min) = (d * scale, dmin * min);
        // 32 bytes hold 64 elements: the low nibbles first.
        for (l, o) in o.iter_mut().enumerate() {
            let low = nibbles[j / 2 * 32 + l] >> (j % 2 * 4) & 15;
            let high = fifth.map_or(0, |f| (f[l] >> j & 1) << 4);
            *o = scale * f32::from(low | high) - min;
        }
    }
}

/// f16 scales, 6-bit scales and minimums, 128 bytes of nibbles.
pub(crate) fn q4_k(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 144], o: &mut [f32; SUPER_BLOCK]| {
        q45_k(chunk(b, 0), None, chunk(b, 16), o);
    });
}

/// f16 scales, 6-bit scales and minimums, 32 bytes of fifth bits, 128 bytes of nibbles.
pub(crate) fn q5_k(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 176], o: &mut [f32; SUPER_BLOCK]| {
        q45_k(chunk(b, 0), Some(chunk(b, 16)), chunk(b, 48), o);
    });
}

/// 128 bytes of nibbles, 64 of upper two bits, a signed scale for each 16 elements, f16 scale; weight = `d *
/// scale * (q - 32)`.
pub(crate) fn q6_k(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 210], o: &mut [f32; SUPER_BLOCK]| {
        let d = read_f16(b, 208).to_f32();
        for (i, o) in o.iter_mut().enumerate() {
            // Each half of 128 elements lies in 64 bytes of nibbles and 32 of upper bits, four elements to a
            // byte of those.
            let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let low = b[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
            let high = b[128 + half * 32 + l] >> (quarter * 2) & 3;
            let scale = f32::from(b[192 + i / 16].cast_signed());
            *o = d * scale * (f32::from(low | high << 4) - 32.0);
        }
    });
}
