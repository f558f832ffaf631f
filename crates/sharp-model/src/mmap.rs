//! The one place that maps files.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Maps a whole file read-only. Pages are read when first touched, so this costs nothing by itself.
/// A file of length zero is refused (it cannot be mapped, and is no checkpoint).
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> Result<Arc<Mmap>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let meta = file.metadata().map_err(Error::io(path))?;
    if !meta.is_file() {
        return Err(Error::malformed(path, "not a regular file"));
    }
    if meta.len() == 0 {
        return Err(Error::malformed(path, "the file is empty"));
    }
    // SAFETY: the map is private to this process and read-only. What remains unsafe about mapping is that another
    // process may change or cut the file while it is mapped. This crate never writes a checkpoint in place: every
    // file it makes is renamed into place, which leaves the mapped inode untouched.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    Ok(Arc::new(map))
}
