//! Hashes texts to numbers that never change: the split depends on them. The standard
//! library's hasher does not promise that.

use std::hash::Hasher;

use crate::rng::mix;

/// Hashes bytes by FNV-1a, finished with the SplitMix64 mix: stable, and good enough to tell texts apart.
#[derive(Clone, Debug)]
pub(crate) struct StableHash(u64);

impl Default for StableHash {
    fn default() -> Self {
        StableHash(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for StableHash {
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    fn finish(&self) -> u64 {
        mix(self.0)
    }
}
