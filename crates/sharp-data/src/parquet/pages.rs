//! Reads and decompresses the pages of a column, each checked before the `parquet` crate decodes it.
//!
//! The crate's decoder trusts a page's numbers: here a page has at most 16 MB, a dictionary has
//! no more entries than bytes, and the lengths of texts fit their page.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use parquet::basic::{Compression, Encoding, Type as Physical};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length, RowGroupReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

/// The longest page, in bytes. The decoder holds three times as much for a moment.
const MAX_PAGE_BYTES: usize = 16 << 20;

/// A file that is read where it is asked for and nowhere beyond its end.
pub(super) struct Chunks {
    pub(super) file: File,
    /// Its length in bytes.
    pub(super) len: u64,
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(file))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<bytes::Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.len) {
            return Err(ParquetError::EOF(format!(
                "{length} bytes at {start} of {} are asked for",
                self.len
            )));
        }
        let mut buffer = vec![0; length];
        self.get_read(start)?.read_exact(&mut buffer)?;
        Ok(buffer.into())
    }
}

/// A row group whose pages are decompressed here, within limits.
pub(super) struct Group<'a> {
    pub(super) file: Arc<Chunks>,
    pub(super) meta: &'a RowGroupMetaData,
}

impl RowGroupReader for Group<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.meta
    }

    fn num_columns(&self) -> usize {
        self.meta.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> ParquetResult<Box<dyn PageReader>> {
        let column = self.meta.columns().get(i).ok_or_else(|| general("there is no such column"))?;
        let codec = column.compression();
        let raw = column.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
        let offsets = [
            Some(column.data_page_offset()),
            column.dictionary_page_offset(),
            Some(column.compressed_size()),
        ];
        if offsets.iter().flatten().any(|&at| at < 0) {
            return Err(general("a column lies before the file's beginning"));
        }
        let rows = usize::try_from(self.meta.num_rows())?;
        let inner = SerializedPageReader::new(Arc::clone(&self.file), &raw, rows, None)?;
        let descr = column.column_descr();
        let levels = usize::from(descr.max_rep_level() > 0) + usize::from(descr.max_def_level() > 0);
        let texts = column.column_type() == Physical::BYTE_ARRAY;
        Ok(Box::new(Pages { inner, codec, texts, levels, dictionary: false, next: None }))
    }

    fn get_column_bloom_filter(&self, _: usize) -> Option<&Sbbf> {
        None
    }

    fn get_row_iter(&self, _: Option<Type>) -> ParquetResult<RowIter<'_>> {
        Err(general("rows come from Rows"))
    }
}

/// The pages of one column.
struct Pages {
    inner: SerializedPageReader<Chunks>,
    codec: Compression,
    /// Whether its values are texts or bytes, each with its length before it.
    texts: bool,
    /// How many kinds of levels lie before the values: of repetition, of definition.
    levels: usize,
    /// Whether there was a dictionary.
    dictionary: bool,
    /// A page that was looked at and not yet taken.
    next: Option<Page>,
}

impl Pages {
    /// Decompresses and checks a page.
    fn page(&mut self, page: Page) -> ParquetResult<Page> {
        let plain = self.is_plain(&page)?;
        self.dictionary |= page.is_dictionary_page();
        let texts = plain && self.texts;
        match page {
            Page::DataPage { .. } => self.data_page(page, texts),
            Page::DataPageV2 { .. } => self.data_page_v2(page, texts),
            Page::DictionaryPage { buf, num_values, encoding, is_sorted } => {
                let mut buf = decompress(self.codec, buf, 0)?;
                // The smallest entry of a dictionary is a byte long.
                if usize::try_from(num_values)? > buf.len() {
                    return Err(general("a dictionary has more entries than bytes"));
                }
                if self.texts {
                    buf = ended(buf, 0, num_values)?;
                }
                Ok(Page::DictionaryPage { buf, num_values, encoding, is_sorted })
            }
        }
    }

    /// Returns whether a page's values are written one after another, and not as entries of a dictionary.
    ///
    /// # Errors
    /// Encodings that are not read, and a page that refers to a dictionary that is not there.
    fn is_plain(&self, page: &Page) -> ParquetResult<bool> {
        if let Page::DataPage { def_level_encoding, rep_level_encoding, .. } = page
            && (*def_level_encoding != Encoding::RLE || *rep_level_encoding != Encoding::RLE)
        {
            let what = "the levels of a page are encoded otherwise than as RLE";
            return Err(ParquetError::NYI(what.to_owned()));
        }
        match page.encoding() {
            Encoding::PLAIN => Ok(true),
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY if page.is_dictionary_page() => Ok(true),
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY if self.dictionary => Ok(false),
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY => {
                Err(general("a page refers to a dictionary that is not there"))
            }
            other => {
                let what = format!("a column is encoded as {other}; read are PLAIN and dictionaries");
                Err(ParquetError::NYI(what))
            }
        }
    }

    /// Decompresses a page of version 1, whose levels are compressed with its values.
    fn data_page(&self, mut page: Page, texts: bool) -> ParquetResult<Page> {
        if let Page::DataPage { buf, num_values, .. } = &mut page {
            *buf = decompress(self.codec, std::mem::take(buf), 0)?;
            if texts {
                let mut rest = buf.as_ref();
                for _ in 0..self.levels {
                    rest = skip(rest)?;
                }
                let from = buf.len() - rest.len();
                *buf = ended(std::mem::take(buf), from, *num_values)?;
            }
        }
        Ok(page)
    }

    /// Decompresses a page of version 2, whose levels lie uncompressed before its values.
    fn data_page_v2(&self, mut page: Page, texts: bool) -> ParquetResult<Page> {
        if let Page::DataPageV2 {
            buf,
            num_values,
            num_nulls,
            def_levels_byte_len,
            rep_levels_byte_len,
            is_compressed,
            ..
        } = &mut page
        {
            let levels = u64::from(*def_levels_byte_len) + u64::from(*rep_levels_byte_len);
            let levels = usize::try_from(levels)?;
            if levels > buf.len() || num_nulls > num_values {
                return Err(general("a page is shorter than its levels"));
            }
            if std::mem::take(is_compressed) {
                *buf = decompress(self.codec, std::mem::take(buf), levels)?;
            }
            if texts {
                *buf = ended(std::mem::take(buf), levels, *num_values)?;
            }
        }
        Ok(page)
    }
}

impl Iterator for Pages {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        match self.next.take() {
            Some(page) => Ok(Some(page)),
            None => self.inner.get_next_page()?.map(|page| self.page(page)).transpose(),
        }
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        self.next = self.get_next_page()?;
        Ok(self.next.as_ref().map(|page| {
            let num_rows = match page {
                Page::DataPageV2 { num_rows, .. } => Some(*num_rows as usize),
                _ => None,
            };
            let num_levels = page.is_data_page().then(|| page.num_values() as usize);
            PageMetadata { num_rows, num_levels, is_dict: page.is_dictionary_page() }
        }))
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        self.get_next_page().map(|_| ())
    }
}

/// Makes an error of the `parquet` crate.
pub(super) fn general(what: &str) -> ParquetError {
    ParquetError::General(what.to_owned())
}

/// Skips a length of four bytes and as many bytes as it says.
fn skip(bytes: &[u8]) -> ParquetResult<&[u8]> {
    let too_short = || general("a page is shorter than its values");
    let (length, rest) = bytes.split_first_chunk().ok_or_else(too_short)?;
    rest.get(usize::try_from(u32::from_le_bytes(*length))?..).ok_or_else(too_short)
}

/// Checks a page whose values from byte `from` on are texts with their lengths before them, and appends a
/// length that is longer than any page. The decoder reads a length wherever values should be left, and would
/// panic where there is none.
fn ended(page: bytes::Bytes, from: usize, values: u32) -> ParquetResult<bytes::Bytes> {
    let mut rest = page.get(from..).ok_or_else(|| general("a page is shorter than its levels"))?;
    for _ in 0..values {
        if rest.is_empty() {
            break;
        }
        rest = skip(rest)?;
    }
    let mut page = Vec::from(page);
    page.extend([0xff; 4]);
    Ok(page.into())
}

/// Decompresses a page of which all but the first `plain` bytes are compressed with `codec`.
fn decompress(codec: Compression, page: bytes::Bytes, plain: usize) -> ParquetResult<bytes::Bytes> {
    let (Some(head), Some(body)) = (page.get(..plain), page.get(plain..)) else {
        return Err(general("a page is shorter than its levels"));
    };
    if matches!(codec, Compression::UNCOMPRESSED) || body.is_empty() {
        return Ok(page);
    }
    let too_long = || general(&format!("a page is longer than {MAX_PAGE_BYTES} bytes"));
    let mut out = head.to_vec();
    match codec {
        Compression::SNAPPY => {
            let length = snap::raw::decompress_len(body).map_err(|e| general(&format!("Snappy: {e}")))?;
            // Snappy's best is 64 bytes for a copy of three.
            if length > MAX_PAGE_BYTES || length / 64 > body.len() {
                return Err(too_long());
            }
            let bytes = snap::raw::Decoder::new().decompress_vec(body);
            out.extend(bytes.map_err(|e| general(&format!("Snappy: {e}")))?);
        }
        Compression::GZIP(_) => {
            bounded(MultiGzDecoder::new(body), &mut out)?;
        }
        Compression::ZSTD(_) => {
            let mut rest = body;
            while !rest.is_empty() {
                let frame = ruzstd::decoding::StreamingDecoder::new(&mut rest);
                bounded(frame.map_err(|e| general(&format!("Zstandard: {e}")))?, &mut out)?;
            }
        }
        other => {
            let what =
                format!("a column is compressed with {other}; read are Snappy, Zstandard, gzip and none");
            return Err(ParquetError::NYI(what));
        }
    }
    if out.len() > MAX_PAGE_BYTES { Err(too_long()) } else { Ok(out.into()) }
}

/// Appends what a decoder gives, up to the longest page that is allowed.
fn bounded(from: impl Read, out: &mut Vec<u8>) -> ParquetResult<()> {
    let left = (MAX_PAGE_BYTES + 1).saturating_sub(out.len());
    from.take(left as u64).read_to_end(out)?;
    if out.len() > MAX_PAGE_BYTES {
        return Err(general(&format!("a page is longer than {MAX_PAGE_BYTES} bytes")));
    }
    Ok(())
}
