//! JSON from files that nobody has checked: read once without keeping anything, before anything is made of
//! it.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};

/// Values in a file of settings or a header, at most. In memory each takes up to a hundred bytes, however few
/// it takes in the file.
const MOST_VALUES: usize = 1 << 19;

/// The key of SentencePiece's table of characters, which begins with its own length.
const CHARSMAP: &str = "precompiled_charsmap";

/// Reads settings or a header.
///
/// # Errors
/// [`Error::Json`] for what is not such JSON, or has more values than any sound file.
pub(crate) fn parse<'a, T: Deserialize<'a>>(path: &Path, json: &'a [u8]) -> Result<T> {
    look_through(json, MOST_VALUES).map_err(Error::json(path))?;
    serde_json::from_slice(json).map_err(Error::json(path))
}

/// Checks that a `tokenizer.json` is JSON, and that no table in it claims to be longer than it is.
///
/// # Errors
/// [`Error::Json`] with the place.
pub(crate) fn check_tokenizer(path: &Path, json: &[u8]) -> Result<()> {
    look_through(json, usize::MAX).map_err(Error::json(path))
}

fn look_through(json: &[u8], most: usize) -> serde_json::Result<()> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let mut left = most;
    Look { left: &mut left, charsmap: false }.deserialize(&mut deserializer)?;
    deserializer.end()
}

/// Looks through one value.
struct Look<'a> {
    /// How many values may follow.
    left: &'a mut usize,
    /// Whether the value is a table of characters.
    charsmap: bool,
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(D::Error::custom(format!(
                "more than {MOST_VALUES} values, too many for what it should be"
            )));
        };
        *self.left = left;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if self.charsmap { check_charsmap(text).map_err(E::custom) } else { Ok(()) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<(), A::Error> {
        while all.next_element_seed(Look { left: &mut *self.left, charsmap: false })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<(), A::Error> {
        while let Some(key) = all.next_key::<String>()? {
            all.next_value_seed(Look { left: &mut *self.left, charsmap: key == CHARSMAP })?;
        }
        Ok(())
    }
}

/// Checks the length that a table of characters begins with: `spm_precompiled` allocates by it.
fn check_charsmap(text: &str) -> Result<(), String> {
    let bytes = base64::decode(text).map_err(|e| format!("`{CHARSMAP}` is not base64: {e}"))?;
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Err(format!("`{CHARSMAP}` ends before its length"));
    };
    let length = u32::from_le_bytes(*length);
    if length as usize > rest.len() {
        return Err(format!("`{CHARSMAP}` says that it holds {length} bytes, and {} are there", rest.len()));
    }
    Ok(())
}
