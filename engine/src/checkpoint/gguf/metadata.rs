//! What stands in front of the tensors of a GGUF file: keys and their values.
//!
//! Numbers are kept; of texts and lists only the place is, once all of them lies within the file.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::reader::Reader;
use crate::error::{Error, Result};
use crate::files::SourceFile;

/// Files have some thirty.
const KEYS_MAX: u64 = 1 << 12;
const KEY_BYTES_MAX: u64 = 1024;
/// Of a text that is a name.
const NAME_BYTES_MAX: u64 = 1024;

/// Bytes of a text's length, which every text of a list has.
const LENGTH_BYTES: u64 = 8;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Unsigned, of so many bytes.
    Unsigned(u64),
    Signed(u64),
    F32,
    F64,
    Bool,
    Text,
    List,
}

impl Kind {
    /// From GGUF's number of it.
    fn new(number: u32) -> Result<Self> {
        Ok(match number {
            0 => Kind::Unsigned(1),
            1 => Kind::Signed(1),
            2 => Kind::Unsigned(2),
            3 => Kind::Signed(2),
            4 => Kind::Unsigned(4),
            5 => Kind::Signed(4),
            6 => Kind::F32,
            7 => Kind::Bool,
            8 => Kind::Text,
            9 => Kind::List,
            10 => Kind::Unsigned(8),
            11 => Kind::Signed(8),
            12 => Kind::F64,
            _ => {
                return Err(Error::format(format!(
                    "a value of type {number}, expected 0 to 12: damaged"
                )))
            }
        })
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Unsigned(_) | Kind::Signed(_) => "an integer",
            Kind::F32 | Kind::F64 => "a float",
            Kind::Bool => "true or false",
            Kind::Text => "a text",
            Kind::List => "a list",
        }
    }

    /// Bytes of one; `None` for those that say it themselves.
    fn size(self) -> Option<u64> {
        match self {
            Kind::Unsigned(size) | Kind::Signed(size) => Some(size),
            Kind::F32 => Some(4),
            Kind::F64 => Some(8),
            Kind::Bool => Some(1),
            Kind::Text | Kind::List => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    /// Where its length stands.
    Text(u64),
    List(List),
}

/// A list, all of which lies within the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct List {
    pub(super) kind: Kind,
    pub(super) len: u64,
    /// Of its first entry, in bytes from the start of the file.
    pub(super) at: u64,
}

impl Value {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let kind = Kind::new(reader.u32()?)?;
        Ok(match kind {
            Kind::Unsigned(1) => Value::Integer(reader.number().map(u8::from_le_bytes)?.into()),
            Kind::Unsigned(2) => Value::Integer(reader.number().map(u16::from_le_bytes)?.into()),
            Kind::Unsigned(4) => Value::Integer(reader.u32()?.into()),
            Kind::Unsigned(_) => Value::Integer(reader.u64()?.into()),
            Kind::Signed(1) => Value::Integer(reader.number().map(i8::from_le_bytes)?.into()),
            Kind::Signed(2) => Value::Integer(reader.number().map(i16::from_le_bytes)?.into()),
            Kind::Signed(4) => Value::Integer(reader.number().map(i32::from_le_bytes)?.into()),
            Kind::Signed(_) => Value::Integer(reader.number().map(i64::from_le_bytes)?.into()),
            Kind::F32 => Value::Float(reader.number().map(f32::from_le_bytes)?.into()),
            Kind::F64 => Value::Float(reader.number().map(f64::from_le_bytes)?),
            Kind::Bool => match reader.number::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    let text = format!("{other}, expected 0 or 1 for false or true: damaged");
                    return Err(Error::format(text));
                }
            },
            Kind::Text => {
                let at = reader.at();
                let n = reader.u64()?;
                reader.skip(n)?;
                Value::Text(at)
            }
            Kind::List => Value::List(read_list(reader)?),
        })
    }

    fn kind_name(&self) -> &'static str {
        match self {
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => Kind::Bool.name(),
            Value::Text(_) => Kind::Text.name(),
            Value::List(_) => Kind::List.name(),
        }
    }
}

/// Walks over a list.
fn read_list(reader: &mut Reader<'_>) -> Result<List> {
    let kind = Kind::new(reader.u32()?)?;
    let len = reader.u64()?;
    let at = reader.at();
    if kind == Kind::List {
        return Err(Error::unsupported(
            "a list of lists, expected one of numbers or texts",
        ));
    }
    let size = kind.size().unwrap_or(LENGTH_BYTES);
    let bytes = len.checked_mul(size);
    let Some(bytes) = bytes.filter(|&bytes| bytes <= reader.room()) else {
        return Err(Error::format(format!(
            "a list of {len} entries at byte {at}, which its header has no room for: cut or damaged"
        )));
    };
    match kind {
        Kind::Text => {
            for _ in 0..len {
                let n = reader.u64()?;
                reader.skip(n)?;
            }
        }
        _ => reader.skip(bytes)?,
    }
    Ok(List { kind, len, at })
}

/// All keys with their values.
#[derive(Debug)]
pub(super) struct Metadata<'a> {
    file: &'a SourceFile,
    values: BTreeMap<String, Value>,
}

impl<'a> Metadata<'a> {
    /// Reads `n` keys. `look` sees each as soon as it is there, so that files of another kind are refused by what
    /// they say of themselves, whatever comes behind it.
    pub(super) fn read(
        file: &'a SourceFile,
        reader: &mut Reader<'_>,
        n: u64,
        look: impl Fn(&Self, &str) -> Result<()>,
    ) -> Result<Self> {
        if n > KEYS_MAX {
            let text = format!("{n} keys, expected at most {KEYS_MAX}: damaged");
            return Err(Error::format(text));
        }
        let mut metadata = Metadata {
            file,
            values: BTreeMap::new(),
        };
        for index in 0..n {
            let key = reader.name("a key", KEY_BYTES_MAX);
            let key = key.map_err(|e| e.at(format!("key {index} of {n}")))?;
            let value = Value::read(reader).map_err(|e| e.at(format!("key {key}")))?;
            if metadata.values.contains_key(&key) {
                return Err(Error::format(format!("key {key}: twice")));
            }
            metadata.values.insert(key.clone(), value);
            look(&metadata, &key)?;
        }
        Ok(metadata)
    }

    /// A reader from a place that a value says.
    pub(super) fn reader(&self, at: u64) -> Reader<'a> {
        Reader::new(self.file, at)
    }

    /// A text, such as the name of an architecture; `None` if there is no such key.
    pub(super) fn text(&self, key: &str) -> Result<Option<String>> {
        self.text_within(key, NAME_BYTES_MAX)
    }

    /// The same of up to `max` bytes.
    pub(super) fn text_within(&self, key: &str, max: u64) -> Result<Option<String>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::Text(at)) => {
                let text = self.reader(at).name("a text", max);
                text.map(Some).map_err(|e| e.at(format!("key {key}")))
            }
            Some(other) => Err(wrong(key, other, "a text")),
        }
    }

    /// An integer that is not negative.
    pub(super) fn count(&self, key: &str) -> Result<Option<u64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::Integer(number)) => match u64::try_from(number) {
                Ok(count) => Ok(Some(count)),
                Err(_) => Err(Error::format(format!(
                    "key {key}: {number}, expected 0 or more"
                ))),
            },
            Some(other) => Err(wrong(key, other, "an integer")),
        }
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::Float(number)) => Ok(Some(number)),
            Some(other) => Err(wrong(key, other, "a float")),
        }
    }

    /// A list whose entries are of such a kind.
    pub(super) fn list(&self, key: &str, admits: fn(Kind) -> bool) -> Result<Option<List>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::List(list)) if admits(list.kind) => Ok(Some(list)),
            Some(Value::List(list)) => Err(Error::format(format!(
                "key {key}: a list whose entries are each {}, expected others",
                list.kind.name()
            ))),
            Some(other) => Err(wrong(key, other, "a list")),
        }
    }
}

fn wrong(key: &str, found: &Value, expected: &str) -> Error {
    let found = found.kind_name();
    Error::format(format!("key {key}: {found}, expected {expected}"))
}
