//! Lines of a file that nobody has checked: plain or gzip, of any length, perhaps not UTF-8, perhaps cut off.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};

/// The longest line that is read, in bytes. A longer one is an error: it is no sensible document, and reading
/// it would let a small compressed file take all memory.
pub const MAX_LINE_BYTES: usize = 64 << 20;

const BUFFER: usize = 1 << 16;

/// How many times its length a compressed file may have unpacked, beside [`MAX_LINE_BYTES`]. Text packs to a
/// third, logs to a fiftieth; a file made to fill the memory, to a thousandth.
const MAX_RATIO: u64 = 128;

/// Returns the length of a regular file, and refuses anything else: a pipe without a writer would be waited
/// for as long as there is none.
pub(crate) fn regular(path: &Path) -> Result<u64> {
    let found = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if found.is_dir() {
        return Err(Error::file(path, "is a folder, not a file of data"));
    }
    if !found.is_file() {
        return Err(Error::file(path, "is not a regular file; write what it gives to a file first"));
    }
    Ok(found.len())
}

/// Reads a file line by line, decompressing it if it begins as a gzip file does.
pub(crate) struct Lines {
    path: PathBuf,
    line: u64,
    reader: Box<dyn BufRead + Send>,
    buffer: Vec<u8>,
    limit: usize,
    gzip: bool,
    /// Bytes that may follow.
    left: u64,
    done: bool,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_with_limit(path, MAX_LINE_BYTES)
    }

    pub(crate) fn open_with_limit(path: &Path, limit: usize) -> Result<Self> {
        let packed = regular(path)?;
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let mut reader = BufReader::with_capacity(BUFFER, file);
        let start = reader.fill_buf().map_err(|e| Error::io(path, e))?;
        if start.is_empty() {
            return Err(Error::file(path, "is empty"));
        }
        let gzip = start.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn BufRead + Send> = if gzip {
            Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(reader)))
        } else if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz")) {
            return Err(Error::file(path, "is named .gz but does not begin as a gzip file does"));
        } else {
            Box::new(reader)
        };
        let left = if gzip {
            packed.saturating_mul(MAX_RATIO).saturating_add(MAX_LINE_BYTES as u64)
        } else {
            u64::MAX
        };
        Ok(Lines {
            path: path.to_path_buf(),
            line: 0,
            reader,
            buffer: Vec::new(),
            limit,
            gzip,
            left,
            done: false,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of the line last read, from 1.
    pub(crate) fn number(&self) -> u64 {
        self.line
    }

    /// Makes an error about the line last read.
    pub(crate) fn error(&self, what: impl Into<String>) -> Error {
        Error::line(&self.path, self.line, what)
    }

    /// Reads the next line with its line end, or `None` after the last; nothing more comes after an error.
    pub(crate) fn next_line(&mut self) -> Option<Result<&str>> {
        if self.done {
            return None;
        }
        match self.read() {
            Ok(false) => {
                self.done = true;
                None
            }
            Ok(true) => {
                // Checked in `read`, and repeated here because a borrow cannot leave a method that also errs.
                match std::str::from_utf8(&self.buffer) {
                    Ok(text) => Some(Ok(text)),
                    Err(_) => None,
                }
            }
            Err(e) => {
                self.done = true;
                Some(Err(e))
            }
        }
    }

    fn read(&mut self) -> Result<bool> {
        self.buffer.clear();
        self.line += 1;
        let mut bounded = (&mut self.reader).take(self.limit as u64 + 1);
        let n = match bounded.read_until(b'\n', &mut self.buffer) {
            Ok(n) => n,
            Err(e) if self.gzip && e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.error("the gzip stream ends too early; the file is cut off"));
            }
            Err(e)
                if self.gzip
                    && matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) =>
            {
                return Err(self.error(format!("the gzip stream is damaged: {e}")));
            }
            Err(e) => return Err(Error::io(&self.path, e)),
        };
        if n == 0 {
            return Ok(false);
        }
        if n > self.limit {
            return Err(self.error(format!("the line is longer than {} bytes", self.limit)));
        }
        let Some(left) = self.left.checked_sub(n as u64) else {
            return Err(self.error(format!(
                "the file unpacks to more than {MAX_RATIO} times its length, as one made to fill the memory does; \
                 unpack it yourself if that is right"
            )));
        };
        self.left = left;
        if let Err(e) = std::str::from_utf8(&self.buffer) {
            let at = e.valid_up_to();
            let hint = match self.buffer.get(..2) {
                Some([0xff, 0xfe] | [0xfe, 0xff]) if self.line == 1 => " (the file seems to be UTF-16)",
                _ => "",
            };
            return Err(self.error(format!("not UTF-8: the byte at position {} is invalid{hint}", at + 1)));
        }
        if self.line == 1 && self.buffer.starts_with("\u{feff}".as_bytes()) {
            self.buffer.drain(..3);
        }
        Ok(true)
    }
}
