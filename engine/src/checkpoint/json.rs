//! JSON as checkpoints use it: maps in which no key may occur twice, and bounded files.
//!
//! serde's maps keep the last of two equal keys in silence. In a table of tensors that would hide
//! one of them, so the tables here are lists of pairs, checked while they are read. Values are read as what
//! they must be: a tree of any JSON takes many times the memory of its text.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::foreign;
use crate::error::{Error, Result};
use crate::files::{FileBytes, SourceFile};
use crate::math::reserve;

/// Lines of a table. The largest models have some thousand tensors.
pub(super) const ENTRIES_MAX: usize = 1 << 16;

/// How much memory reading takes, at most, in bytes a byte of text. Pieces of it are small, so that it is
/// asked for before they are.
const MEMORY_FACTOR: usize = 8;

/// A JSON object in file order, refused if a key occurs twice.
pub(super) struct UniqueMap<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(MapVisitor(PhantomData))
    }
}

struct MapVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for MapVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut entries = Entries::default();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value::<V>();
            entries.add(key, value)?;
        }
        Ok(UniqueMap(entries.list))
    }
}

/// The lines of a table while they are read.
pub(super) struct Entries<V> {
    pub(super) list: Vec<(String, V)>,
    seen: HashSet<String>,
}

impl<V> Default for Entries<V> {
    fn default() -> Self {
        Entries {
            list: Vec::new(),
            seen: HashSet::new(),
        }
    }
}

impl<V> Entries<V> {
    /// Takes a line, or says in which one the error is.
    pub(super) fn add<E: serde::de::Error>(
        &mut self,
        key: String,
        value: std::result::Result<V, E>,
    ) -> std::result::Result<(), E> {
        let value = value.map_err(|e| E::custom(format_args!("{key}: {e}")))?;
        if self.list.len() == ENTRIES_MAX {
            return Err(E::custom(format_args!("more than {ENTRIES_MAX} entries")));
        }
        if !self.seen.insert(key.clone()) {
            return Err(E::custom(format_args!("key {key:?} occurs twice")));
        }
        self.list.push((key, value));
        Ok(())
    }
}

/// All bytes of a file that has no reason to be large.
pub(super) fn read_small(file: &SourceFile, max: u64) -> Result<FileBytes> {
    if let Some(error) = foreign::stand_in(file) {
        return Err(error.at(file.name()));
    }
    if file.len() > max {
        let message = format!("{} bytes, expected at most {max}", file.len());
        return Err(Error::format(message).at(file.name()));
    }
    file.bytes(0..file.len())
}

/// A file as JSON of type `T`.
pub(super) fn parse<T: for<'de> Deserialize<'de>>(file: &SourceFile, max: u64) -> Result<T> {
    let bytes = read_small(file, max)?;
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        let text = "text in UTF-16, as its byte-order mark says, expected JSON in UTF-8";
        return Err(Error::format(text).at(file.name()));
    }
    let bytes = foreign::without_mark(&bytes);
    let parsed = from_slice(bytes);
    file.watch().check()?;
    parsed.map_err(|e| match e {
        NotRead::Memory(e) => e.at(file.name()),
        NotRead::Json(e) => {
            let not_a_number = match is_not_a_number(bytes, &e) {
                true => "NaN or Infinity, which Python writes and JSON does not have: ",
                false => "",
            };
            let text = format!("not valid JSON for this file: {not_a_number}{e}");
            Error::format(text).at(file.name())
        }
    })
}

/// Whether the error is at what Python writes for numbers that JSON does not have.
fn is_not_a_number(bytes: &[u8], error: &serde_json::Error) -> bool {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let line = lines.nth(error.line().saturating_sub(1));
    let columns = error.column().saturating_sub(2)..=error.column();
    columns.into_iter().any(|at| {
        let rest = line.and_then(|line| line.get(at..)).unwrap_or_default();
        rest.starts_with(b"NaN") || rest.starts_with(b"Infinity")
    })
}

/// Why a text was not read.
pub(super) enum NotRead {
    Memory(Error),
    Json(serde_json::Error),
}

/// A text as JSON of type `T`.
pub(super) fn from_slice<T: for<'de> Deserialize<'de>>(
    bytes: &[u8],
) -> std::result::Result<T, NotRead> {
    drop(reserve::<u8>(MEMORY_FACTOR * bytes.len(), "JSON").map_err(NotRead::Memory)?);
    serde_json::from_slice(bytes).map_err(NotRead::Json)
}

/// A text, or `None` for anything else, which is not kept.
pub(super) struct StringOrNot(pub(super) Option<String>);

impl<'de> Deserialize<'de> for StringOrNot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct StringVisitor;
        impl<'de> Visitor<'de> for StringVisitor {
            type Value = StringOrNot;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<StringOrNot, E> {
                Ok(StringOrNot(Some(text.to_owned())))
            }

            fn visit_bool<E>(self, _: bool) -> std::result::Result<StringOrNot, E> {
                Ok(StringOrNot(None))
            }

            fn visit_i64<E>(self, _: i64) -> std::result::Result<StringOrNot, E> {
                Ok(StringOrNot(None))
            }

            fn visit_u64<E>(self, _: u64) -> std::result::Result<StringOrNot, E> {
                Ok(StringOrNot(None))
            }

            fn visit_f64<E>(self, _: f64) -> std::result::Result<StringOrNot, E> {
                Ok(StringOrNot(None))
            }

            fn visit_unit<E>(self) -> std::result::Result<StringOrNot, E> {
                Ok(StringOrNot(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<StringOrNot, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(StringOrNot(None))
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<StringOrNot, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(StringOrNot(None))
            }
        }
        deserializer.deserialize_any(StringVisitor)
    }
}
