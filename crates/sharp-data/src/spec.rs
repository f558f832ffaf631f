//! Which file, and how to look at it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

/// How the rows of a file become documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum View {
    /// By what each row holds: `messages`, else `prompt` + `completion`, else `text`; an evaluation request
    /// as [`View::Completion`].
    #[default]
    Auto,
    /// Plain text; every token is counted in the loss. Of a pair, prompt and completion joined.
    Text,
    /// A prompt (not counted) and its completion (counted).
    Completion,
    /// A conversation; what the assistant says is counted.
    Messages,
    /// The passage an evaluation request asks about: its query before the last `"\nQuestion:"`, each distinct
    /// passage once.
    Passage,
}

impl View {
    /// Every view, with the name it has in a specification.
    pub const ALL: [(&'static str, View); 5] = [
        ("auto", View::Auto),
        ("text", View::Text),
        ("completion", View::Completion),
        ("messages", View::Messages),
        ("passage", View::Passage),
    ];

    /// Returns the name in a specification.
    pub fn name(self) -> &'static str {
        View::ALL.iter().find(|(_, v)| *v == self).map_or("auto", |(n, _)| n)
    }
}

impl FromStr for View {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        View::ALL.iter().find(|(n, _)| *n == s).map(|(_, v)| *v).ok_or_else(|| Error::Spec {
            spec: s.to_owned(),
            what: format!("no such view; there are {}", View::ALL.map(|(n, _)| n).join(", ")),
        })
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A file of data and how to look at it.
///
/// As a string: `path`, `path#view` or `path#view:limit` (`train.jsonl.gz#passage:5000`). The part after the
/// last `#` is a view unless it holds a `.` or a path separator. In TOML or JSON it may also be a table with
/// the keys `path`, `view` and `limit`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DataSpec {
    /// The file.
    pub path: PathBuf,
    /// How its rows become documents.
    pub view: View,
    /// At most this many documents, from the start of the file; `None` for all.
    pub limit: Option<usize>,
}

impl DataSpec {
    /// Names the whole of a file, looked at by what it holds.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DataSpec { path: path.into(), view: View::Auto, limit: None }
    }

    /// Looks at the same file in another view.
    #[must_use]
    pub fn with_view(mut self, view: View) -> Self {
        self.view = view;
        self
    }

    /// Takes at most `limit` documents of it.
    #[must_use]
    pub fn with_limit(mut self, limit: Option<usize>) -> Self {
        self.limit = limit;
        self
    }

    /// Takes a relative path from `folder`.
    #[must_use]
    pub fn relative_to(mut self, folder: &Path) -> Self {
        if self.path.is_relative() {
            self.path = folder.join(&self.path);
        }
        self
    }
}

impl FromStr for DataSpec {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let bad = |what: String| Error::Spec { spec: s.to_owned(), what };
        if s.is_empty() {
            return Err(bad("it is empty".into()));
        }
        let Some((path, tail)) = s.rsplit_once('#') else { return Ok(DataSpec::new(s)) };
        if tail.contains(['.', '/', '\\']) {
            return Ok(DataSpec::new(s));
        }
        if path.is_empty() {
            return Err(bad("there is no path before the '#'".into()));
        }
        let (view, limit) = match tail.split_once(':') {
            None => (tail, None),
            Some((view, n)) => match n.replace('_', "").parse::<usize>() {
                Ok(n) if n > 0 => (view, Some(n)),
                _ => return Err(bad(format!("{n:?} is not a number of documents"))),
            },
        };
        let view: View = if view.is_empty() && limit.is_some() {
            View::Auto
        } else {
            view.parse().map_err(|_| {
                bad(format!("no view {view:?}; there are {}", View::ALL.map(|(n, _)| n).join(", ")))
            })?
        };
        Ok(DataSpec { path: path.into(), view, limit })
    }
}

impl fmt::Display for DataSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match (self.view, self.limit) {
            // A path with a '#' of its own needs the view spelled out, or it would be read back differently.
            (View::Auto, None) if !self.path.to_string_lossy().contains('#') => Ok(()),
            (view, None) => write!(f, "#{view}"),
            (view, Some(n)) => write!(f, "#{view}:{n}"),
        }
    }
}

impl Serialize for DataSpec {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DataSpec {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Spec;
        impl<'de> Visitor<'de> for Spec {
            type Value = DataSpec;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"path#view\" or a table with path, view and limit")
            }
            fn visit_str<E: de::Error>(self, s: &str) -> std::result::Result<DataSpec, E> {
                s.parse().map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<DataSpec, A::Error> {
                const KEYS: &[&str] = &["path", "view", "limit"];
                let (mut path, mut view, mut limit) = (None, View::Auto, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "path" => path = Some(map.next_value::<PathBuf>()?),
                        "view" => view = map.next_value::<String>()?.parse().map_err(de::Error::custom)?,
                        "limit" => limit = map.next_value::<Option<usize>>()?,
                        other => return Err(de::Error::unknown_field(other, KEYS)),
                    }
                }
                let path = path.ok_or_else(|| de::Error::missing_field("path"))?;
                Ok(DataSpec { path, view, limit })
            }
        }
        d.deserialize_any(Spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_become_specifications() {
        let spec: DataSpec = "a/b.jsonl.gz#passage:50".parse().unwrap();
        assert_eq!(spec, DataSpec::new("a/b.jsonl.gz").with_view(View::Passage).with_limit(Some(50)));
        assert_eq!("x.txt".parse::<DataSpec>().unwrap(), DataSpec::new("x.txt"));
        assert_eq!("x.txt#:7".parse::<DataSpec>().unwrap(), DataSpec::new("x.txt").with_limit(Some(7)));
        // A '#' in a folder's name is no view.
        assert_eq!("c#/x.txt".parse::<DataSpec>().unwrap(), DataSpec::new("c#/x.txt"));
        for bad in ["", "#text", "x.txt#passge", "x.txt#text:0", "x.txt#text:many", "x.txt#"] {
            assert!(bad.parse::<DataSpec>().is_err(), "{bad}");
        }
        let err = "x.txt#passge".parse::<DataSpec>().unwrap_err().to_string();
        assert!(err.contains("passge") && err.contains("passage"), "{err}");
    }

    #[test]
    fn serde_takes_strings_and_tables() {
        let a: DataSpec = serde_json::from_str(r#""x.jsonl#text""#).unwrap();
        let b: DataSpec = serde_json::from_str(r#"{"path": "x.jsonl", "view": "text"}"#).unwrap();
        assert_eq!(a, b);
        assert_eq!(serde_json::to_string(&a).unwrap(), r#""x.jsonl#text""#);
        let err = serde_json::from_str::<DataSpec>(r#"{"path": "x", "veiw": "text"}"#).unwrap_err();
        assert!(err.to_string().contains("veiw"), "{err}");
        for spec in
            [DataSpec::new("a#b.txt"), DataSpec::new("a#text"), DataSpec::new("q.txt").with_limit(Some(3))]
        {
            assert_eq!(spec.to_string().parse::<DataSpec>().unwrap(), spec);
        }
    }
}
