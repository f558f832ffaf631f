//! Products of f32 activations with matrices stored as plain floats.

use super::{
    LANES, Lane,
    element::{BF16, Element, F16, F32},
    vector::dots,
};
use crate::{
    DType, Error, Result, Team,
    disjoint::DisjointSlice,
    error::{check_len, check_shape},
    vectorised::vectorised,
};

/// Columns of a packed panel: 16 rows of so many columns are 16 KiB, half of a first-level cache.
const PANEL_COLS: usize = 256;
/// Rows in one item of work of many tokens.
const ITEM_ROWS: usize = 64;
/// Tokens in one item of work: their activations of a panel's columns fit the second-level cache.
const ITEM_TOKENS: usize = 256;
/// Tokens that the innermost kernel takes at once: 12 accumulators of AVX2's 16 registers.
const TILE: usize = 6;
/// Up to so many tokens rows are read as they lie; from there on packing them pays.
const FEW_TOKENS: usize = 4;
/// Bytes of weights in one item of work of few tokens.
const ITEM_BYTES: usize = 64 << 10;
/// Most matrices in one region.
const MAX_OPS: usize = 8;

/// A view of a row-major matrix (rows, cols) of F32, F16 or BF16 at any alignment, often in a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct DenseRef<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    data: &'a [u8],
}

impl<'a> DenseRef<'a> {
    /// Takes `data` as a matrix.
    ///
    /// # Errors
    /// [`Error::Length`] if `data` is not exactly as long as the shape says, [`Error::Empty`],
    /// [`Error::Overflow`], and [`Error::Unknown`] for block formats.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self> {
        if dtype.is_quantized() {
            return Err(Error::Unknown {
                what: "dense format",
                name: dtype.name().to_owned(),
                known: "F32, F16, BF16".to_owned(),
            });
        }
        if rows == 0 || cols == 0 {
            return Err(Error::Empty { rows, cols });
        }
        let elements =
            rows.checked_mul(cols).ok_or(Error::Overflow { what: "number of elements", rows, cols })?;
        check_len("dense matrix in bytes", dtype.nbytes(elements)?, data.len())?;
        Ok(DenseRef { dtype, rows, cols, data })
    }

    /// How the values are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows: the length of an output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the length of an input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The bytes of rows `from..to`, which must exist.
    fn rows_data(&self, from: usize, to: usize) -> &'a [u8] {
        let row = self.cols * self.dtype.block_bytes();
        &self.data[from * row..to * row]
    }
}

/// One product of a region: `out = diag(row_scale) W x`, added to what `out` holds if `add`.
#[derive(Debug)]
pub struct DenseOp<'a> {
    /// `W` (rows, cols).
    pub weight: DenseRef<'a>,
    /// One factor for every row, or ones.
    pub row_scale: Option<&'a [f32]>,
    /// Whether to add to `out` instead of replacing it.
    pub add: bool,
    /// (n, rows), row-major: token after token.
    pub out: &'a mut [f32],
}

#[derive(Clone, Copy)]
struct Op<'a> {
    weight: DenseRef<'a>,
    row_scale: Option<&'a [f32]>,
    add: bool,
    out: DisjointSlice<f32>,
}

/// Multiplies every matrix of `ops` with the same activations `x` (n, cols), in one parallel region.
///
/// Sums are in f32 with fused multiply-adds in a fixed order, so the bits do not depend on the threads.
/// Products of up to 4 tokens are summed in another order than those of more; within either, a token's result
/// does not depend on the others. Allocates nothing.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Length`] if shapes do not agree, [`Error::Capacity`] for more than 8
/// matrices.
pub fn dense_matmul(team: &Team, ops: &mut [DenseOp<'_>], x: &[f32], n: usize) -> Result<()> {
    if ops.len() > MAX_OPS {
        return Err(Error::Capacity { what: "matrices of a region", capacity: MAX_OPS, wanted: ops.len() });
    }
    let few = n <= FEW_TOKENS;
    let mut all: [Option<Op<'_>>; MAX_OPS] = [None; MAX_OPS];
    let mut ends = [0usize; MAX_OPS];
    let mut items = 0;
    for (i, op) in ops.iter_mut().enumerate() {
        let DenseRef { rows, cols, .. } = op.weight;
        let size = |count| Error::Overflow { what: "activations in elements", rows: n, cols: count };
        check_len("activations in elements", n.checked_mul(cols).ok_or(size(cols))?, x.len())?;
        check_len("output in elements", n.checked_mul(rows).ok_or(size(rows))?, op.out.len())?;
        if let Some(s) = op.row_scale {
            check_shape("row scales", rows, s.len())?;
        }
        items += if few {
            rows.div_ceil(few_rows(&op.weight))
        } else {
            rows.div_ceil(ITEM_ROWS) * n.div_ceil(ITEM_TOKENS)
        };
        ends[i] = items;
        all[i] = Some(Op {
            weight: op.weight,
            row_scale: op.row_scale,
            add: op.add,
            out: DisjointSlice::new(op.out),
        });
    }
    if n == 0 {
        return Ok(());
    }
    let isa = team.isa();
    team.run(items, &|item| {
        let op = ends.iter().position(|&end| item < end).unwrap_or(0);
        let Some(op_data) = all[op] else { return };
        let item = item - if op == 0 { 0 } else { ends[op - 1] };
        let (block, from, to) = if few {
            (few_rows(&op_data.weight), 0, n)
        } else {
            let tiles = n.div_ceil(ITEM_TOKENS);
            let from = item % tiles * ITEM_TOKENS;
            (ITEM_ROWS, from, n.min(from + ITEM_TOKENS))
        };
        let first = if few { item } else { item / n.div_ceil(ITEM_TOKENS) } * block;
        let part =
            Part { op: op_data, rows: (first, op_data.weight.rows.min(first + block)), tokens: (from, to) };
        match (op_data.weight.dtype, few) {
            (DType::F16, true) => few_tokens::<F16>(isa, part, x),
            (DType::BF16, true) => few_tokens::<BF16>(isa, part, x),
            (_, true) => few_tokens::<F32>(isa, part, x),
            (DType::F16, false) => many_tokens::<F16>(isa, part, x),
            (DType::BF16, false) => many_tokens::<BF16>(isa, part, x),
            (_, false) => many_tokens::<F32>(isa, part, x),
        }
    });
    Ok(())
}

/// Rows in one item of work of few tokens: a multiple of 4.
fn few_rows(w: &DenseRef<'_>) -> usize {
    (ITEM_BYTES / (w.cols * w.dtype.block_bytes())).next_multiple_of(4).max(4)
}

/// Some rows of a product for some tokens. No two parts of a region overlap.
#[derive(Clone, Copy)]
struct Part<'a> {
    op: Op<'a>,
    rows: (usize, usize),
    tokens: (usize, usize),
}

impl Part<'_> {
    /// Where the output of `count` rows from `row` on for a token goes.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "parts write to disjoint runs of the output")]
    fn out(&self, token: usize, row: usize, count: usize) -> &mut [f32] {
        // SAFETY: parts do not overlap, one thread works on a part and drops one run of outputs before it
        // takes the next; `out` stays borrowed for the whole region.
        unsafe { self.op.out.slice(token * self.op.weight.rows + row, count) }
    }

    /// Stores sums, scaled and added as the operation says.
    #[inline(always)]
    fn finish(&self, token: usize, row: usize, sums: &[f32]) {
        let out = self.out(token, row, sums.len());
        for (i, (o, &s)) in out.iter_mut().zip(sums).enumerate() {
            let s = self.op.row_scale.map_or(s, |scale| s * scale[row + i]);
            *o = if self.op.add { *o + s } else { s };
        }
    }
}

vectorised! {
    fn few_tokens / few_tokens_body [E: Element] (part: Part<'_>, x: &[f32])
}

#[inline(always)]
fn few_tokens_body<const HW: bool, E: Element>(part: Part<'_>, x: &[f32]) {
    let (first, last) = part.rows;
    let cols = part.op.weight.cols;
    let mut row = first;
    for rows in E::view(part.op.weight.rows_data(first, last)).chunks(4 * cols) {
        for token in part.tokens.0..part.tokens.1 {
            let x = &x[token * cols..(token + 1) * cols];
            if rows.len() == 4 * cols {
                let sums = dots::<HW, E, 4>(std::array::from_fn(|i| &rows[i * cols..(i + 1) * cols]), x);
                part.finish(token, row, &sums);
            } else {
                for (i, w) in rows.chunks_exact(cols).enumerate() {
                    part.finish(token, row + i, &dots::<HW, E, 1>([w], x));
                }
            }
        }
        row += 4;
    }
}

vectorised! {
    fn many_tokens / many_tokens_body [E: Element] (part: Part<'_>, x: &[f32])
}

/// Columns of 16 rows, so aligned that no vector crosses a cache line.
#[repr(align(64))]
struct Panel([Lane; PANEL_COLS]);

/// Panels of 16 rows, transposed and widened, times 6 tokens at a time.
#[inline(always)]
fn many_tokens_body<const HW: bool, E: Element>(part: Part<'_>, x: &[f32]) {
    let cols = part.op.weight.cols;
    let (first, last) = part.rows;
    let (from, to) = part.tokens;
    let weights = E::view(part.op.weight.rows_data(first, last));
    // Runs of columns as equal as may be, by the matrix alone, so that the order of sums is fixed.
    let runs = cols.div_ceil(PANEL_COLS);
    let run = cols.div_ceil(runs).next_multiple_of(LANES);
    let mut panel = Panel([[0.0; LANES]; PANEL_COLS]);
    for k in (0..cols).step_by(run) {
        let width = run.min(cols - k);
        let panel = &mut panel.0[..width];
        let mut row = first;
        for rows in weights.chunks(LANES * cols) {
            let count = rows.len() / cols;
            pack::<HW, E>(rows, cols, k, panel);
            let mut token = from;
            while token < to {
                let some = TILE.min(to - token);
                let x = &x[token * cols + k..];
                let to = To { part: &part, token, row, count, first: k == 0 };
                match some {
                    6 => to.store(tile::<6>(panel, x, cols)),
                    5 => to.store(tile::<5>(panel, x, cols)),
                    4 => to.store(tile::<4>(panel, x, cols)),
                    3 => to.store(tile::<3>(panel, x, cols)),
                    2 => to.store(tile::<2>(panel, x, cols)),
                    _ => to.store(tile::<1>(panel, x, cols)),
                }
                token += some;
            }
            row += LANES;
        }
    }
}

/// Where the sums of a tile go.
struct To<'a> {
    part: &'a Part<'a>,
    token: usize,
    row: usize,
    /// Rows of the panel that exist.
    count: usize,
    /// Whether these are the first columns.
    first: bool,
}

impl To<'_> {
    /// Adds one run's sums to the output, scaled run by run.
    #[inline(always)]
    fn store<const T: usize>(&self, acc: [Lane; T]) {
        let &To { part, row, count, .. } = self;
        let replace = self.first && !part.op.add;
        for (t, mut sums) in acc.into_iter().enumerate() {
            let out = part.out(self.token + t, row, count);
            if let Some(scale) = part.op.row_scale {
                for (s, scale) in sums.iter_mut().zip(&scale[row..row + count]) {
                    *s *= scale;
                }
            }
            if let (true, Some(out)) = (count == LANES, out.first_chunk_mut::<LANES>()) {
                for l in 0..LANES {
                    out[l] = if replace { sums[l] } else { out[l] + sums[l] };
                }
            } else {
                for (o, s) in out.iter_mut().zip(sums) {
                    *o = if replace { s } else { *o + s };
                }
            }
        }
    }
}

/// Columns `k..k + panel.len()` of up to 16 rows, transposed; missing rows are zeros.
#[inline(always)]
fn pack<const HW: bool, E: Element>(rows: &[E::Raw], cols: usize, k: usize, panel: &mut [Lane]) {
    let width = panel.len();
    if rows.len() < LANES * cols {
        panel.fill([0.0; LANES]);
    }
    for (r, row) in rows.chunks_exact(cols).enumerate() {
        let (chunks, tail) = row[k..k + width].as_chunks::<LANES>();
        let (panels, panel_tail) = panel.as_chunks_mut::<LANES>();
        for (w, p) in chunks.iter().zip(panels) {
            let w = E::widen::<HW>(w);
            for l in 0..LANES {
                p[l][r] = w[l];
            }
        }
        for (w, p) in tail.iter().zip(panel_tail) {
            p[r] = E::one(*w);
        }
    }
}

/// Sums of a panel's 16 rows for `T` tokens, which lie `stride` apart in `x`; columns in ascending order.
#[inline(always)]
pub(crate) fn tile<const T: usize>(panel: &[Lane], x: &[f32], stride: usize) -> [Lane; T] {
    let rows: [&[f32]; T] = std::array::from_fn(|t| &x[t * stride..t * stride + panel.len()]);
    let mut acc = [[0.0f32; LANES]; T];
    for (k, w) in panel.iter().enumerate() {
        for t in 0..T {
            // SAFETY: every row has been cut to the panel's length.
            let x = unsafe { *rows[t].get_unchecked(k) };
            for l in 0..LANES {
                acc[t][l] = x.mul_add(w[l], acc[t][l]);
            }
        }
    }
    acc
}
