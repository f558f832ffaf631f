//! Draws random numbers and orders that never change: the same seed gives the same bytes on every machine and
//! in every version, which the crates for random numbers do not promise across versions.
//!
//! Everything that depends on a file (splits, the order of documents and rows) uses this generator. Values
//! that need a distribution (first values in training, random weights, the engine's sampler) come from
//! `rand_chacha`.

/// SplitMix64 (Steele, Lea and Flood, 2014): a small generator of good 64-bit numbers from any seed.
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    /// Makes a generator whose whole sequence follows from `seed`.
    pub fn new(seed: u64) -> Self {
        SplitMix(seed)
    }

    /// Draws the next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Draws a number below `n`, each equally likely; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        if n == 0 {
            return 0;
        }
        // Numbers at the top that would favour the small remainders are drawn again.
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let x = self.next_u64();
            if x < limit {
                return (x % n) as usize;
            }
        }
    }
}

/// Spreads every bit over all others: the finaliser of SplitMix64, a bijection.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Puts the items in a random order that follows from `seed` alone (Fisher and Yates, from the end).
pub fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut rng = SplitMix::new(seed);
    for i in (1..items.len()).rev() {
        items.swap(i, rng.below(i + 1));
    }
}
