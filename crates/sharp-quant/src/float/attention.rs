//! Causal attention over a cache of keys and values.

use super::{
    LANES,
    element::{Element, F16, F32},
    vector::{exp_negative, sum_lanes},
};
use crate::{
    DType, Error, Isa, Result, Team,
    error::{check_len, check_shape},
    vectorised::vectorised,
};

/// Keys whose scores are held at once: their softmax is joined to that of the keys before.
const KEYS: usize = 64;
/// Rows (query heads of tokens) that share each key and value loaded.
const ROWS: usize = 4;
/// Tokens in one item of work.
const ITEM_TOKENS: usize = 16;
/// Key values (head_dim x kv_heads x positions) below which one token's attention is not worth a parallel
/// region.
const SERIAL: usize = 16 << 10;

/// Keys and values of every layer and position so far, in F32 or F16.
///
/// Keys lie in tiles of 16 positions, (head_dim, 16) each, so that a query's scores with 16 keys are one
/// vector; values lie row by row, (positions, head_dim padded to 16). Memory is reserved for the whole
/// capacity, but the operating system provides it only as positions are written.
#[derive(Debug, Clone)]
pub struct KvCache {
    dtype: DType,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    /// For each layer: (kv_heads, capacity / 16, head_dim, 16).
    k: Vec<Vec<u8>>,
    /// For each layer: (kv_heads, capacity, padded head_dim).
    v: Vec<Vec<u8>>,
}

impl KvCache {
    /// Room for `capacity` positions (rounded up to a multiple of 64) of `layers` layers.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a type other than F32 and F16, [`Error::Empty`], [`Error::Overflow`].
    pub fn new(
        dtype: DType,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    ) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::F16) {
            return Err(Error::Unknown {
                what: "format of the KV cache",
                name: dtype.name().to_owned(),
                known: "F32, F16".to_owned(),
            });
        }
        let width = kv_heads.saturating_mul(head_dim);
        if width == 0 || capacity == 0 {
            return Err(Error::Empty { rows: capacity, cols: width });
        }
        let overflow = || Error::Overflow { what: "KV cache in bytes", rows: capacity, cols: width };
        let capacity = capacity.checked_next_multiple_of(KEYS).ok_or_else(overflow)?;
        let padded = head_dim.checked_next_multiple_of(LANES).ok_or_else(overflow)?;
        let bytes = padded
            .checked_mul(kv_heads)
            .and_then(|n| n.checked_mul(capacity))
            .and_then(|n| n.checked_mul(dtype.block_bytes()))
            .filter(|&n| n.checked_mul(layers.max(1)).is_some_and(|all| all < isize::MAX as usize))
            .ok_or_else(overflow)?;
        let key_bytes = bytes / padded * head_dim;
        let mut cache = KvCache {
            dtype,
            kv_heads,
            head_dim,
            capacity,
            k: Vec::with_capacity(layers),
            v: Vec::with_capacity(layers),
        };
        for _ in 0..layers {
            cache.k.push(vec![0; key_bytes]);
            cache.v.push(vec![0; bytes]);
        }
        Ok(cache)
    }

    /// How keys and values are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that one position takes in all layers.
    pub fn bytes_per_position(&self) -> usize {
        self.k.iter().chain(&self.v).map(Vec::len).sum::<usize>() / self.capacity
    }

    /// Stores the keys and values (n, kv_heads, head_dim) of a layer at positions `at..at + n`.
    ///
    /// # Errors
    /// [`Error::Capacity`] if there is no room or no such layer, [`Error::Length`] if `k` and `v` are not n
    /// rows.
    pub fn write(
        &mut self,
        team: &Team,
        layer: usize,
        at: usize,
        n: usize,
        k: &[f32],
        v: &[f32],
    ) -> Result<()> {
        self.check(layer, at, n)?;
        let width = self.kv_heads * self.head_dim;
        check_len("keys in elements", n * width, k.len())?;
        check_len("values in elements", n * width, v.len())?;
        let (capacity, dim, dtype) = (self.capacity, self.head_dim, self.dtype);
        let key_bytes = capacity * dim * dtype.block_bytes();
        let value_bytes = capacity * dim.next_multiple_of(LANES) * dtype.block_bytes();
        let isa = team.isa();
        let keys = |h: usize, store: &mut [u8]| match dtype {
            DType::F16 => store_keys::<F16>(isa, store, dim, width, h, at, k),
            _ => store_keys::<F32>(isa, store, dim, width, h, at, k),
        };
        let values = |h: usize, store: &mut [u8]| match dtype {
            DType::F16 => store_values::<F16>(isa, store, dim, width, h, at, v),
            _ => store_values::<F32>(isa, store, dim, width, h, at, v),
        };
        if n < ITEM_TOKENS {
            self.k[layer].chunks_mut(key_bytes).enumerate().for_each(|(h, store)| keys(h, store));
            self.v[layer].chunks_mut(value_bytes).enumerate().for_each(|(h, store)| values(h, store));
        } else {
            team.chunks_mut(&mut self.k[layer], key_bytes, &keys);
            team.chunks_mut(&mut self.v[layer], value_bytes, &values);
        }
        Ok(())
    }

    fn check(&self, layer: usize, at: usize, n: usize) -> Result<()> {
        if layer >= self.k.len() {
            return Err(Error::Capacity {
                what: "layers of the KV cache",
                capacity: self.k.len(),
                wanted: layer.saturating_add(1),
            });
        }
        let wanted = at.saturating_add(n);
        if wanted > self.capacity {
            return Err(Error::Capacity {
                what: "positions of the KV cache",
                capacity: self.capacity,
                wanted,
            });
        }
        Ok(())
    }
}

vectorised! {
    /// Head `h` of the rows of `k`, each `width` long, into that head's tiles.
    fn store_keys / store_keys_body [E: Element]
        (store: &mut [u8], dim: usize, width: usize, h: usize, at: usize, k: &[f32])
}

#[inline(always)]
fn store_keys_body<const HW: bool, E: Element>(
    store: &mut [u8],
    dim: usize,
    width: usize,
    h: usize,
    at: usize,
    k: &[f32],
) {
    let store = E::view_mut(store);
    for (t, row) in k.chunks_exact(width).enumerate() {
        let position = at + t;
        let base = position / LANES * LANES * dim + position % LANES;
        let mut slots = store[base..].iter_mut().step_by(LANES);
        narrow::<HW, E>(&row[h * dim..(h + 1) * dim], &mut |part| {
            part.iter().zip(&mut slots).for_each(|(raw, slot)| *slot = *raw);
        });
    }
}

vectorised! {
    /// Head `h` of the rows of `v`, each `width` long, into that head's rows.
    fn store_values / store_values_body [E: Element]
        (store: &mut [u8], dim: usize, width: usize, h: usize, at: usize, v: &[f32])
}

#[inline(always)]
fn store_values_body<const HW: bool, E: Element>(
    store: &mut [u8],
    dim: usize,
    width: usize,
    h: usize,
    at: usize,
    v: &[f32],
) {
    let padded = dim.next_multiple_of(LANES);
    let rows = E::view_mut(store)[at * padded..].chunks_exact_mut(padded);
    for (to, row) in rows.zip(v.chunks_exact(width)) {
        let mut done = 0;
        narrow::<HW, E>(&row[h * dim..(h + 1) * dim], &mut |part| {
            to[done..done + part.len()].copy_from_slice(part);
            done += part.len();
        });
    }
}

/// Hands the values of `x` on as they are stored, a vector at a time.
#[inline(always)]
fn narrow<const HW: bool, E: Element>(x: &[f32], to: &mut impl FnMut(&[E::Raw])) {
    let (lanes, rest) = x.as_chunks::<LANES>();
    for lane in lanes {
        to(&E::narrow_lane::<HW>(lane));
    }
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    to(&E::narrow_lane::<HW>(&last)[..rest.len()]);
}

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
