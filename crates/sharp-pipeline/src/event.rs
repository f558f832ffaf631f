//! What a run tells its caller while it works.

use std::fmt;

/// Something that a person may want to read while a run works; [`Display`](fmt::Display) is the line for a
/// terminal.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Every stage is up to date.
    NothingToDo {
        /// The folder of the run.
        run: &'a str,
    },
    /// A step begins.
    Begins {
        /// Its number, from 1.
        number: usize,
        /// How many there are.
        of: usize,
        /// Its folder in the run.
        folder: &'a str,
        /// Why it is made.
        reason: &'a str,
    },
    /// A step is done.
    Done {
        /// Wall time in seconds.
        wall_s: f64,
        /// Largest resident memory of its programs, in bytes.
        peak_memory_bytes: Option<u64>,
    },
    /// The configuration asks for something that it cannot have.
    Note {
        /// What is left out, and why.
        text: &'a str,
    },
    /// A person edited an output that may be edited.
    Edited {
        /// The file.
        path: &'a str,
        /// The stage that wrote it.
        stage: &'a str,
    },
    /// A download begins.
    Downloads {
        /// What, and its version.
        what: &'a str,
        /// Size of the download.
        megabytes: u32,
    },
    /// A file was put into the cache.
    Cached {
        /// Its path.
        path: &'a str,
    },
    /// A cell of a study begins.
    CellBegins {
        /// Its number, from 1.
        number: usize,
        /// How many there are.
        of: usize,
        /// Its name.
        name: &'a str,
        /// How many are yet to run, this one among them.
        waiting: usize,
        /// About how long they take, once one has run.
        seconds_left: Option<f64>,
    },
    /// A cell of a study failed; the others go on.
    CellFailed {
        /// Its name.
        name: &'a str,
        /// What went wrong.
        error: &'a str,
    },
    /// Another process downloads the same thing.
    WaitsForCache {
        /// The lock of the cache.
        lock: &'a str,
    },
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NothingToDo { run } => write!(f, "{run}: nothing to do, every stage is up to date"),
            Self::Begins { number, of, folder, reason } => write!(f, "\n[{number}/{of}] {folder} ({reason})"),
            Self::Done { wall_s, peak_memory_bytes } => {
                write!(f, "      done in {wall_s:.1} s")?;
                match peak_memory_bytes {
                    Some(bytes) => write!(f, ", {} MiB", bytes >> 20),
                    None => Ok(()),
                }
            }
            Self::Note { text } => f.write_str(text),
            Self::Edited { path, stage } => {
                write!(f, "{path} was edited: the edit is used (--from {stage} makes it anew)")
            }
            Self::Downloads { what, megabytes } => write!(f, "downloading {what} ({megabytes} MB)"),
            Self::Cached { path } => write!(f, "cached {path}"),
            Self::CellBegins { number, of, name, waiting, seconds_left } => {
                write!(f, "\n== {number}/{of} {name} ({waiting} to run")?;
                match seconds_left {
                    Some(seconds) if seconds < 90.0 => write!(f, ", about {seconds:.0} s left)"),
                    Some(seconds) => write!(f, ", about {:.0} min left)", seconds / 60.0),
                    None => write!(f, ")"),
                }
            }
            Self::CellFailed { name, error } => write!(f, "the cell {name} failed: {error}"),
            Self::WaitsForCache { lock } => write!(f, "waiting for another process that holds {lock}"),
        }
    }
}

/// Hears what happens in a run.
pub type Observer<'a> = &'a dyn Fn(&Event<'_>);
