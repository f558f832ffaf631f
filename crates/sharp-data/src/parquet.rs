//! Rows of a Parquet file as JSON values, so that they go the way of JSON lines.
//!
//! Records are put together by the `parquet` crate. What it would take on trust is checked here first: the form of nested columns,
//! the length of a page once decompressed, the number of entries in a dictionary. Where it still stops on levels that do not fit each
//! other (its record reader indexes by them unchecked), that is an error of the file's here.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use parquet::basic::{Compression, ConvertedType, Encoding, Repetition, Type as Physical};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length, RowGroupReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::reader::{ReaderIter, RowIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type, TypePtr};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::lines::MAX_LINE_BYTES;

/// The columns that documents are made of.
const COLUMNS: [&str; 10] =
    ["messages", "prompt", "completion", "text", "passage", "request", "doc", "doc_id", "idx", "label"];

/// Values that are decoded at a time. Few: each may keep a page of its own in memory.
const BATCH: usize = 16;

/// Columns within columns, at most.
const DEPTH: usize = 16;

/// The rows of a file, one after another: memory holds a few pages of the columns that are read.
pub(crate) struct Rows {
    path: PathBuf,
    file: Arc<Chunks>,
    meta: ParquetMetaData,
    /// The columns that are read.
    schema: SchemaDescPtr,
    /// The names of all columns.
    names: Vec<String>,
    group: usize,
    rows: Option<ReaderIter>,
    number: u64,
}

impl Rows {
    /// Opens a file.
    ///
    /// # Errors
    /// If it cannot be opened, is no Parquet file, or one of the columns that would be read is nested in a way that makes no sense.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let file = Arc::new(Chunks { file, len });
        let damaged = |e| Error::file(path, format!("is no sound Parquet file: {e}"));
        let footer = footer(&file).map_err(damaged)?;
        if !footer::shallow(&footer, DEPTH + 1) {
            return Err(Error::file(
                path,
                format!("is damaged, or has columns nested deeper than {DEPTH} levels"),
            ));
        }
        let meta = ParquetMetaDataReader::new().parse_and_finish(&*file).map_err(damaged)?;
        let root = meta.file_metadata().schema_descr().root_schema();
        let names = root.get_fields().iter().map(|f| f.name().to_owned()).collect();
        let wanted: Vec<TypePtr> =
            root.get_fields().iter().filter(|f| COLUMNS.contains(&f.name())).cloned().collect();
        for field in &wanted {
            sound(field, 0).map_err(|what| Error::file(path, format!("column {:?} {what}", field.name())))?;
        }
        let schema = Type::group_type_builder(root.name()).with_fields(wanted).build().map_err(damaged)?;
        let schema = Arc::new(SchemaDescriptor::new(Arc::new(schema)));
        Ok(Rows { path: path.to_path_buf(), file, meta, schema, names, group: 0, rows: None, number: 0 })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An error about the row last read.
    pub(crate) fn error(&self, what: impl Into<String>) -> Error {
        Error::row(&self.path, self.number, what)
    }

    /// Whether there are columns of these names.
    pub(crate) fn have(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.names.iter().any(|n| n == name))
    }

    /// The names of the columns, for messages.
    pub(crate) fn columns(&self) -> String {
        let mut names: Vec<String> = self.names.iter().take(16).map(|n| format!("{n:?}")).collect();
        if self.names.len() > names.len() {
            names.push(format!("{} more", self.names.len() - names.len()));
        }
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// The next row as an object, or `None` after the last.
    ///
    /// # Errors
    /// If the file is damaged there.
    pub(crate) fn next_row(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(rows) = &mut self.rows
                && let Some(row) = unwound(|| rows.next().transpose()).transpose()
            {
                self.number += 1;
                let row = row.map_err(|e| self.error(format!("the file is damaged: {e}")))?;
                return object(row).map(Some).map_err(|what| self.error(what));
            }
            let Some(meta) = self.meta.row_groups().get(self.group) else { return Ok(None) };
            let group = Group { file: Arc::clone(&self.file), meta };
            let tree = TreeBuilder::new().with_batch_size(BATCH);
            let rows = unwound(|| tree.as_iter(Arc::clone(&self.schema), &group));
            self.rows =
                Some(rows.map_err(|e| {
                    Error::file(&self.path, format!("row group {} is damaged: {e}", self.group))
                })?);
            self.group += 1;
        }
    }
}

/// What the `parquet` crate's record reader gives, its panics as errors.
fn unwound<T>(read: impl FnOnce() -> ParquetResult<T>) -> ParquetResult<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(general("its levels do not fit each other")))
}

/// The metadata at the file's end, or nothing where the crate will say what is wrong with it.
fn footer(file: &Chunks) -> ParquetResult<bytes::Bytes> {
    let Some(at) = file.len.checked_sub(8) else { return Ok(bytes::Bytes::new()) };
    let end = file.get_bytes(at, 8)?;
    let length = end.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    match at.checked_sub(u64::from(length)) {
        Some(start) => file.get_bytes(start, usize::try_from(length)?),
        None => Ok(bytes::Bytes::new()),
    }
}

/// How deep the columns of a footer are nested, before the `parquet` crate makes a tree of them: it does so by recursion, and a file of a
/// megabyte could nest them deeper than any stack. Thrift's compact protocol, of which only the schema's counts of children are looked at.
mod footer {
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

        /// The next field's number and type, or type 0 at the end of a structure.
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
                    // A truth value in a list is a byte.
                    let kind = if matches!(kind, 1 | 2) { 3 } else { kind };
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

        /// The number of children of the next element of a schema.
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

    /// Whether no column lies more than `most` levels deep; also where there is no footer, but not where its schema cannot be read.
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
            return Some(());
        }
    }
}

/// Whether records can be put together of such a column: every group holds something, lists and maps are what they are called.
fn sound(field: &Type, depth: usize) -> std::result::Result<(), String> {
    if depth > DEPTH {
        return Err(format!("is nested deeper than {DEPTH} levels"));
    }
    let info = field.get_basic_info();
    if !info.has_repetition() {
        return Err("does not say whether it may be null".into());
    }
    if field.is_primitive() {
        return Ok(());
    }
    let fields = field.get_fields();
    if fields.is_empty() {
        return Err("holds an empty group".into());
    }
    let only = || match fields {
        [inner] if inner.get_basic_info().has_repetition() => {
            Some(inner).filter(|i| i.get_basic_info().repetition() == Repetition::REPEATED)
        }
        _ => None,
    };
    match info.converted_type() {
        ConvertedType::LIST if only().is_none() => return Err("holds a list without elements".into()),
        ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE
            if only().is_none_or(|e| e.is_primitive() || !matches!(e.get_fields().len(), 1 | 2)) =>
        {
            return Err("holds a map without keys".into());
        }
        _ => {}
    }
    fields.iter().try_for_each(|f| sound(f, depth + 1))
}

fn object(row: Row) -> std::result::Result<Value, String> {
    let fields = row.into_columns().into_iter().map(|(name, field)| {
        let value = value(&field).map_err(|what| format!("{name:?} {what}"))?;
        Ok((name, value))
    });
    Ok(Value::Object(fields.collect::<std::result::Result<Map<_, _>, String>>()?))
}

/// What JSON has no word for (dates, decimals, maps) is null: no document is made of it.
fn value(field: &Field) -> std::result::Result<Value, String> {
    Ok(match field {
        Field::Bool(v) => Value::from(*v),
        Field::Byte(v) => Value::from(*v),
        Field::Short(v) => Value::from(*v),
        Field::Int(v) => Value::from(*v),
        Field::Long(v) => Value::from(*v),
        Field::UByte(v) => Value::from(*v),
        Field::UShort(v) => Value::from(*v),
        Field::UInt(v) => Value::from(*v),
        Field::ULong(v) => Value::from(*v),
        Field::Float(v) => Value::from(*v),
        Field::Double(v) => Value::from(*v),
        Field::Str(v) => Value::from(v.as_str()),
        // Some writers do not say that a column of bytes is text.
        Field::Bytes(v) => match std::str::from_utf8(v.data()) {
            Ok(text) => Value::from(text),
            Err(e) => {
                return Err(format!("is not UTF-8: the byte at position {} is invalid", e.valid_up_to() + 1));
            }
        },
        Field::Group(row) => {
            let fields = row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field)?)));
            Value::Object(fields.collect::<std::result::Result<Map<_, _>, String>>()?)
        }
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(value).collect::<std::result::Result<_, _>>()?)
        }
        _ => Value::Null,
    })
}

/// The file, read where it is asked for and nowhere beyond its end.
struct Chunks {
    file: File,
    len: u64,
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
struct Group<'a> {
    file: Arc<Chunks>,
    meta: &'a RowGroupMetaData,
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
    fn page(&mut self, page: Page) -> ParquetResult<Page> {
        let plain = match page.encoding() {
            Encoding::PLAIN => true,
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY if page.is_dictionary_page() => true,
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY if self.dictionary => false,
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY => {
                return Err(general("a page refers to a dictionary that is not there"));
            }
            other => {
                let what = format!("a column is encoded as {other}; read are PLAIN and dictionaries");
                return Err(ParquetError::NYI(what));
            }
        };
        if let Page::DataPage { def_level_encoding, rep_level_encoding, .. } = &page
            && (*def_level_encoding != Encoding::RLE || *rep_level_encoding != Encoding::RLE)
        {
            return Err(ParquetError::NYI(
                "the levels of a page are encoded otherwise than as RLE".to_owned(),
            ));
        }
        self.dictionary |= page.is_dictionary_page();
        Ok(match page {
            Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding,
                rep_level_encoding,
                statistics,
            } => {
                let mut buf = decompress(self.codec, buf, 0)?;
                if plain && self.texts {
                    let mut rest = buf.as_ref();
                    for _ in 0..self.levels {
                        rest = skip(rest)?;
                    }
                    let from = buf.len() - rest.len();
                    buf = ended(buf, from, num_values)?;
                }
                Page::DataPage {
                    buf,
                    num_values,
                    encoding,
                    def_level_encoding,
                    rep_level_encoding,
                    statistics,
                }
            }
            Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                num_nulls,
                num_rows,
                def_levels_byte_len,
                rep_levels_byte_len,
                is_compressed,
                statistics,
            } => {
                let levels = u64::from(def_levels_byte_len) + u64::from(rep_levels_byte_len);
                let levels = usize::try_from(levels)?;
                if levels > buf.len() || num_nulls > num_values {
                    return Err(general("a page is shorter than its levels"));
                }
                let mut buf = if is_compressed { decompress(self.codec, buf, levels)? } else { buf };
                if plain && self.texts {
                    buf = ended(buf, levels, num_values)?;
                }
                Page::DataPageV2 {
                    buf,
                    num_values,
                    encoding,
                    num_nulls,
                    num_rows,
                    def_levels_byte_len,
                    rep_levels_byte_len,
                    is_compressed: false,
                    statistics,
                }
            }
            Page::DictionaryPage { buf, num_values, encoding, is_sorted } => {
                let mut buf = decompress(self.codec, buf, 0)?;
                // The smallest entry of a dictionary is a byte long.
                if usize::try_from(num_values)? > buf.len() {
                    return Err(general("a dictionary has more entries than bytes"));
                }
                if self.texts {
                    buf = ended(buf, 0, num_values)?;
                }
                Page::DictionaryPage { buf, num_values, encoding, is_sorted }
            }
        })
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

fn general(what: &str) -> ParquetError {
    ParquetError::General(what.to_owned())
}

/// The bytes after a length of four bytes and as many as it says.
fn skip(bytes: &[u8]) -> ParquetResult<&[u8]> {
    let too_short = || general("a page is shorter than its values");
    let (length, rest) = bytes.split_first_chunk().ok_or_else(too_short)?;
    rest.get(usize::try_from(u32::from_le_bytes(*length))?..).ok_or_else(too_short)
}

/// A page whose values from byte `from` on are texts with their lengths before them: checked, and with a length after the last that is
/// longer than any page. The decoder reads a length wherever values should be left, and would panic where there is none.
fn ended(page: bytes::Bytes, from: usize, values: u32) -> ParquetResult<bytes::Bytes> {
    let mut rest = page.get(from..).unwrap_or_default();
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

/// A page whose first `plain` bytes lie there as they are and whose other bytes `codec` has compressed.
fn decompress(codec: Compression, page: bytes::Bytes, plain: usize) -> ParquetResult<bytes::Bytes> {
    let (Some(head), Some(body)) = (page.get(..plain), page.get(plain..)) else {
        return Err(general("a page is shorter than its levels"));
    };
    if matches!(codec, Compression::UNCOMPRESSED) || body.is_empty() {
        return Ok(page);
    }
    let too_long = || general(&format!("a page is longer than {MAX_LINE_BYTES} bytes"));
    let mut out = head.to_vec();
    match codec {
        Compression::SNAPPY => {
            let length = snap::raw::decompress_len(body).map_err(|e| general(&format!("Snappy: {e}")))?;
            // Snappy's best is 64 bytes for a copy of three.
            if length > MAX_LINE_BYTES || length / 64 > body.len() {
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
    if out.len() > MAX_LINE_BYTES { Err(too_long()) } else { Ok(out.into()) }
}

fn bounded(from: impl Read, out: &mut Vec<u8>) -> ParquetResult<()> {
    let left = (MAX_LINE_BYTES + 1).saturating_sub(out.len());
    from.take(left as u64).read_to_end(out)?;
    if out.len() > MAX_LINE_BYTES {
        return Err(general(&format!("a page is longer than {MAX_LINE_BYTES} bytes")));
    }
    Ok(())
}
