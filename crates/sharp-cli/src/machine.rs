//! What the machine can do: memory bandwidth by reading, peak memory of this process.

use std::time::Instant;

/// Bytes read by one measurement: far beyond any cache, so that memory answers and not the cache.
const BUFFER_BYTES: usize = 512 << 20;
/// Passes over the buffer; the fastest counts, because everything else only slows a pass down.
const PASSES: usize = 4;

/// Read bandwidth of main memory in bytes a second, by `threads` threads that each read their own part.
pub(crate) fn memory_bandwidth(threads: usize) -> f64 {
    let words = vec![1u64; BUFFER_BYTES / size_of::<u64>()];
    let part = words.len().div_ceil(threads.max(1));
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for chunk in words.chunks(part) {
                scope.spawn(move || std::hint::black_box(sum(chunk)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    BUFFER_BYTES as f64 / best
}

/// A sum over independent lanes, which the compiler turns into wide loads and additions.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 32];
    let (chunks, rest) = words.as_chunks::<32>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().chain(rest).fold(0, |total, word| total.wrapping_add(*word))
}

/// The largest resident memory this process has had, in bytes, where the system tells it.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (0..1000).collect();
        assert_eq!(sum(&words), 499_500);
    }
}
