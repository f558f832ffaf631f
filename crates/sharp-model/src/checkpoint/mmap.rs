//! The one place that maps files.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::error::{Error, Result};

/// Maps a whole file read-only. Pages are read when first touched, so this costs nothing by itself.
/// A file of length zero is refused (it cannot be mapped, and is no checkpoint).
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> Result<Arc<Mmap>> {
    let (file, _) = open(path)?;
    // SAFETY: the map is private to this process and read-only. What remains unsafe about mapping is that
    // another process may change or cut the file while it is mapped. This crate never writes a checkpoint in
    // place: every file it makes is renamed into place, which leaves the mapped inode untouched.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    Ok(Arc::new(map))
}

/// Reads a whole file into memory of the same kind, on large pages where the system has them for the asking:
/// a mapped file lies on pages of 4 KiB, and looking those up costs a reader at the memory's full speed about
/// a tenth of it.
pub(crate) fn read_file(path: &Path) -> Result<Arc<Mmap>> {
    let (mut file, len) = open(path)?;
    let len = usize::try_from(len).map_err(|_| Error::malformed(path, "larger than the address space"))?;
    let mut memory = MmapMut::map_anon(len).map_err(Error::io(path))?;
    // A wish: without large pages the memory serves as well.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    file.read_exact(&mut memory).map_err(Error::io(path))?;
    Ok(Arc::new(memory.make_read_only().map_err(Error::io(path))?))
}

/// A regular file that is not empty, and its length.
fn open(path: &Path) -> Result<(File, u64)> {
    // A pipe without a writer would be waited for as long as there is none.
    if !std::fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(Error::malformed(path, "not a regular file"));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let meta = file.metadata().map_err(Error::io(path))?;
    if meta.len() == 0 {
        return Err(Error::malformed(path, "the file is empty"));
    }
    Ok((file, meta.len()))
}
