//! Multiplies packed matrices with quantised activations, several in one parallel region, recovery included.

use crate::{
    activations::Activations,
    disjoint::DisjointSlice,
    dtype::BLOCK,
    error::{Error, Result, check_len, check_shape},
    kernels::{Acc, Kernels, Tokens},
    linear::{Linear, LowRank},
    math,
    packed::GROUP,
    team::{Gate, Team},
};

/// Tokens that a weight block is used for before the next is read; their activations fit the second-level
/// cache.
const TILE: usize = 64;
/// Groups that one call of a `gemv` kernel takes.
const RUN: usize = 4;
/// Blocks of 32 gates (and as many ups) that one run of a single token computes.
const PAIRS: usize = 4;
/// Bytes of weights in one item of work of a single token: long enough for the prefetchers, short enough to
/// share out.
const ITEM_BYTES: usize = 24 << 10;
/// Row groups in one item of work of many tokens.
const GEMM_GROUPS: usize = 4;
/// Most matrices in one region.
const MAX_OPS: usize = 8;

/// One product of a region: `out = linear(x)`.
#[derive(Debug)]
pub struct MatOp<'a> {
    /// The matrix, with recovery parameters if it has any.
    pub linear: Linear<'a>,
    /// The result (n, rows), row-major: token after token.
    pub out: &'a mut [f32],
}

/// Buffers between the two factors of recovery parameters, so that products need not allocate.
#[derive(Debug)]
pub struct Scratch {
    /// For each matrix of a region, `A x` as f32 (n, r).
    t: Vec<Vec<f32>>,
    /// The same quantised.
    t_acts: Vec<Activations>,
    /// For each matrix, `col_scale * x`; empty where no matrix has column scales.
    scaled: Vec<Activations>,
    scaled_row: Vec<f32>,
}

impl Scratch {
    /// Makes buffers for matrices without recovery parameters and column scales.
    pub fn none() -> Self {
        Scratch { t: Vec::new(), t_acts: Vec::new(), scaled: Vec::new(), scaled_row: Vec::new() }
    }

    /// Room for `ops` matrices in a region, `tokens` tokens and ranks up to `rank` (0: none); and for
    /// matrices with column scales of up to `scaled_cols` columns (0: none).
    ///
    /// # Errors
    /// Those of [`Activations::new`].
    pub fn new(ops: usize, tokens: usize, rank: usize, scaled_cols: usize) -> Result<Self> {
        let mut scratch = Scratch::none();
        let ops = ops.min(MAX_OPS);
        for _ in 0..if rank == 0 { 0 } else { ops } {
            scratch.t_acts.push(Activations::new(tokens, rank)?);
            scratch.t.push(vec![0.0; tokens * rank]);
        }
        for _ in 0..if scaled_cols == 0 { 0 } else { ops } {
            scratch.scaled.push(Activations::new(tokens, scaled_cols)?);
            scratch.scaled_row.resize(scaled_cols, 0.0);
        }
        Ok(scratch)
    }
}

/// Multiplies every matrix of `ops` with the same activations, in one parallel region: `out[t] =
/// linear(x[t])`.
///
/// The sum over columns is in the order that the crate's documentation states; then `row_scale` multiplies
/// it; then the low-rank part is added block by block in the same order. Allocates nothing.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Length`] if shapes do not agree, [`Error::Capacity`] if `scratch` is too
/// small or there are more than 8 matrices.
pub fn matmul(team: &Team, ops: &mut [MatOp<'_>], x: &Activations, scratch: &mut Scratch) -> Result<()> {
    if ops.is_empty() || x.tokens() == 0 {
        return Ok(());
    }
    let n = x.tokens();
    let mut linears: [Option<&Linear<'_>>; MAX_OPS] = [None; MAX_OPS];
    let mut outs: [DisjointSlice<f32>; MAX_OPS] = std::array::from_fn(|_| DisjointSlice::new(&mut []));
    if ops.len() > MAX_OPS {
        return Err(Error::Capacity { what: "matrices of a region", capacity: MAX_OPS, wanted: ops.len() });
    }
    let count = ops.len();
    for (i, op) in ops.iter_mut().enumerate() {
        check_len("output in elements", n * op.linear.rows, op.out.len())?;
        outs[i] = DisjointSlice::new(op.out);
        linears[i] = Some(&op.linear);
    }
    let region = Region::new(team, &linears, x, scratch)?;
    let mut items = [0; MAX_OPS];
    let mut per_item = [1; MAX_OPS];
    for (i, linear) in linears.iter().enumerate() {
        if let Some(linear) = linear {
            let groups = linear.rows.div_ceil(GROUP);
            per_item[i] = groups_per_item(linear.bytes() / groups.max(1), groups, n, team.threads());
            items[i] = linear.rows.div_ceil(GROUP).div_ceil(per_item[i]) * n.div_ceil(TILE);
        }
    }
    region.run(&items[..count], &|op, item, gate| {
        let Some(linear) = linears[op] else { return };
        let groups = linear.rows.div_ceil(GROUP);
        let row_items = groups.div_ceil(per_item[op]);
        let (tile, first) = (item / row_items, item % row_items * per_item[op]);
        let (from, to) = (tile * TILE, n.min(tile * TILE + TILE));
        let last = groups.min(first + per_item[op]);
        let store = |t: usize, g: usize, acc: &Acc| {
            let count = GROUP.min(linear.rows - g * GROUP);
            // SAFETY: rows of a group and tokens of a tile belong to one item alone; `out` stays borrowed.
            let out = unsafe { outs[op].slice(t * linear.rows + g * GROUP, count) };
            // A copy of known length is one instruction, where any other is a call.
            match out.as_chunks_mut::<GROUP>() {
                ([out], []) => *out = *acc,
                (_, out) => out.copy_from_slice(&acc[..count]),
            }
        };
        if to - from == 1 {
            for g in (first..last).step_by(RUN) {
                let mut acc = [[0.0; GROUP]; RUN];
                let count = RUN.min(last - g);
                region.one_token(op, g, from, &mut acc[..count], gate);
                for (i, acc) in acc[..count].iter().enumerate() {
                    store(from, g + i, acc);
                }
            }
        } else {
            for g in first..last {
                let mut acc = [[0.0; GROUP]; TILE];
                region.many_tokens(op, g, from, &mut acc[..to - from], gate);
                for (i, acc) in acc[..to - from].iter().enumerate() {
                    store(from + i, g, acc);
                }
            }
        }
    });
    Ok(())
}

/// The first half of a gated MLP in one parallel region: `out[t] = silu(gate(x[t])) * up(x[t])`, quantised as
/// it is computed, ready for the down projection. Allocates nothing.
///
/// `out` takes the shape (n, rows of `gate`); its room decides how large that may be.
///
/// # Errors
/// Those of [`matmul`], and [`Error::Capacity`] if `out` is too small.
pub fn gate_up_silu(
    team: &Team,
    gate: &Linear<'_>,
    up: &Linear<'_>,
    x: &Activations,
    out: &mut Activations,
    scratch: &mut Scratch,
) -> Result<()> {
    let n = x.tokens();
    check_shape("rows of up", gate.rows, up.rows)?;
    out.begin(n, gate.rows)?;
    if n == 0 {
        return Ok(());
    }
    let mut linears = [None; MAX_OPS];
    (linears[0], linears[1]) = (Some(gate), Some(up));
    let region = Region::new(team, &linears, x, scratch)?;
    let rows = gate.rows;
    let groups = rows.div_ceil(GROUP);
    // Two groups of 16 rows are one block of 32 columns of the output.
    let pairs = groups.div_ceil(2);
    let per_item = match n {
        1 => even(pairs, PAIRS.min(pairs.div_ceil(4 * team.threads())), team.threads()),
        _ => GEMM_GROUPS.div_ceil(2),
    };
    let row_items = pairs.div_ceil(per_item);
    let parts = out.parts();
    let isa = team.isa();
    region.run(&[row_items * n.div_ceil(TILE)], &|_, item, wait| {
        let (tile, first) = (item / row_items, item % row_items * per_item);
        let (from, to) = (tile * TILE, n.min(tile * TILE + TILE));
        let finish = |t: usize, pair: usize, g: &mut [f32], u: &[f32]| {
            math::silu_mul(isa, g, u);
            let width = g.len().min(rows - pair * BLOCK);
            // SAFETY: the blocks of a pair of groups and the tokens of a tile belong to one item alone.
            unsafe { parts.store_row(isa, t, pair, &g[..width]) };
        };
        let last = pairs.min(first + per_item);
        if to - from == 1 {
            // Runs as long as can be of one matrix before the other's: each is one stream for the
            // prefetchers.
            for pair in (first..last).step_by(PAIRS) {
                let (g, width) = (2 * pair, PAIRS.min(last - pair));
                let count = (2 * width).min(groups - g);
                let mut acc = [[[0.0; GROUP]; 2 * PAIRS]; 2];
                region.one_token(0, g, from, &mut acc[0][..count], wait);
                region.one_token(1, g, from, &mut acc[1][..count], wait);
                let [gates, ups] = &mut acc;
                let width = width * BLOCK;
                finish(from, pair, &mut gates.as_flattened_mut()[..width], &ups.as_flattened()[..width]);
            }
            return;
        }
        for pair in first..last {
            let (g, count) = (2 * pair, 2.min(groups - 2 * pair));
            {
                let mut acc = [[[[0.0; GROUP]; TILE]; 2]; 2];
                for (op, acc) in acc.iter_mut().enumerate() {
                    for (i, acc) in acc[..count].iter_mut().enumerate() {
                        region.many_tokens(op, g + i, from, &mut acc[..to - from], wait);
                    }
                }
                for t in from..to {
                    let i = t - from;
                    let mut gates = join([acc[0][0][i], acc[0][1][i]]);
                    finish(t, pair, &mut gates, &join([acc[1][0][i], acc[1][1][i]]));
                }
            }
        }
    });
    Ok(())
}

fn join(halves: [Acc; 2]) -> [f32; BLOCK] {
    let mut all = [0.0; BLOCK];
    all[..GROUP].copy_from_slice(&halves[0]);
    all[GROUP..].copy_from_slice(&halves[1]);
    all
}

fn groups_per_item(group_bytes: usize, groups: usize, n: usize, threads: usize) -> usize {
    if n == 1 { even(groups, (ITEM_BYTES / group_bytes.max(1)).max(1), threads) } else { GEMM_GROUPS }
}

/// Chooses how many of `all` go into one item: at most `most`, and not many fewer.
///
/// Where possible every thread begins with as many items as the others. Then none is taken over from another
/// thread, whose cache would have had it.
fn even(all: usize, most: usize, threads: usize) -> usize {
    let fair = |per_item: &usize| all.div_ceil(*per_item).is_multiple_of(threads);
    (most.div_ceil(2)..=most).rev().find(fair).unwrap_or(most)
}

/// What all items of a region have in common.
struct Region<'a> {
    team: &'a Team,
    kernels: &'static Kernels,
    linears: &'a [Option<&'a Linear<'a>>; MAX_OPS],
    x: &'a Activations,
    scaled: &'a [Activations],
    t: [DisjointSlice<f32>; MAX_OPS],
    t_parts: [Option<crate::activations::Parts>; MAX_OPS],
    t_acts: *const Activations,
}

// SAFETY: `t_acts` points to the scratch space, which outlives the region; it is read only after the gate has
// opened, and written (through `t_parts`) only before.
unsafe impl Sync for Region<'_> {}

impl<'a> Region<'a> {
    fn new(
        team: &'a Team,
        linears: &'a [Option<&'a Linear<'a>>; MAX_OPS],
        x: &'a Activations,
        scratch: &'a mut Scratch,
    ) -> Result<Self> {
        let n = x.tokens();
        let mut t = std::array::from_fn(|_| DisjointSlice::new(&mut []));
        let mut t_parts = [None; MAX_OPS];
        for (i, linear) in linears.iter().enumerate() {
            let Some(linear) = linear else { continue };
            check_shape("columns of the activations", linear.cols, x.cols())?;
            let capacity = |what, capacity| Error::Capacity { what, capacity, wanted: i + 1 };
            if linear.needs_floats() && !x.has_floats() {
                let what = "floats kept with the activations";
                return Err(Error::Capacity { what, capacity: 0, wanted: linear.cols });
            }
            if linear.rank() > 0 {
                let ops = scratch.t.len();
                let acts = scratch.t_acts.get_mut(i).ok_or(capacity("matrices of the scratch space", ops))?;
                acts.begin(n, linear.rank())?;
                t_parts[i] = Some(acts.parts());
                t[i] = DisjointSlice::new(&mut scratch.t[i]);
            }
            if let Some(scale) = linear.col_scale {
                let ops = scratch.scaled.len();
                let scaled = scratch.scaled.get_mut(i).ok_or(capacity("column-scaled matrices", ops))?;
                scaled.begin(n, linear.cols)?;
                let parts = scaled.parts();
                for token in 0..n {
                    let row = &mut scratch.scaled_row[..linear.cols];
                    for ((o, x), s) in row.iter_mut().zip(x.token(token).x).zip(scale) {
                        *o = x * s;
                    }
                    // SAFETY: one thread alone, and `token < n`.
                    unsafe { parts.store_row(team.isa(), token, 0, row) };
                }
            }
        }
        Ok(Region {
            team,
            kernels: Kernels::of(team.isa()),
            linears,
            x,
            scaled: &scratch.scaled,
            t,
            t_parts,
            t_acts: scratch.t_acts.as_ptr(),
        })
    }

    /// Runs the region: `A x` of every matrix that has recovery parameters, then `items` of every matrix by
    /// `f`.
    fn run(&self, items: &[usize], f: &(dyn Fn(usize, usize, &Gate) + Sync)) {
        let n = self.x.tokens();
        let tiles = n.div_ceil(TILE);
        let mut first = [0; MAX_OPS];
        for (items, linear) in first.iter_mut().zip(self.linears) {
            if let Some(LowRank { a, .. }) = linear.and_then(|l| l.low_rank) {
                *items = a.groups() * tiles;
            }
        }
        let low = |op: usize, item: usize| {
            let Some(LowRank { a, .. }) = self.linears[op].and_then(|l| l.low_rank) else { return };
            let (tile, g) = (item / a.groups(), item % a.groups());
            let (from, to) = (tile * TILE, n.min(tile * TILE + TILE));
            let tokens = Tokens::new(self.x, from, to - from);
            let (mut one, mut many);
            let acc: &mut [Acc] = if to - from == 1 {
                one = [[0.0; GROUP]];
                self.kernels.gemv(a, g, tokens, &mut one);
                &mut one
            } else {
                many = [[0.0; GROUP]; TILE];
                let acc = &mut many[..to - from];
                self.kernels.gemm(a, g, tokens, acc);
                acc
            };
            let count = GROUP.min(a.rows() - g * GROUP);
            for (t, acc) in acc.iter().enumerate() {
                // SAFETY: rows of a group and tokens of a tile belong to one item alone.
                unsafe { self.t[op].slice((from + t) * a.rows() + g * GROUP, count) }
                    .copy_from_slice(&acc[..count]);
            }
        };
        let quantize = || {
            for (op, parts) in self.t_parts.iter().enumerate() {
                let (Some(parts), Some(linear)) = (parts, self.linears[op]) else { continue };
                let rank = linear.rank();
                for t in 0..n {
                    // SAFETY: the first phase is over, so this thread alone uses `t` and the activations.
                    unsafe { parts.store_row(self.team.isa(), t, 0, self.t[op].slice(t * rank, rank)) };
                }
            }
        };
        self.team.phases(&first, &low, &quantize, items, f);
    }

    fn input(&self, op: usize, linear: &Linear<'_>) -> &Activations {
        match linear.col_scale.and_then(|_| self.scaled.get(op)) {
            Some(scaled) => scaled,
            None => self.x,
        }
    }

    /// `A x` quantised, once it is there.
    fn t(&self, op: usize, gate: &Gate) -> &Activations {
        gate.wait();
        // SAFETY: `new` checked that the scratch space has an entry for this matrix; after the gate nobody
        // writes it.
        unsafe { &*self.t_acts.add(op) }
    }

    /// Groups from `g` on for token `token`; `acc` holds zeros at first, one entry a group.
    fn one_token(&self, op: usize, g: usize, token: usize, acc: &mut [Acc], gate: &Gate) {
        let Some(linear) = self.linears[op] else { return };
        if let Some(w) = linear.weight {
            self.kernels.gemv(w, g, Tokens::new(self.input(op, linear), token, 1), acc);
        }
        if let Some(scale) = linear.row_scale {
            for (acc, scale) in acc.iter_mut().zip(scale[g * GROUP..].chunks(GROUP)) {
                scale_rows(acc, scale);
            }
        }
        if let Some(LowRank { b, .. }) = linear.low_rank {
            self.kernels.gemv(b, g, Tokens::new(self.t(op, gate), token, 1), acc);
        }
    }

    /// Group `g` for tokens `from..from + acc.len()`; `acc` holds zeros at first, one entry a token.
    fn many_tokens(&self, op: usize, g: usize, from: usize, acc: &mut [Acc], gate: &Gate) {
        let Some(linear) = self.linears[op] else { return };
        let n = acc.len();
        if let Some(w) = linear.weight {
            self.kernels.gemm(w, g, Tokens::new(self.input(op, linear), from, n), acc);
        }
        if let Some(scale) = linear.row_scale {
            for acc in acc.iter_mut() {
                scale_rows(acc, &scale[g * GROUP..]);
            }
        }
        if let Some(LowRank { b, .. }) = linear.low_rank {
            self.kernels.gemm(b, g, Tokens::new(self.t(op, gate), from, n), acc);
        }
    }
}

fn scale_rows(acc: &mut Acc, scale: &[f32]) {
    for (acc, scale) in acc.iter_mut().zip(scale) {
        *acc *= scale;
    }
}
