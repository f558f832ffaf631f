//! Computes causal attention over a cache of keys and values.

use super::{
    LANES,
    element::{Element, F16, F32},
    kv_cache::{ITEM_TOKENS, KEYS, KvCache},
    vector::{exp_negative, sum_lanes},
};
use crate::{
    DType, Error, Isa, Result, Team,
    error::{check_len, check_shape},
    vectorised::vectorised,
};

/// Rows (query heads of tokens) that share each key and value loaded.
const ROWS: usize = 4;
/// Key values (head_dim x kv_heads x positions) below which one token's attention is not worth a parallel
/// region.
const SERIAL: usize = 16 << 10;

/// How scores of queries and keys become weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// What they are multiplied by.
    pub scale: f32,
    /// `c` of `c tanh(score / c)`; none: they stay as they are.
    pub cap: Option<f32>,
    /// Positions a query sees, its own among them; none: all up to its own.
    pub window: Option<usize>,
}

impl From<f32> for Scores {
    /// Multiplied by `scale` and nothing else.
    fn from(scale: f32) -> Self {
        Scores { scale, cap: None, window: None }
    }
}

/// The queries of consecutive tokens at one layer.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a> {
    /// The layer of the cache that they look at.
    pub layer: usize,
    /// Query heads, a multiple of the cache's KV heads; consecutive ones share a KV head.
    pub heads: usize,
    /// Position of the first token.
    pub at: usize,
    /// (n, heads, head_dim)
    pub q: &'a [f32],
    /// How scores become weights.
    pub scores: Scores,
}

/// Computes causal attention: `out[t, h] = softmax(scale * q[t, h] . K) V` (n, heads, head_dim).
///
/// Token `t` sees the positions up to its own, `at + t`, whose keys and values the cache must hold. Scores
/// are capped and positions narrowed to a window where `scores` says so. Keys are taken 64 at a time in
/// ascending order, whatever the number of queries and threads, so a token's result does not depend on those.
/// Allocates nothing.
///
/// # Errors
/// [`Error::Shape`], [`Error::Length`] and [`Error::Capacity`] if shapes do not agree.
pub fn attention(team: &Team, cache: &KvCache, queries: Queries<'_>, out: &mut [f32]) -> Result<()> {
    let Queries { layer, heads, at, q, scores } = queries;
    if heads == 0 || !heads.is_multiple_of(cache.kv_heads) {
        return Err(Error::Shape {
            what: "query heads, in KV heads",
            expected: cache.kv_heads,
            found: heads,
        });
    }
    let dim = cache.head_dim;
    let width = heads * dim;
    let n = q.len() / width;
    check_len("queries in elements", n * width, q.len())?;
    check_shape("attention output in elements", q.len(), out.len())?;
    cache.check(layer, at, n)?;
    if n == 0 {
        return Ok(());
    }
    let group = heads / cache.kv_heads;
    let args = HeadArgs { cache, layer, q, heads, at, scores };
    let isa = team.isa();
    if n == 1 {
        if (at + 1) * cache.kv_heads * dim < SERIAL || team.threads() == 1 {
            run(isa, &args, (0, 1), (0, heads), out);
            return Ok(());
        }
        // One item a KV head reads keys and values once; one a query head shares the work out more evenly.
        let even = cache.kv_heads.is_multiple_of(team.threads()) || cache.kv_heads >= 4 * team.threads();
        let per_item = if even { group } else { 1 };
        team.chunks_mut(out, per_item * dim, &|item, out| {
            run(isa, &args, (0, 1), (item * per_item, (item + 1) * per_item), out);
        });
        return Ok(());
    }
    // Shorter items where there would be too few: a verification of a few tokens, or the last piece of a
    // prompt.
    let tokens = ITEM_TOKENS.min(n.div_ceil(4 * team.threads())).max(1);
    team.chunks_mut(out, tokens * width, &|item, out| {
        // The longest items, the last, are taken first by those who begin at the end; dynamic claiming evens
        // out the rest.
        let from = item * tokens;
        run(isa, &args, (from, n.min(from + tokens)), (0, heads), out);
    });
    Ok(())
}

/// What every head and token of one attention has in common.
#[derive(Clone, Copy)]
struct HeadArgs<'a> {
    cache: &'a KvCache,
    layer: usize,
    q: &'a [f32],
    heads: usize,
    at: usize,
    scores: Scores,
}

/// Tokens and query heads `from..to` of an attention, with `out` (tokens, heads in question, head_dim).
fn run(isa: Isa, all: &HeadArgs<'_>, tokens: (usize, usize), heads: (usize, usize), out: &mut [f32]) {
    match all.cache.dtype {
        DType::F16 => rows::<F16>(isa, all, tokens, heads, out),
        _ => rows::<F32>(isa, all, tokens, heads, out),
    }
}

vectorised! {
    fn rows / rows_body [E: Element] (all: &HeadArgs<'_>, tokens: (usize, usize), heads: (usize, usize), out: &mut [f32])
}

#[inline(always)]
fn rows_body<const HW: bool, E: Element>(
    all: &HeadArgs<'_>,
    tokens: (usize, usize),
    heads: (usize, usize),
    out: &mut [f32],
) {
    let cache = all.cache;
    let dim = cache.head_dim;
    let padded = dim.next_multiple_of(LANES);
    let group = all.heads / cache.kv_heads;
    let keys = E::view(&cache.k[all.layer]);
    let values = E::view(&cache.v[all.layer]);
    for kv_head in heads.0 / group..heads.1.div_ceil(group) {
        let k = &keys[kv_head * cache.capacity * dim..(kv_head + 1) * cache.capacity * dim];
        let v = &values[kv_head * cache.capacity * padded..(kv_head + 1) * cache.capacity * padded];
        let head = Head::<E> { k, v, dim, padded, scale: all.scores.scale, cap: all.scores.cap };
        // Rows: every query head of this KV head, token after token.
        let first = heads.0.max(kv_head * group);
        let some = heads.1.min((kv_head + 1) * group) - first;
        let total = (tokens.1 - tokens.0) * some;
        let row = |i: usize| {
            let (t, h) = (tokens.0 + i / some, first + i % some);
            let limit = all.at + t + 1;
            Row {
                q: &all.q[(t * all.heads + h) * dim..][..dim],
                from: all.scores.window.map_or(0, |w| limit.saturating_sub(w.max(1))),
                limit,
                out: ((t - tokens.0) * (heads.1 - heads.0) + h - heads.0) * dim,
            }
        };
        if tokens.1 - tokens.0 == 1 {
            head.attend_all::<HW, true>(total, row, out);
        } else {
            head.attend_all::<HW, false>(total, row, out);
        }
    }
}

/// One query head of one token.
#[derive(Clone, Copy)]
struct Row<'a> {
    q: &'a [f32],
    /// The first position it sees.
    from: usize,
    /// The position after the last it sees.
    limit: usize,
    /// Where its output begins.
    out: usize,
}

impl Row<'_> {
    /// Whether it sees any of the positions `base..base + count`.
    #[inline(always)]
    fn sees(&self, base: usize, count: usize) -> bool {
        base < self.limit && self.from < base + count
    }
}

/// One KV head's keys and values.
struct Head<'a, E: Element> {
    k: &'a [E::Raw],
    v: &'a [E::Raw],
    dim: usize,
    padded: usize,
    scale: f32,
    cap: Option<f32>,
}

impl<E: Element> Head<'_, E> {
    /// All rows, some at a time. `FIRST` says that these keys and values are not in the caches yet: those of
    /// one token, which nobody else has just looked at.
    #[inline(always)]
    fn attend_all<'a, const HW: bool, const FIRST: bool>(
        &self,
        total: usize,
        row: impl Fn(usize) -> Row<'a>,
        out: &mut [f32],
    ) {
        let mut i = 0;
        while i < total {
            let count = ROWS.min(total - i);
            match count {
                4 => self.attend::<HW, FIRST, 4, 1>(std::array::from_fn(|r| row(i + r)), out),
                3 => self.attend::<HW, FIRST, 3, 2>(std::array::from_fn(|r| row(i + r)), out),
                2 => self.attend::<HW, FIRST, 2, 2>(std::array::from_fn(|r| row(i + r)), out),
                _ => self.attend::<HW, FIRST, 1, 4>(std::array::from_fn(|r| row(i + r)), out),
            }
            i += count;
        }
    }

    /// `R` rows at once, `S` vectors of each: sums that do not wait for each other, as many as there are
    /// registers for.
    #[inline(always)]
    fn attend<const HW: bool, const FIRST: bool, const R: usize, const S: usize>(
        &self,
        rows: [Row<'_>; R],
        out: &mut [f32],
    ) {
        let longest = rows.iter().map(|r| r.limit).max().unwrap_or(0);
        let first = rows.iter().map(|r| r.from).min().unwrap_or(0) / KEYS * KEYS;
        let mut top = [f32::NEG_INFINITY; R];
        let mut total = [0.0f32; R];
        for base in (first..longest).step_by(KEYS) {
            let count = KEYS.min(longest - base);
            let mut p = [[0.0f32; KEYS]; R];
            self.scores::<HW, FIRST, R, S>(&rows, base, count, &mut p);
            let mut keep = [1.0f32; R];
            for r in 0..R {
                // A row that sees none of these keys has weights of zero for them and stays as it is.
                if rows[r].sees(base, count) {
                    (top[r], keep[r], total[r]) = soften(&mut p[r], top[r], total[r]);
                }
            }
            self.values::<HW, FIRST, R, S>(&rows, (first, base), count, &p, keep, out);
        }
        for (row, total) in rows.iter().zip(total) {
            let inverse = 1.0 / total;
            for o in &mut out[row.out..row.out + self.dim] {
                *o *= inverse;
            }
        }
    }

    /// Scaled scores with keys `base..base + count`; minus infinity outside what a row sees, but zero for a
    /// row that sees none of them.
    #[inline(always)]
    fn scores<const HW: bool, const FIRST: bool, const R: usize, const S: usize>(
        &self,
        rows: &[Row<'_>; R],
        base: usize,
        count: usize,
        p: &mut [[f32; KEYS]; R],
    ) {
        let tiles = count.div_ceil(LANES);
        let mut tile = 0;
        while tile + S <= tiles {
            self.tiles::<HW, FIRST, R, S>(rows, base, tile, p);
            tile += S;
        }
        for tile in tile..tiles {
            self.tiles::<HW, FIRST, R, 1>(rows, base, tile, p);
        }
        for (p, row) in p.iter_mut().zip(rows) {
            if row.sees(base, count) {
                let from = base as i64;
                let seen = (row.from as i64 - from, row.limit as i64 - from);
                // As i32, because comparing those vectorises.
                let seen = (seen.0.clamp(0, KEYS as i64) as i32, seen.1.clamp(0, KEYS as i64) as i32);
                for (l, p) in p.iter_mut().enumerate() {
                    let l = l as i32;
                    *p = if l >= seen.0 && l < seen.1 { *p } else { f32::NEG_INFINITY };
                }
            } else {
                p.fill(0.0);
            }
        }
    }

    /// Scaled scores with the `S` tiles of 16 keys from the `tile`th after `base` on.
    #[inline(always)]
    fn tiles<const HW: bool, const FIRST: bool, const R: usize, const S: usize>(
        &self,
        rows: &[Row<'_>; R],
        base: usize,
        tile: usize,
        p: &mut [[f32; KEYS]; R],
    ) {
        let keys: [&[[E::Raw; LANES]]; S] = std::array::from_fn(|s| {
            let from = base + (tile + s) * LANES;
            self.k[from * self.dim..(from + LANES) * self.dim].as_chunks::<LANES>().0
        });
        let mut acc = [[[0.0f32; LANES]; S]; R];
        #[allow(clippy::needless_range_loop, reason = "runs over every tile and every query at once")]
        for d in 0..self.dim {
            for s in 0..S {
                if FIRST {
                    ask_for(&raw const keys[s][d], KEYS * self.dim / LANES);
                }
                let k = E::widen::<HW>(&keys[s][d]);
                for r in 0..R {
                    let q = rows[r].q[d];
                    for l in 0..LANES {
                        acc[r][s][l] = q.mul_add(k[l], acc[r][s][l]);
                    }
                }
            }
        }
        for r in 0..R {
            for s in 0..S {
                let mut scores = acc[r][s].map(|v| v * self.scale);
                if let Some(cap) = self.cap {
                    scores = scores.map(|v| cap * (v / cap).tanh());
                }
                for l in 0..LANES {
                    p[r][(tile + s) * LANES + l] = scores[l];
                }
            }
        }
    }

    /// `out = out * keep + p V` over keys `base..base + count`; the first time, where `base` is `first`,
    /// `out` counts as zero.
    #[inline(always)]
    fn values<const HW: bool, const FIRST: bool, const R: usize, const S: usize>(
        &self,
        rows: &[Row<'_>; R],
        (first, base): (usize, usize),
        count: usize,
        p: &[[f32; KEYS]; R],
        keep: [f32; R],
        out: &mut [f32],
    ) {
        let v = &self.v[base * self.padded..(base + count) * self.padded];
        let keep = (base > first).then_some(keep);
        let mut c = 0;
        while c + S * LANES <= self.padded {
            self.columns::<HW, FIRST, R, S>(rows, v, c, p, keep, out);
            c += S * LANES;
        }
        for c in (c..self.padded).step_by(LANES) {
            self.columns::<HW, FIRST, R, 1>(rows, v, c, p, keep, out);
        }
    }

    /// The `S` vectors of columns from `c` on of [`Self::values`]; without `keep`, `out` counts as zero.
    #[inline(always)]
    fn columns<const HW: bool, const FIRST: bool, const R: usize, const S: usize>(
        &self,
        rows: &[Row<'_>; R],
        v: &[E::Raw],
        c: usize,
        p: &[[f32; KEYS]; R],
        keep: Option<[f32; R]>,
        out: &mut [f32],
    ) {
        // Columns of the row that exist, of each vector.
        let width: [usize; S] = std::array::from_fn(|s| self.dim.saturating_sub(c + s * LANES).min(LANES));
        let mut acc = [[[0.0f32; LANES]; S]; R];
        if let Some(keep) = keep {
            for r in 0..R {
                for s in 0..S {
                    let o = &out[rows[r].out + c + s * LANES..][..width[s]];
                    for (a, o) in acc[r][s].iter_mut().zip(o) {
                        *a = o * keep[r];
                    }
                }
            }
        }
        for (key, v) in v.chunks_exact(self.padded).enumerate() {
            let (v, _) = v[c..c + S * LANES].as_chunks::<LANES>();
            for s in 0..S {
                if FIRST {
                    ask_for(&raw const v[s], KEYS * self.padded / LANES);
                }
                let v = E::widen::<HW>(&v[s]);
                for r in 0..R {
                    let p = p[r][key % KEYS];
                    for l in 0..LANES {
                        acc[r][s][l] = p.mul_add(v[l], acc[r][s][l]);
                    }
                }
            }
        }
        for r in 0..R {
            for s in 0..S {
                let o = &mut out[rows[r].out + c + s * LANES..][..width[s]];
                o.copy_from_slice(&acc[r][s][..width[s]]);
            }
        }
    }
}

/// Brings what lies `ahead` vectors after `from` nearer, whether it exists or not: keys and values of the
/// next 64 positions lie in pages that the processor's own prefetching does not reach.
#[inline(always)]
fn ask_for<T>(from: *const [T; LANES], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is a hint without effect on the program.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(ahead).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, ahead);
}

/// Turns scores into weights relative to the new largest score; returns that, the factor that makes earlier
/// weights relative to it, and the new sum of weights.
#[inline(always)]
fn soften(p: &mut [f32; KEYS], top: f32, total: f32) -> (f32, f32, f32) {
    let chunks = p.as_chunks_mut::<LANES>().0;
    let mut tops = [f32::NEG_INFINITY; LANES];
    for c in chunks.iter() {
        for l in 0..LANES {
            tops[l] = if c[l] > tops[l] { c[l] } else { tops[l] };
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            tops[i] = if tops[i + width] > tops[i] { tops[i + width] } else { tops[i] };
        }
        width /= 2;
    }
    let new = if tops[0] > top { tops[0] } else { top };
    let keep = exp_negative(top - new);
    let mut sums = [0.0f32; LANES];
    for c in chunks {
        for l in 0..LANES {
            c[l] = exp_negative(c[l] - new);
            sums[l] += c[l];
        }
    }
    (new, keep, total.mul_add(keep, sum_lanes(sums)))
}
