//! Stores keys and values in the layout that attention reads.

use zerocopy::FromZeros;

use super::{
    LANES,
    element::{Element, F16, F32},
};
use crate::{DType, Error, Result, Team, error::check_len, vectorised::vectorised};

/// Keys whose scores attention holds at once: their softmax is joined to that of the keys before.
pub(super) const KEYS: usize = 64;
/// Tokens in one item of work.
pub(super) const ITEM_TOKENS: usize = 16;

/// Keys and values of every layer and position so far, in F32 or F16.
///
/// Keys lie in tiles of 16 positions, (head_dim, 16) each, so that a query's scores with 16 keys are one
/// vector; values lie row by row, (positions, head_dim padded to 16). Memory is reserved for the whole
/// capacity, but the operating system provides it only as positions are written.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(super) dtype: DType,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) capacity: usize,
    /// For each layer: (kv_heads, capacity / 16, head_dim, 16).
    pub(super) k: Vec<Vec<u8>>,
    /// For each layer: (kv_heads, capacity, padded head_dim).
    pub(super) v: Vec<Vec<u8>>,
}

/// Returns the bytes of one layer's keys, and of its values.
fn layer_bytes(
    dtype: DType,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
) -> Result<(usize, usize)> {
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
        .filter(|&n| n.checked_mul(2 * layers.max(1)).is_some_and(|all| all < isize::MAX as usize))
        .ok_or_else(overflow)?;
    Ok((bytes / padded * head_dim, bytes))
}

impl KvCache {
    /// Makes room for `capacity` positions (rounded up to a multiple of 64) of `layers` layers.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a type other than F32 and F16, [`Error::Empty`], [`Error::Overflow`],
    /// [`Error::Memory`].
    pub fn new(
        dtype: DType,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    ) -> Result<Self> {
        let (key_bytes, bytes) = layer_bytes(dtype, layers, kv_heads, head_dim, capacity)?;
        let capacity = capacity.next_multiple_of(KEYS);
        let whole = (key_bytes + bytes) as u64 * layers as u64;
        let zeroed = |bytes| {
            u8::new_vec_zeroed(bytes).map_err(|_| Error::Memory { what: "keys and values", bytes: whole })
        };
        let (mut k, mut v) = (Vec::with_capacity(layers), Vec::with_capacity(layers));
        for _ in 0..layers {
            k.push(zeroed(key_bytes)?);
            v.push(zeroed(bytes)?);
        }
        Ok(KvCache { dtype, kv_heads, head_dim, capacity, k, v })
    }

    /// Returns the bytes that a cache takes once all its positions are written.
    ///
    /// # Errors
    /// Those of [`KvCache::new`].
    pub fn bytes(
        dtype: DType,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    ) -> Result<usize> {
        let (keys, values) = layer_bytes(dtype, layers, kv_heads, head_dim, capacity)?;
        Ok((keys + values) * layers)
    }

    /// Returns how keys and values are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns how many positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the bytes that one position takes in all layers.
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

    /// Checks that the cache has this layer and the positions `at..at + n`.
    pub(super) fn check(&self, layer: usize, at: usize, n: usize) -> Result<()> {
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
    /// Stores head `h` of the rows of `k`, each `width` long, in that head's tiles.
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
    /// Stores head `h` of the rows of `v`, each `width` long, in that head's rows.
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
