//! One input, with what it may cost.

use std::fmt;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cpu_time::ProcessTime;
use peak_alloc::PeakAlloc;

use crate::target::{Place, Target};

/// Counts what is allocated.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What an input may take of the processor. Time is counted, not watched, so that a busy machine changes
/// nothing.
const LONGEST: Duration = Duration::from_secs(1);
/// What an input may allocate beside twice its length, in bytes.
const ALLOWANCE: usize = 64 << 20;

/// What the last panic said, and where.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// What was wrong with an input.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// The parser panicked; its words, and where.
    Panic(String),
    /// The parser took longer than a second of the processor.
    Time(Duration),
    /// The parser allocated more than twice the input and 64 MB, in bytes.
    Memory(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(what) => write!(f, "a panic: {what}"),
            Self::Time(time) => write!(f, "{:.1} s of the processor", time.as_secs_f64()),
            Self::Memory(bytes) => write!(f, "{} MB of memory", bytes >> 20),
        }
    }
}

/// A folder in which one target is tried.
#[derive(Debug)]
pub struct Workbench<'a> {
    target: &'a Target,
    folder: &'a Path,
}

impl<'a> Workbench<'a> {
    /// Prepares a folder that is there. From here on panics of this process are kept and not printed:
    /// parsers may turn those of a library into errors.
    pub fn new(target: &'a Target, folder: &'a Path) -> Self {
        std::panic::set_hook(Box::new(|info| {
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
        }));
        (target.prepare)(folder);
        Self { target, folder }
    }

    /// Tries one input. It is also the content of the target's file afterwards, for a process that ends
    /// within the parser.
    ///
    /// # Errors
    /// What was wrong.
    pub fn check(&self, input: &[u8]) -> Result<(), Fault> {
        let file = self.folder.join(self.target.file);
        // A new file: one that is cut and written again would be flushed to the disk each time.
        let _ = fs::remove_file(&file);
        fs::write(&file, input).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let place = Place { input, file, folder: self.folder };
        MEMORY.reset_peak_usage();
        let (before, started) = (MEMORY.current_usage(), ProcessTime::now());
        let ended = catch_unwind(AssertUnwindSafe(|| (self.target.run)(&place)));
        let time = started.elapsed();
        let memory = MEMORY.peak_usage().saturating_sub(before);
        if ended.is_err() {
            return Err(Fault::Panic(PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone()));
        }
        if time > LONGEST {
            return Err(Fault::Time(time));
        }
        if memory > 2 * input.len() + ALLOWANCE {
            return Err(Fault::Memory(memory));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(run: fn(&Place<'_>), input: &[u8]) -> Result<(), Fault> {
        let target = Target { name: "test", file: "input", longest: 10, prepare: |_| {}, run };
        let folder = tempfile::tempdir().unwrap();
        let ended = Workbench::new(&target, folder.path()).check(input);
        assert_eq!(fs::read(folder.path().join("input")).unwrap(), input);
        ended
    }

    #[test]
    fn faults_are_seen() {
        assert_eq!(tried(|place| assert_eq!(place.text(), "abc"), b"abc"), Ok(()));
        let fault = tried(|place| assert!(place.input.is_empty(), "so it was said"), b"abc").unwrap_err();
        assert!(matches!(&fault, Fault::Panic(what) if what.contains("so it was said")), "{fault}");
        let caught = |_: &Place<'_>| assert!(catch_unwind(|| panic!("caught")).is_err());
        assert_eq!(tried(caught, b""), Ok(()));
        let fault = tried(|_| drop(std::hint::black_box(vec![1u8; 80 << 20])), b"").unwrap_err();
        assert!(matches!(fault, Fault::Memory(bytes) if bytes >= 80 << 20), "{fault}");
        let started = |_: &Place<'_>| {
            let now = ProcessTime::now();
            while now.elapsed() <= LONGEST {}
        };
        assert!(matches!(tried(started, b""), Err(Fault::Time(_))));
    }
}
