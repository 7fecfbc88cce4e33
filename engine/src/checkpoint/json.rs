//! JSON as checkpoints use it: maps in which no key may occur twice, and bounded files.
//!
//! serde's maps keep the last of two equal keys in silence. In a table of tensors that would hide
//! one of them, so the tables here are lists of pairs, checked while they are read.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, Result};
use crate::files::{FileBytes, SourceFile};

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
        let mut seen = HashSet::new();
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, V>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("key {key:?} occurs twice")));
            }
            entries.push((key, value));
        }
        Ok(UniqueMap(entries))
    }
}

/// All bytes of a file that has no reason to be large.
pub(super) fn read_small(file: &SourceFile, max: u64) -> Result<FileBytes> {
    if file.len() > max {
        let message = format!("{} bytes, expected at most {max}", file.len());
        return Err(Error::format(message).at(file.name()));
    }
    file.bytes(0..file.len())
}

/// A file as JSON of type `T`.
pub(super) fn parse<T: for<'de> Deserialize<'de>>(file: &SourceFile, max: u64) -> Result<T> {
    let bytes = read_small(file, max)?;
    let parsed = serde_json::from_slice(&bytes);
    file.watch().check()?;
    parsed.map_err(|e| Error::format(format!("not valid JSON for this file: {e}")).at(file.name()))
}
