//! Reads the rows of a Parquet file as JSON values, so that they go the way of JSON lines.
//!
//! **The threat.** A file may come from anybody, and the `parquet` crate trusts it: it recurses as deep as
//! columns nest, allocates what a page claims to hold, and panics on levels that do not fit each other. So
//! three guards stand before it:
//!
//! - `footer.rs` bounds the nesting of columns before the crate builds its tree of them;
//! - `pages.rs` decompresses each page within limits and checks its lengths before the crate decodes it;
//! - this file checks that nested columns are sound, and turns the record reader's remaining panics into
//!   errors.
//!
//! Damaged and hostile files of every kind are in `tests/parquet.rs`.

mod footer;
mod pages;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{ConvertedType, Repetition};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type, TypePtr};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use pages::{Chunks, Group, general};

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
    /// If it cannot be opened, is no Parquet file, or one of the columns that would be read is nested in a
    /// way that makes no sense.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let file = Arc::new(Chunks { file, len });
        let damaged = |e| Error::file(path, format!("is no sound Parquet file: {e}"));
        let footer = footer::read(&file).map_err(damaged)?;
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

    /// Makes an error about the row last read.
    pub(crate) fn error(&self, what: impl Into<String>) -> Error {
        Error::row(&self.path, self.number, what)
    }

    /// Whether there are columns of these names.
    pub(crate) fn have(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.names.iter().any(|n| n == name))
    }

    /// Lists the names of the columns, for messages.
    pub(crate) fn columns(&self) -> String {
        let mut names: Vec<String> = self.names.iter().take(16).map(|n| format!("{n:?}")).collect();
        if self.names.len() > names.len() {
            names.push(format!("{} more", self.names.len() - names.len()));
        }
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// Reads the next row as an object, or `None` after the last.
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

/// Runs the `parquet` crate's record reader and turns a panic into an error.
fn unwound<T>(read: impl FnOnce() -> ParquetResult<T>) -> ParquetResult<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(general("its levels do not fit each other")))
}

/// Checks that records can be put together of a column: every group holds something, lists and maps are what
/// they are called.
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

/// Converts a value to JSON. Dates, decimals and maps, which JSON has no word for, become null: no document
/// is made of them.
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
