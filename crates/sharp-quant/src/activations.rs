//! Activations quantised to 8 bits for the integer kernels.

use crate::{
    disjoint::DisjointSlice,
    dtype::BLOCK,
    error::{Error, Result, check_len},
    team::Team,
    vectorised::vectorised,
};

/// A preallocated buffer of `n` tokens of `cols` activations, quantised for every run of 32 columns.
///
/// With `m` the largest magnitude of the 32, `scale = m / 127` and `q = round_half_to_even(x * (127 / m))`,
/// on every instruction set. So `q` is in -127..=127; where `m < 1e-30` the scale and all `q` are zero. If
/// one of the 32 is NaN or infinite, the scale is NaN, and so is every output that depends on it. Columns are
/// padded to a multiple of 32 with zeros.
///
/// The f32 values are kept beside the bytes, for matrices stored as 16-bit floats and for column scales,
/// unless it is made without them by [`Activations::integers`].
#[derive(Debug, Clone)]
pub struct Activations {
    max_tokens: usize,
    max_cols: usize,
    n: usize,
    cols: usize,
    /// Whether `x` is kept.
    floats: bool,
    /// (n, padded cols)
    pub(crate) q: Vec<i8>,
    /// (n, padded cols); empty without floats.
    pub(crate) x: Vec<f32>,
    /// (n, blocks)
    pub(crate) scale: Vec<f32>,
    /// (n, blocks): the sum of the block's `q`.
    pub(crate) sum: Vec<i32>,
    /// (n, blocks): -8 times the sums of the `q` at even and at odd pairs of columns (0, 1, 4, 5, .. and 2,
    /// 3, 6, 7, ..), as two 16-bit halves, low and high: the correction that turns `q + 8` nibbles into `q`
    /// in 16-bit accumulators.
    pub(crate) pair: Vec<i32>,
}

/// One token's activations, as the kernels take them; all slices cover the same blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) q: &'a [i8],
    pub(crate) x: &'a [f32],
    pub(crate) scale: &'a [f32],
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "x86 kernels correct by pairs"))]
    pub(crate) sum: &'a [i32],
    #[cfg_attr(target_arch = "aarch64", allow(dead_code, reason = "NEON kernels correct by sums"))]
    pub(crate) pair: &'a [i32],
}

impl Activations {
    /// Makes a buffer for `max_tokens` tokens of `max_cols` columns.
    ///
    /// # Errors
    /// [`Error::Empty`] and [`Error::Overflow`].
    pub fn new(max_tokens: usize, max_cols: usize) -> Result<Self> {
        Self::with(max_tokens, max_cols, true)
    }

    /// Makes a buffer without the f32 values, for `q4x16` and `q8x16` matrices, which multiply integers
    /// alone.
    ///
    /// # Errors
    /// Those of [`Activations::new`].
    pub fn integers(max_tokens: usize, max_cols: usize) -> Result<Self> {
        Self::with(max_tokens, max_cols, false)
    }

    fn with(max_tokens: usize, max_cols: usize, floats: bool) -> Result<Self> {
        if max_tokens == 0 || max_cols == 0 {
            return Err(Error::Empty { rows: max_tokens, cols: max_cols });
        }
        let overflow =
            || Error::Overflow { what: "activations in elements", rows: max_tokens, cols: max_cols };
        let blocks = max_tokens.checked_mul(max_cols.div_ceil(BLOCK)).ok_or_else(overflow)?;
        let padded =
            blocks.checked_mul(BLOCK).filter(|p| *p < isize::MAX as usize / 4).ok_or_else(overflow)?;
        Ok(Activations {
            max_tokens,
            max_cols,
            n: 0,
            cols: max_cols,
            floats,
            q: vec![0; padded],
            x: vec![0.0; if floats { padded } else { 0 }],
            scale: vec![0.0; blocks],
            sum: vec![0; blocks],
            pair: vec![0; blocks],
        })
    }

    /// Returns the number of tokens held.
    pub fn tokens(&self) -> usize {
        self.n
    }

    /// Columns of a token, without padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Tokens there is room for at the full width.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Columns there is room for.
    pub fn max_cols(&self) -> usize {
        self.max_cols
    }

    /// Whether the f32 values are kept.
    pub fn has_floats(&self) -> bool {
        self.floats
    }

    /// Quantises `x` (n, cols), replacing the tokens held.
    ///
    /// # Errors
    /// [`Error::Capacity`] if there is no room, [`Error::Length`] if `x` is not n x cols elements.
    pub fn quantize(&mut self, x: &[f32], n: usize, cols: usize) -> Result<()> {
        self.begin(n, cols)?;
        check_len("activations in elements", n * cols, x.len())?;
        let isa = crate::Isa::best();
        let parts = self.parts();
        for (t, x) in x.chunks_exact(cols).enumerate() {
            // SAFETY: `t < n`, and nothing else uses the buffers.
            unsafe { parts.store_row(isa, t, 0, x) };
        }
        Ok(())
    }

    /// Quantises `x` (n, cols) on all threads of a team, replacing the tokens held.
    ///
    /// # Errors
    /// Those of [`Activations::quantize`].
    pub fn quantize_parallel(&mut self, team: &Team, x: &[f32], n: usize, cols: usize) -> Result<()> {
        if n < 8 {
            return self.quantize(x, n, cols);
        }
        self.begin(n, cols)?;
        check_len("activations in elements", n * cols, x.len())?;
        let isa = team.isa();
        let parts = self.parts();
        team.run(n.div_ceil(8), &|item| {
            for t in item * 8..n.min(item * 8 + 8) {
                // SAFETY: every token belongs to one item, and `t < n`.
                unsafe { parts.store_row(isa, t, 0, &x[t * cols..(t + 1) * cols]) };
            }
        });
        Ok(())
    }

    /// Sets the shape. The contents are initialised but arbitrary until stored.
    pub(crate) fn begin(&mut self, n: usize, cols: usize) -> Result<()> {
        if cols == 0 || cols > self.max_cols {
            return Err(Error::Capacity {
                what: "columns of the activations",
                capacity: self.max_cols,
                wanted: cols,
            });
        }
        if n > self.max_tokens {
            return Err(Error::Capacity {
                what: "tokens of the activations",
                capacity: self.max_tokens,
                wanted: n,
            });
        }
        (self.n, self.cols) = (n, cols);
        Ok(())
    }

    #[inline]
    pub(crate) fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    /// Token `t`, which must be held.
    #[inline]
    pub(crate) fn token(&self, t: usize) -> Token<'_> {
        let blocks = self.blocks();
        let (bytes, scales) = (t * blocks * BLOCK..(t + 1) * blocks * BLOCK, t * blocks..(t + 1) * blocks);
        Token {
            q: &self.q[bytes.clone()],
            x: if self.floats { &self.x[bytes] } else { &[] },
            scale: &self.scale[scales.clone()],
            sum: &self.sum[scales.clone()],
            pair: &self.pair[scales],
        }
    }

    /// Token `t` (which must be held) to f32, as the integer kernels see it: `scale * q`.
    pub fn dequantized(&self, t: usize) -> Option<Vec<f32>> {
        if t >= self.n {
            return None;
        }
        let token = self.token(t);
        let all = token.q.iter().enumerate().map(|(i, &q)| token.scale[i / BLOCK] * f32::from(q));
        Some(all.take(self.cols).collect())
    }

    /// The buffers, to be filled by several threads at once.
    pub(crate) fn parts(&mut self) -> Parts {
        Parts {
            blocks: self.blocks(),
            floats: self.floats,
            q: DisjointSlice::new(&mut self.q),
            x: DisjointSlice::new(&mut self.x),
            scale: DisjointSlice::new(&mut self.scale),
            sum: DisjointSlice::new(&mut self.sum),
            pair: DisjointSlice::new(&mut self.pair),
        }
    }
}

/// The buffers of an [`Activations`] for writing from several threads.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    blocks: usize,
    floats: bool,
    q: DisjointSlice<i8>,
    x: DisjointSlice<f32>,
    scale: DisjointSlice<f32>,
    sum: DisjointSlice<i32>,
    pair: DisjointSlice<i32>,
}

impl Parts {
    /// Quantises `x` into token `t` from block `block` on. The last block is padded with zeros.
    ///
    /// # Safety
    /// The blocks must exist (`t` below the tokens of `begin`), the `Activations` must outlive the call, and
    /// no other thread may touch the same blocks meanwhile.
    pub(crate) unsafe fn store_row(&self, isa: crate::Isa, t: usize, block: usize, x: &[f32]) {
        let count = x.len().div_ceil(BLOCK);
        let first = t * self.blocks + block;
        // SAFETY: the caller vouches for the blocks; the vectors are as long as `begin` checked.
        let (q, scale, sum, pair) = unsafe {
            (
                self.q.slice(first * BLOCK, count * BLOCK),
                self.scale.slice(first, count),
                self.sum.slice(first, count),
                self.pair.slice(first, count),
            )
        };
        if self.floats {
            // SAFETY: as above; the floats are as many as the bytes.
            let floats = unsafe { self.x.slice(first * BLOCK, count * BLOCK) };
            floats[..x.len()].copy_from_slice(x);
            floats[x.len()..].fill(0.0);
        }
        let whole = x.len() / BLOCK;
        quantize_blocks(isa, x, q, scale, sum, pair);
        if whole < count {
            let mut last = [0.0; BLOCK];
            last[..x.len() - whole * BLOCK].copy_from_slice(&x[whole * BLOCK..]);
            let q = &mut q[whole * BLOCK..];
            quantize_blocks(isa, &last, q, &mut scale[whole..], &mut sum[whole..], &mut pair[whole..]);
        }
    }
}

vectorised! {
    /// Quantises the whole blocks of `x`.
    fn quantize_blocks / quantize_blocks_body []
        (x: &[f32], q: &mut [i8], scale: &mut [f32], sum: &mut [i32], pair: &mut [i32])
}

/// Joins element `i` with `i + 16`, then with `i + 8`, then with `i + 4`: operations on half vectors instead
/// of element after element.
#[inline(always)]
fn halve<T: Copy>(mut all: [T; BLOCK], join: impl Fn(T, T) -> T) -> [T; 4] {
    let mut width = BLOCK / 2;
    while width >= 4 {
        for i in 0..width {
            all[i] = join(all[i], all[i + width]);
        }
        width /= 2;
    }
    [all[0], all[1], all[2], all[3]]
}

/// Written without branches in its loops, so that the compiler vectorises it for each instruction set; every
/// operation is exact or correctly rounded, so all give the same bits.
#[inline(always)]
fn quantize_blocks_body<const HW: bool>(
    x: &[f32],
    q: &mut [i8],
    scale: &mut [f32],
    sum: &mut [i32],
    pair: &mut [i32],
) {
    /// 1.5 * 2^23: adding it rounds to an integer, half to even, and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(q.as_chunks_mut::<BLOCK>().0);
    for ((((x, q), scale), sum), pair) in blocks.zip(scale).zip(sum).zip(pair) {
        // The bits of magnitudes order as the magnitudes do, with NaN above infinity.
        let top = halve(x.map(|v| v.to_bits() & 0x7fff_ffff), u32::max);
        let top = top.into_iter().fold(0, u32::max);
        let m = f32::from_bits(top);
        let (d, inverse) = if !m.is_finite() {
            (f32::NAN, 0.0)
        } else if m < 1e-30 {
            (0.0, 0.0)
        } else {
            (m / 127.0, 127.0 / m)
        };
        let mut wide = [0i32; BLOCK];
        for (w, v) in wide.iter_mut().zip(x) {
            *w = ((v * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        }
        if !m.is_finite() {
            wide = [0; BLOCK];
        }
        for (q, w) in q.iter_mut().zip(wide) {
            *q = w as i8;
        }
        let sums = halve(wide, |a, b| a + b);
        let (even, odd) = (sums[0] + sums[1], sums[2] + sums[3]);
        *scale = d;
        *sum = even + odd;
        *pair = ((-8 * even) & 0xffff) | ((-8 * odd) << 16);
    }
}
