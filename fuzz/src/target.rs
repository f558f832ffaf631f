//! What a parser is given, and how it is called.

use std::fmt;
use std::path::{Path, PathBuf};

/// One parser, with all that is asked of what it has read.
pub struct Target {
    /// The name on the command line, and of the folder with the inputs that once failed.
    pub name: &'static str,
    /// The file that an input is written to before the parser runs.
    pub file: &'static str,
    /// The longest input, in bytes.
    pub longest: usize,
    /// Puts files that the parser wants beside the input into the folder.
    pub prepare: fn(&Path),
    /// Runs the parser.
    pub run: fn(&Place<'_>),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One input, as bytes and as a file.
#[derive(Debug)]
pub struct Place<'a> {
    /// The bytes.
    pub input: &'a [u8],
    /// The same in a file of the target's name.
    pub file: PathBuf,
    /// The folder of that file.
    pub folder: &'a Path,
}

impl Place<'_> {
    /// Returns the input as text; what is no UTF-8 becomes U+FFFD.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.input).into_owned()
    }
}
