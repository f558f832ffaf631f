//! What the machine can do: memory bandwidth, by reading.

use std::io;
use std::time::Instant;

use memmap2::MmapMut;

/// Bytes read by one measurement: far beyond any cache, so that memory answers and not the cache.
const BUFFER_BYTES: usize = 512 << 20;
/// Passes over the buffer; the fastest counts, because everything else only slows a pass down.
const PASSES: usize = 4;

/// Read bandwidth of main memory in bytes a second, by `threads` threads that each read their own part. The
/// memory lies on large pages where the system has them, as a model's weights do.
///
/// # Errors
/// Those of the system, where there is not so much memory.
pub(crate) fn memory_bandwidth(threads: usize) -> io::Result<f64> {
    let mut memory = MmapMut::map_anon(BUFFER_BYTES)?;
    #[cfg(target_os = "linux")]
    // A wish: without large pages the memory serves as well.
    let _ = memory.advise(memmap2::Advice::HugePage);
    memory.fill(1);
    let part = BUFFER_BYTES.div_ceil(threads.max(1));
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for chunk in memory.chunks(part) {
                scope.spawn(move || std::hint::black_box(sum(chunk)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(BUFFER_BYTES as f64 / best)
}

/// A sum of 8-byte words over independent lanes, which the compiler turns into wide loads and additions;
/// bytes beyond whole words are left out.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.as_chunks::<8>().0;
    let mut lanes = [0u64; 32];
    let (chunks, rest) = words.as_chunks::<32>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    let add = |total: u64, word: u64| total.wrapping_add(word);
    lanes.into_iter().chain(rest.iter().map(|word| u64::from_le_bytes(*word))).fold(0, add)
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u8> = (0..1000u64).flat_map(u64::to_le_bytes).collect();
        assert_eq!(sum(&words), 499_500);
    }
}
