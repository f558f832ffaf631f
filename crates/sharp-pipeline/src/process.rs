//! Runs a stage's program: its messages pass through, its memory is watched, and Ctrl-C reaches it.

use std::fs::File;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Context as _, Error, Result};

static STOP: AtomicBool = AtomicBool::new(false);

/// How long a program may take to end by itself after Ctrl-C; then it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Stops every run of this process as soon as its program has ended: for a handler of Ctrl-C and SIGTERM.
pub fn request_stop() {
    STOP.store(true, Ordering::SeqCst);
}

/// What a program used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Usage {
    /// Wall time in seconds.
    pub(crate) wall_s: f64,
    /// Largest resident memory in bytes, where the system tells (Linux).
    pub(crate) peak_memory_bytes: Option<u64>,
}

/// Runs a program to its end. Its standard input is `lock`, an empty file: the child so holds the lock of the
/// run's folder as long as it lives, even if this process is killed first.
pub(crate) fn run(command: &mut Command, lock: &File) -> Result<(ExitStatus, Usage)> {
    let program = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    let stdin = lock.try_clone().context("sharing the lock with the program")?;
    let mut child = command
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(std::io::stderr()))
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let mut peak = None;
    let mut pause = Duration::from_millis(2);
    let mut stop_by: Option<Instant> = None;
    loop {
        // The mark is of the whole life of the process, so the last look is all that counts.
        peak = sharp_host::peak_memory_of(child.id()).or(peak);
        if let Some(status) = child.try_wait().with_context(|| format!("waiting for {program}"))? {
            if STOP.load(Ordering::SeqCst) {
                return Err(Error::Stopped);
            }
            let usage = Usage { wall_s: started.elapsed().as_secs_f64(), peak_memory_bytes: peak };
            return Ok((status, usage));
        }
        if STOP.load(Ordering::SeqCst) {
            let by = *stop_by.get_or_insert_with(|| Instant::now() + GRACE);
            if Instant::now() >= by {
                // Everything is written to the side and renamed, so a hard end leaves nothing half done.
                child.kill().with_context(|| format!("ending {program}"))?;
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Returns true once [`request_stop`] was called.
pub fn stop_requested() -> bool {
    STOP.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn time_memory_and_the_lock_of_a_child() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        lock.lock().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 0.2; cat"]);
        let (status, usage) = run(&mut command, &lock).unwrap();
        assert!(status.success());
        assert!(usage.wall_s >= 0.2 && usage.wall_s < 5.0, "{usage:?}");
        assert!(usage.peak_memory_bytes.is_some_and(|bytes| bytes > 100_000), "{usage:?}");

        drop(command);
        // A child that outlives its parent's handle keeps the lock.
        let mut child =
            Command::new("sleep").arg("5").stdin(Stdio::from(lock.try_clone().unwrap())).spawn().unwrap();
        drop(lock);
        assert!(File::open(&path).unwrap().try_lock().is_err());
        child.kill().unwrap();
        child.wait().unwrap();
        // Programs that other tests are just starting hold a copy of every open file until they run.
        let free = || File::open(&path).unwrap().try_lock().is_ok();
        assert!((0..500).any(|_| free() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }));
    }
}
