//! Measures how deep a footer nests its columns, before the `parquet` crate makes a tree of them by
//! recursion.
//!
//! A file of a megabyte could nest them deeper than any stack. The footer is in Thrift's compact protocol; of
//! it only the schema's counts of children are read. The rest is walked through, so that no list is longer
//! than its bytes.

use parquet::errors::Result as ParquetResult;
use parquet::file::reader::ChunkReader as _;

use super::pages::Chunks;

/// Structures within structures that are skipped, at most; the format needs less than ten.
const SKIP: usize = 32;

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self, n: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(n).ok()?..)?;
        Some(())
    }

    /// Reads the next field's number and type, or type 0 at the end of a structure.
    fn field(&mut self, last: i16) -> Option<(i16, u8)> {
        let head = self.byte()?;
        let (step, kind) = (head >> 4, head & 15);
        match (kind, step) {
            (0, _) => Some((last, 0)),
            (_, 0) => {
                let n = self.number()?;
                Some((i16::try_from((n >> 1) as i64 ^ -((n & 1) as i64)).ok()?, kind))
            }
            _ => Some((last.checked_add(i16::from(step))?, kind)),
        }
    }

    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
        // An element takes a byte at least.
        (count <= self.0.len() as u64).then_some((count, head & 15))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            1 | 2 => Some(()),
            3 => self.bytes(1),
            4..=6 => self.number().map(drop),
            7 => self.bytes(8),
            8 => {
                let n = self.number()?;
                self.bytes(n)
            }
            9 | 10 => {
                let (count, kind) = self.list()?;
                // The crate counts truth values without reading them, two thousand million if a list says so.
                // The format has no such list here.
                if matches!(kind, 1 | 2) {
                    return None;
                }
                (0..count).try_for_each(|_| self.skip(kind, depth))
            }
            12 => {
                let mut last = 0;
                loop {
                    let (id, kind) = self.field(last)?;
                    if kind == 0 {
                        return Some(());
                    }
                    self.skip(kind, depth)?;
                    last = id;
                }
            }
            _ => None,
        }
    }

    /// Reads the number of children of the next element of a schema.
    fn children(&mut self) -> Option<u64> {
        let (mut last, mut children) = (0, 0);
        loop {
            let (id, kind) = self.field(last)?;
            match (id, kind) {
                (_, 0) => return Some(children),
                (5, 5) => children = self.number()? >> 1,
                _ => self.skip(kind, SKIP)?,
            }
            last = id;
        }
    }
}

/// Returns whether no column lies more than `most` levels deep. True where there is no footer, false where
/// its schema cannot be read.
pub(super) fn shallow(footer: &[u8], most: usize) -> bool {
    footer.is_empty() || schema(&mut Reader(footer), most).is_some()
}

fn schema(reader: &mut Reader<'_>, most: usize) -> Option<()> {
    let mut last = 0;
    loop {
        let (id, kind) = reader.field(last)?;
        if (id, kind) != (2, 9) {
            if kind == 0 {
                return Some(());
            }
            reader.skip(kind, SKIP)?;
            last = id;
            continue;
        }
        let (count, _) = reader.list()?;
        // How many children of each open group are still to come.
        let mut open: Vec<u64> = Vec::new();
        for _ in 0..count {
            while open.last() == Some(&0) {
                open.pop();
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            let children = reader.children()?;
            if children > 0 {
                open.push(children);
            }
            if open.len() > most {
                return None;
            }
        }
        last = id;
    }
}

/// Reads the metadata at the file's end; nothing where the `parquet` crate will say what is wrong with it.
pub(super) fn read(file: &Chunks) -> ParquetResult<bytes::Bytes> {
    let Some(at) = file.len.checked_sub(8) else { return Ok(bytes::Bytes::new()) };
    let end = file.get_bytes(at, 8)?;
    let length = end.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    match at.checked_sub(u64::from(length)) {
        Some(start) => file.get_bytes(start, usize::try_from(length)?),
        None => Ok(bytes::Bytes::new()),
    }
}
